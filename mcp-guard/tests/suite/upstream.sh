#!/bin/sh
# A server for the tests. Each line that it gets goes to `got`; a tool that runs leaves a line in `ran`.
# What it answers stands in the files `tools`, `result` and `version` beside them.
dir=$1
echo "from the server" >&2
echo $$ > "$dir/pid"
answer() { printf '{"jsonrpc":"2.0","id":%s,"result":%s}\n' "$id" "$1"; }
while IFS= read -r line; do
  printf '%s\n' "$line" >> "$dir/got"
  id=$(printf '%s' "$line" | sed -n 's/.*"id":\("[^"]*"\|-\{0,1\}[0-9]*\).*/\1/p')
  case $line in
    *'"method":"initialize"'*)
      answer "{\"protocolVersion\":\"$(cat "$dir/version")\",\"capabilities\":{},\"serverInfo\":{\"name\":\"t\",\"version\":\"1\"}}" ;;
    *'"method":"tools/list"'*) answer "$(cat "$dir/tools")" ;;
    *'"method":"tools/call"'*)
      echo ran >> "$dir/ran"
      [ -e "$dir/die" ] && exit 9
      [ -e "$dir/silent" ] || answer "$(cat "$dir/result")" ;;
    *'"method":"resources/read"'*) echo read >> "$dir/ran"; answer '{"contents":[]}' ;;
    *'"method":"ask/me"'*) ;;
    *'"method"'*'"id":'* | *'"id":'*'"method"'*) answer '{}' ;;
    *'"result"'*) ;;
  esac
done
[ -e "$dir/stubborn" ] && { trap '' TERM; while :; do sleep 1; done; }
exit 7
