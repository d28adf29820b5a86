#!/usr/bin/env bash
# Prints the path of a Chromium that the browser tests can drive. Installs Debian's package where there is none and
# this is root.
# Exits with 3 where there is none and none can be installed. STAGE0_BROWSER names another binary.
set -euo pipefail

find_browser() {
  local name
  for name in "${STAGE0_BROWSER:-}" chromium chromium-browser google-chrome google-chrome-stable; do
    [ -n "$name" ] && command -v "$name" && return
  done
  return 1
}

if ! find_browser; then
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "no Chromium on the PATH, and only root with apt-get can install one: set STAGE0_BROWSER" >&2
    exit 3
  fi
  # The fonts cover the scripts that the pages show, so that screenshots look as they do on a desktop.
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
      chromium fonts-liberation fonts-noto-cjk; } >&2 || {
    echo "apt-get cannot install chromium" >&2
    exit 3
  }
  find_browser
fi
