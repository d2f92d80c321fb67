#!/bin/sh
# Pin the newest releases that requirements.in allows: install them into an empty environment and
# write what came, with all they need, into requirements.txt.
set -eu

place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"$PYTHON" -m venv "$place/env"
"$place/env/bin/python" -m pip install --quiet --requirement requirements.in
{
    echo "# The full environment of the book and its tests, pinned. Made by \`make lock\` from"
    echo "# requirements.in, which says why each direct dependency is there."
    "$place/env/bin/python" -m pip freeze
} >"$place/requirements.txt"
mv "$place/requirements.txt" requirements.txt
