#!/usr/bin/env bash
# Checks the alerts and the dashboard in deploy/monitoring: syntax, the tests of the alerts, and by scripts/monitoring.py
# that each metric and label exists. Needs python3 and promtool: from .tools/bin, the PATH, or for root on Debian out of
# the package `prometheus`. That is not installed, because it would start a server.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.tools/bin:$PATH"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

fetch() {
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
  apt-get update -qq && (cd "$scratch" && apt-get download -qq prometheus && dpkg -x prometheus_*.deb .) || return 1
  mkdir -p .tools/bin && mv "$scratch/usr/bin/promtool" .tools/bin/
}
if ! command -v promtool >/dev/null && ! fetch; then
  echo "monitoring: promtool is missing, so alerts and dashboard are NOT CHECKED: install Prometheus" >&2
  exit 1
fi
python3 scripts/monitoring.py > "$scratch/dashboard.yml"
promtool check rules deploy/monitoring/stage0-alerts.yml "$scratch/dashboard.yml"
promtool test rules deploy/monitoring/stage0-alerts-test.yml
