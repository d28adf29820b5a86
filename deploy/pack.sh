#!/usr/bin/env bash
# Makes the image of a binary that was built on this machine, for machines that cannot build in Docker.
#   cargo build --release --locked && deploy/pack.sh [BINARY] [TAG]
# The binary needs the glibc that is packed with it, this machine's; nothing is pulled.
set -euo pipefail
umask 022
cd "$(dirname "$0")/.."
binary=${1:-target/release/stage0}
tag=${2:-stage0:local}
context=$(mktemp -d)
trap 'rm -rf "$context"' EXIT
deploy/rootfs.sh "$binary" "$context/rootfs"
# The last stage of the Dockerfile, from the context instead of the stage that builds.
sed -n '/^FROM scratch/,$p' deploy/Dockerfile | sed -e 's|--from=build ||' -e 's| /rootfs/| rootfs/|' > "$context/Dockerfile"
docker build --quiet --tag "$tag" "$context"
