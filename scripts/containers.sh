#!/usr/bin/env bash
# What the tests with containers need: an engine, compose, and the images that docker-compose.yml names.
#   scripts/containers.sh up      installs and starts an engine where none answers, makes or pulls the images; prints settings for the tests
#   scripts/containers.sh down    stops the engine, if `up` started it
# Where no registry answers, stand-ins take the images' place: made of this machine's nats-server and Debian's haproxy. Exit code 3: there is
# no engine and none can be had here.
set -euo pipefail
# A failure inside of `$(…)` is one outside too.
shopt -s inherit_errexit
cd "$(dirname "$0")/.."
tools="$PWD/.tools"
mkdir -p "$tools/bin"
pid_file="$tools/dockerd.pid"

say() { printf '== %s\n' "$*" >&2; }
# Daemons that come with a package do not start by themselves.
policy=/usr/sbin/policy-rc.d
policy_made=
install() {
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
  say "installing $*"
  if [ ! -e $policy ]; then policy_made=1 && printf '#!/bin/sh\nexit 101\n' > $policy && chmod 755 $policy; fi
  local status=0
  { apt-get update -qq >&2 && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$@" >/dev/null; } || status=$?
  [ -z "$policy_made" ] || rm -f $policy
  policy_made=
  return $status
}
trap '[ -z "$policy_made" ] || rm -f $policy' EXIT
# Also where it is not on an ordinary user's path.
find_program() { PATH="$PATH:/usr/sbin:/sbin" command -v "$1"; }
answers() { docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }

engine() {
  if answers; then return; fi
  if [ -S /var/run/docker.sock ] && pgrep -x dockerd >/dev/null; then
    say "a dockerd runs and does not answer here (DOCKER_HOST, a context, or rights): mend that"
    exit 3
  fi
  [ "$(id -u)" = 0 ] || { say "no Docker engine answers, and only root can start one"; exit 3; }
  find_program dockerd >/dev/null || install docker.io iptables || { say "no Docker engine answers and none can be installed here"; exit 3; }
  say "starting dockerd"
  setsid dockerd --pidfile "$pid_file" > "$tools/dockerd.log" 2>&1 < /dev/null &
  for _ in $(seq 150); do
    answers && return
    sleep 0.2
  done
  tail -5 "$tools/dockerd.log" >&2
  say "the engine that was installed does not start here (its log: .tools/dockerd.log)"
  down
  exit 3
}

compose() {
  if docker compose version >/dev/null 2>&1; then echo "docker compose"; return; fi
  command -v docker-compose >/dev/null || install docker-compose || { say "no compose, and none can be installed here"; return 1; }
  echo "docker-compose"
}

# TAG BINARY: an image of a program of this machine with its libraries, and busybox beside it for the health check.
pack() {
  local tag=$1 binary=$2 context
  command -v busybox >/dev/null || install busybox-static || { say "busybox is missing, and cannot be installed here"; return 1; }
  context=$(mktemp -d)
  mkdir -p "$context/root/bin" "$context/root/etc" "$context/root/tmp"
  cp "$binary" "$context/root/bin/$(basename "$binary")"
  cp "$(command -v busybox)" "$context/root/bin/busybox"
  ln -s busybox "$context/root/bin/wget"
  { ldd "$binary" 2>/dev/null || true; } | { grep -o '/[^ ]*' || true; } | while read -r library; do
    mkdir -p "$context/root$(dirname "$library")"
    cp -L "$library" "$context/root$library"
  done
  echo 'hosts: files dns' > "$context/root/etc/nsswitch.conf"
  printf 'FROM scratch\nCOPY root /\nENV PATH=/bin\nENTRYPOINT ["%s"]\n' "$(basename "$binary")" > "$context/Dockerfile"
  docker build --quiet --tag "$tag" "$context" >/dev/null
  rm -rf "$context"
}

# PUBLIC STAND-IN BINARY-FINDER: prints the image that can be used.
image() {
  local public=$1 stand_in=$2 find=$3
  if docker image inspect "$public" >/dev/null 2>&1 || timeout 60 docker pull --quiet "$public" >/dev/null 2>&1; then
    echo "$public"
    return
  fi
  say "$public cannot be pulled: a stand-in of this machine's program takes its place"
  local binary
  binary=$($find) || { say "there is no program for a stand-in of $public"; return 1; }
  pack "$stand_in" "$binary"
  echo "$stand_in"
}
nats_binary() { if [ -x "$tools/bin/nats-server" ]; then readlink -f "$tools/bin/nats-server"; else find_program nats-server; fi; }
haproxy_binary() { find_program haproxy || { install haproxy >&2 && find_program haproxy; }; }

# Where this fails, an engine that it started ends.
up() {
  engine
  local compose nats balancer
  compose=$(compose) || { down; exit 3; }
  nats=$(image nats:2.15-alpine stage0-stand-in/nats nats_binary) || { down; exit 1; }
  balancer=$(image haproxy:3.2-alpine stage0-stand-in/haproxy haproxy_binary) || { down; exit 1; }
  printf 'STAGE0_TEST_COMPOSE=%q\nSTAGE0_TEST_NATS_IMAGE=%q\nSTAGE0_TEST_BALANCER_IMAGE=%q\n' "$compose" "$nats" "$balancer"
}

down() {
  [ -s "$pid_file" ] || return 0
  local pid
  pid=$(cat "$pid_file")
  # The number may be somebody else's by now.
  if [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = dockerd ]; then
    say "stopping dockerd"
    kill "$pid" 2>/dev/null || true
    for _ in $(seq 150); do
      kill -0 "$pid" 2>/dev/null || break
      sleep 0.2
    done
    if kill -0 "$pid" 2>/dev/null; then say "dockerd ($pid) does not end" && return 1; fi
  fi
  rm -f "$pid_file"
}

"${1:?up or down}"
