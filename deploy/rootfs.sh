#!/bin/sh
# Lays out the root file system of the image: the binary, the libraries that it is linked with, and the system's
# certificate authorities.
#   deploy/rootfs.sh BINARY DIR
# DIR/root belongs to root in the image, DIR/owned to the user that runs in it (65532). No shell, no package manager.
set -eu
# The image's user must be able to read the files, whatever this shell's umask is.
umask 022
binary=$1
target=$2
authorities=/etc/ssl/certs/ca-certificates.crt
[ -x "$binary" ] || { echo "no binary at $binary: cargo build --profile dist --locked" >&2; exit 1; }
[ -s "$authorities" ] || { echo "no certificate authorities at $authorities: install ca-certificates" >&2; exit 1; }
rm -rf "$target"
mkdir -p "$target/root/usr/bin" "$target/root/etc/ssl/certs" "$target/root/tmp"
cp "$binary" "$target/root/usr/bin/stage0"
strip --strip-unneeded "$target/root/usr/bin/stage0"
# `ldd` prints the path of the loader and of every library. The kernel's vDSO has no path.
ldd "$binary" | grep -o '/[^ ]*' | while read -r library; do
  mkdir -p "$target/root$(dirname "$library")"
  cp -L "$library" "$target/root$library"
done
cp -L "$authorities" "$target/root$authorities"
echo 'stage0:x:65532:65532:Stage0:/var/lib/stage0:/nonexistent' > "$target/root/etc/passwd"
echo 'stage0:x:65532:' > "$target/root/etc/group"
# Without this file glibc asks DNS before it reads /etc/hosts.
echo 'hosts: files dns' > "$target/root/etc/nsswitch.conf"
# A new named volume inherits owner and mode of the directory that it is mounted on.
for directory in var/lib/stage0 var/lib/nats var/lib/nats-2 var/lib/nats-3 etc/stage0 stack/authority stack/nats stack/nats-2 stack/nats-3 \
  stack/gateway stack/evaluator stack/keystore stack/audit-export stack/admin stack/receiver stack/balancer stack/client stack/operator \
  stack/secret; do
  mkdir -p "$target/owned/$directory"
done
chmod -R u=rwX,go= "$target/owned/var/lib"/* "$target/owned/etc/stage0" "$target/owned/stack"/*
chmod 755 "$target/root/tmp" "$target/owned" "$target/owned/var" "$target/owned/var/lib" "$target/owned/etc" "$target/owned/stack"
