#!/bin/sh
# Make the virtual environment $VENV with $PYTHON if there is none, and install into it what the
# arguments say, then the package. uv does it where it is installed, pip otherwise.
set -eu

"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "error: $PYTHON is $("$PYTHON" --version 2>&1); the book needs Python 3.11 or newer:" \
        "make PYTHON=python3.12 ..." >&2
    exit 1
}
if command -v uv >/dev/null 2>&1; then
    [ -x "$VENV/bin/python" ] || uv venv --quiet --seed --python "$PYTHON" "$VENV"
    echo "installing into $VENV with uv: $*"
    uv pip install --quiet --python "$VENV/bin/python" "$@"
    uv pip install --quiet --python "$VENV/bin/python" --no-deps --editable .
else
    [ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
    echo "installing into $VENV with pip (some minutes the first time): $*"
    "$VENV/bin/python" -m pip install --quiet "$@"
    "$VENV/bin/python" -m pip install --quiet --no-deps --editable .
fi
