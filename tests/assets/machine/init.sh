#!/usr/bin/env bash
# Makes a machine out of new namespaces (tests/src/machine.rs): what a runbook may change is a layer in memory above this
# machine's own files, and its network is one of its own, so paths and ports are those of the document.
#   init.sh ASSETS STAGE0 NATS_SERVER CHECKOUT
set -eu
assets=$1 stage0=$2 nats_server=$3 checkout=$4
ip link set lo up
mount --make-rprivate /
mount -t tmpfs -o mode=0755 tmpfs /run
mkdir /run/layers
for path in etc var/lib usr/local/bin root; do
  layer=/run/layers/${path//\//-}
  mkdir "$layer" "$layer.work"
  mount -t overlay overlay -o "lowerdir=/$path,upperdir=$layer,workdir=$layer.work" "/$path"
done
# At a path that every role's user may pass, and by links, which an upgrade replaces.
for program in "stage0 $stage0" "nats-server $nats_server"; do
  set -- $program
  mkdir -p /run/programs
  : > "/run/programs/$1"
  mount --bind "$2" "/run/programs/$1"
  ln -sfn "/run/programs/$1" "/usr/local/bin/$1"
done
install -m 0755 "$assets/systemctl" "$assets/journalctl" /usr/local/bin/
ln -sfn "$checkout/deploy" /root/deploy
echo ready
exec sleep infinity
