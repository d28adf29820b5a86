#!/usr/bin/env bash
# Makes the image from a binary that was built on this machine, for machines that cannot build inside Docker.
#   cargo build --profile dist --locked && deploy/pack.sh [BINARY] [TAG]
# This machine's glibc is packed with the binary, which was linked against it. Nothing is pulled.
set -euo pipefail
umask 022
cd "$(dirname "$0")/.."
binary=${1:-target/dist/stage0}
tag=${2:-stage0:local}
context=$(mktemp -d)
trap 'rm -rf "$context"' EXIT
deploy/rootfs.sh "$binary" "$context/rootfs"
# Use the last stage of the Dockerfile, and copy from the context instead of from the build stage.
sed -n '/^FROM scratch/,$p' deploy/Dockerfile | sed -e 's|--from=build ||' -e 's| /rootfs/| rootfs/|' > "$context/Dockerfile"
docker build --quiet --tag "$tag" "$context"
