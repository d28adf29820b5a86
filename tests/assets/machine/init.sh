#!/usr/bin/env bash
# Makes a machine out of new namespaces (tests/src/machine.rs): what a runbook may change is a layer in memory above this
# machine's own files, and its network is one of its own, so paths and ports are those of the document.
#   init.sh ASSETS STAGE0 NATS_SERVER [INSTALLED.tar]
set -eu
assets=$1 stage0=$2 nats_server=$3 installed=${4:-}
ip link set lo up
mount --make-rprivate /
layers=/run/layers
mount -t tmpfs -o mode=0755 tmpfs /run
mkdir "$layers"
if [ -n "$installed" ]; then tar -C "$layers" --xattrs -xf "$installed"; fi
for path in etc var/lib usr/local/bin root; do
  layer=$layers/${path//\//-}
  mkdir -p "$layer" "$layers/work-${path//\//-}"
  mount -t overlay overlay -o "lowerdir=/$path,upperdir=$layer,workdir=$layers/work-${path//\//-}" "/$path"
done
# The names of the programs have parents that every role's user may pass.
for program in "stage0 $stage0" "nats-server $nats_server"; do
  set -- $program
  [ -e "/usr/local/bin/$1" ] || : > "/usr/local/bin/$1"
  mount --bind "$2" "/usr/local/bin/$1"
done
install -m 0755 "$assets/systemctl" "$assets/journalctl" /usr/local/bin/
echo ready
exec sleep infinity
