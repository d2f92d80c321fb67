#!/bin/sh
# Measure RecBole in a virtual environment of its own ($PEERS, .venv-peers), made with $PYTHON if
# there is none. Arguments go to benchmarks/recbole_peer.py: --cap-minutes 15, --models SASRec GRU4Rec.
set -eu

cd "$(dirname "$0")/.."
PYTHON="${PYTHON:-python3}"
PEERS="${PEERS:-.venv-peers}"
"$PYTHON" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || {
    echo "error: $PYTHON is $("$PYTHON" --version 2>&1); RecBole 1.2.1 with NumPy 1 needs" \
        "Python 3.11 or 3.12: make PYTHON=python3.12 bench-peers" >&2
    exit 1
}
if ! cmp -s benchmarks/requirements-peers.txt "$PEERS/.ready"; then
    [ -x "$PEERS/bin/python" ] || "$PYTHON" -m venv "$PEERS"
    echo "installing RecBole into $PEERS (some minutes the first time)"
    "$PEERS/bin/python" -m pip install --quiet -r benchmarks/requirements-peers.txt
    "$PEERS/bin/python" -m pip install --quiet --no-deps recbole==1.2.1
    cp benchmarks/requirements-peers.txt "$PEERS/.ready"
fi
exec "$PEERS/bin/python" -m benchmarks.recbole_peer "$@"
