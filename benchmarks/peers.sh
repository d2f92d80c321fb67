#!/bin/sh
# Measure myFM and RecBole, each in a virtual environment of its own (.venv-myfm, and $PEERS or
# .venv-peers), made with $PYTHON if there is none. Arguments go to benchmarks/recbole_peer.py:
# --cap-minutes 15, --models SASRec GRU4Rec.
# With `million` first: RecTools' SASRec on MovieLens 1M (.venv-rectools); see rectools_peer.py.
set -eu

cd "$(dirname "$0")/.."
PYTHON="${PYTHON:-python3}"
PEERS="${PEERS:-.venv-peers}"
"$PYTHON" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || {
    echo "error: $PYTHON is $("$PYTHON" --version 2>&1); RecBole 1.2.1 with NumPy 1 needs" \
        "Python 3.11 or 3.12: make PYTHON=python3.12 bench-peers" >&2
    exit 1
}

environment() { # ENVIRONMENT REQUIREMENTS [PACKAGE]: up to date; PACKAGE without what it depends on
    cmp -s "$2" "$1/.ready" && return
    [ -x "$1/bin/python" ] || "$PYTHON" -m venv "$1"
    echo "installing $2 into $1 (some minutes the first time)"
    "$1/bin/python" -m pip install --quiet -r "$2"
    [ -z "${3:-}" ] || "$1/bin/python" -m pip install --quiet --no-deps "$3"
    cp "$2" "$1/.ready"
}

if [ "${1:-}" = million ]; then
    shift
    environment .venv-rectools benchmarks/requirements-rectools.txt
    exec .venv-rectools/bin/python -m benchmarks.rectools_peer "$@"
fi

environment .venv-myfm benchmarks/requirements-myfm.txt
.venv-myfm/bin/python -m benchmarks.myfm_peer

environment "$PEERS" benchmarks/requirements-peers.txt recbole==1.2.1
exec "$PEERS/bin/python" -m benchmarks.recbole_peer "$@"
