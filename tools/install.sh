#!/bin/sh
# Make the virtual environment $VENV with $PYTHON if there is none, and install into it what the
# arguments say, then the package. uv does it where it is installed, pip otherwise.
set -eu

"$PYTHON" -c 'import sys; sys.exit(not (3, 11, 5) <= sys.version_info < (3, 14))' || {
    echo "error: $PYTHON is $("$PYTHON" --version 2>&1); the pinned requirements install on Python" \
        "3.11 (from 3.11.5), 3.12 and 3.13: make PYTHON=python3.12 ..." >&2
    exit 1
}
python() { # that of the environment; on Windows it lies elsewhere
    if [ -x "$VENV/bin/python" ]; then echo "$VENV/bin/python"; else echo "$VENV/Scripts/python.exe"; fi
}
if command -v uv >/dev/null 2>&1; then
    [ -x "$(python)" ] || uv venv --quiet --seed --python "$PYTHON" "$VENV"
    echo "installing into $VENV with uv: $*"
    uv pip install --quiet --python "$(python)" "$@"
    uv pip install --quiet --python "$(python)" --no-deps --editable .
else
    [ -x "$(python)" ] || "$PYTHON" -m venv "$VENV"
    echo "installing into $VENV with pip (some minutes the first time): $*"
    "$(python)" -m pip install --quiet "$@"
    "$(python)" -m pip install --quiet --no-deps --editable .
fi
