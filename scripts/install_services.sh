#!/bin/sh
# Install what the tests need and pip cannot bring: a Redis server, an nginx and a Chromium. They start and stop their own.
set -eu

missing=""
command -v redis-server > /dev/null || missing=" redis-server"
# Not everybody has /usr/sbin among the folders of commands.
command -v nginx > /dev/null || [ -x /usr/sbin/nginx ] || missing="$missing nginx-light"
command -v chromium > /dev/null || command -v chromium-browser > /dev/null || command -v google-chrome > /dev/null ||
    missing="$missing chromium"
if [ -z "$missing" ]; then
    exit 0
fi

if command -v apt-get > /dev/null; then
    if [ "$(id -u)" -eq 0 ]; then
        as_root=""
    elif command -v sudo > /dev/null && sudo -n true 2> /dev/null; then
        as_root="sudo"
    else
        echo "missing:$missing; as root: apt-get update && apt-get install$missing" >&2
        exit 1
    fi
    $as_root apt-get update -qq
    # shellcheck disable=SC2086 # they are several words
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $missing > /dev/null
    exit 0
fi

echo "missing:$missing; install it, for example with: brew install redis nginx, brew install --cask chromium" >&2
exit 1
