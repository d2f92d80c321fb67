#!/bin/sh
# Pin the newest releases that requirements.in allows, with all they need, for every system and every
# Python that the book runs on (uv's universal resolution), in requirements.txt. With arguments,
# hand them to uv instead of --upgrade: `tools/lock.sh --upgrade-package keras`, or `tools/lock.sh -q`
# to keep every pin that still fits.
set -eu

place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
if ! command -v uv >/dev/null 2>&1; then
    "$PYTHON" -m pip install --quiet --target "$place" uv
    PATH="$place/bin:$PATH"
fi
cp requirements.txt "$place/"
uv pip compile --quiet --universal --python-version 3.11.5 --no-header --no-annotate \
    --no-emit-index-url --no-emit-find-links --no-emit-package pip --no-emit-package wheel \
    "${@:---upgrade}" requirements.in --output-file "$place/requirements.txt" >/dev/null
{
    echo "# The full environment of the book and its tests, pinned for Linux, macOS and Windows. Made by"
    echo "# \`make lock\` from requirements.in, which says why each direct dependency is there."
    cat "$place/requirements.txt"
} >requirements.txt
