#!/bin/sh
# Install what the tests need and pip cannot bring: a Redis server. They start and stop it themselves.
set -eu

if command -v redis-server > /dev/null; then
    exit 0
fi

if command -v apt-get > /dev/null; then
    if [ "$(id -u)" -eq 0 ]; then
        as_root=""
    elif command -v sudo > /dev/null && sudo -n true 2> /dev/null; then
        as_root="sudo"
    else
        echo "redis-server is missing; as root: apt-get update && apt-get install redis-server" >&2
        exit 1
    fi
    $as_root apt-get update -qq
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends redis-server > /dev/null
    exit 0
fi

echo "redis-server is missing; install it, for example with: brew install redis" >&2
exit 1
