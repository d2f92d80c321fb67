#!/bin/sh
# Make sure there is a Chromium for the browser tests: one that is installed, Debian's where we may
# install it, or Playwright's own.
set -eu

for name in chromium chromium-browser google-chrome; do
    if command -v "$name" >/dev/null 2>&1; then
        exit 0
    fi
done
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "installing Debian's chromium for the browser tests"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null
    exit 0
fi
echo "installing Playwright's Chromium for the browser tests"
"$1" -m playwright install chromium
