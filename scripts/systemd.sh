#!/usr/bin/env bash
# Verifies the units of deploy/systemd: every line is understood, every program is there, and none is exposed more than the limit below.
#   scripts/systemd.sh    prints the exposure of each unit, from 0 (none) to 10, and exits 1 if something is wrong
# Needs systemd-analyze (Debian's package systemd), and no running systemd.
set -euo pipefail
cd "$(dirname "$0")/.."
# In tenths, as systemd-analyze wants it. What is left is the network, the role's own user and the files of the system, which it reads.
max_exposure=20

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
units=$root/etc/systemd/system
mkdir -p "$units" "$root/usr/local/bin" "$root/bin"
# The targets that every unit has.
for own in /usr/lib/systemd/system /lib/systemd/system; do
  if [ -d "$own" ]; then
    mkdir -p "$root/usr/lib/systemd"
    cp -r "$own" "$root/usr/lib/systemd/system"
    break
  fi
done
for program in usr/local/bin/stage0 usr/local/bin/nats-server bin/kill; do
  printf '#!/bin/sh\n' > "$root/$program"
  chmod +x "$root/$program"
done
cp deploy/systemd/*.service "$units"

# Older versions know neither of the two settings, and ignore them as the units say.
unknown=
version=$(systemctl --version 2>/dev/null | sed -n '1s/[^0-9]*\([0-9]*\).*/\1/p')
if [ "${version:-0}" -lt 254 ]; then unknown="Unknown key '(RestartSteps|RestartMaxDelaySec)' in section"; fi

status=0
for file in "$units"/*.service; do
  unit=$(basename "$file")
  # An instance of each template.
  unit=${unit/@.service/@1.service}
  # Whatever it finds in units of others is not ours.
  found=$(systemd-analyze --man=no --root="$root" verify "$unit" 2>&1 | grep -F stage0- | grep -Ev "${unknown:-^$}" || true)
  if [ -n "$found" ]; then
    printf '%s\n' "$found" >&2
    status=1
  fi
  systemd-analyze --offline=true --no-pager --threshold=$max_exposure --root="$root" security "$unit" > "$root/exposure" 2> /dev/null || status=1
  tail -n 1 "$root/exposure"
done
exit $status
