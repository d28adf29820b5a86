#!/usr/bin/env bash
# Refuses what the house style rules out and a machine can find; CONTRIBUTING.md has the style itself.
#   scripts/style.sh [PATH…]    checks the Rust and Markdown files below PATH, or all of them
# Prints `file:line: what is wrong: what to write` for each hit and exits 1 if there is one. scripts/style-test.sh tests it.
set -euo pipefail
cd "$(dirname "$0")/.."

# Not ours, or the words of a policy pack (docs/vocabulary.md is generated from it), so not checked at all.
foreign='^vendor/|^docs/vocabulary\.md$'
# Generated from code, so only their width is exempt.
generated='docs/CONFIGURATION.md docs/policy/facts.md'

files() {
  if git rev-parse --is-inside-work-tree >/dev/null 2>&1; then
    git ls-files --cached --others --exclude-standard -- "${@:-.}"
  else
    find "${@:-.}" -type f -not -path '*/target/*' -not -path '*/.tools/*' | sed 's|^\./||'
  fi | { grep -E '\.(rs|md)$' || true; } | { grep -vE "$foreign" || true; } | while read -r file; do
    # Deleted, not committed yet.
    [ ! -e "$file" ] || printf '%s\n' "$file"
  done
}
# A file outside of the repository is checked as it is: the test's own.
if [ $# = 1 ] && [ -f "$1" ] && [ "${1#/}" != "$1" ]; then list=$1; else list=$(files "$@"); fi
[ -n "$list" ] || { echo "style: no Rust or Markdown file below: $*" >&2; exit 2; }

# Bytes, not characters: mawk knows no others, and `width` takes the continuation bytes of UTF-8 out.
printf '%s\n' "$list" | tr '\n' '\0' | LC_ALL=C GENERATED="$generated" xargs -0 awk '
BEGIN {
  MAX_WIDTH = 120
  split(ENVIRON["GENERATED"], names, " ")
  for (i in names) generated[names[i]] = 1

  # Phrases, found in comments and prose as whole words in any case. Code spans and fenced code are left out.
  n = 0
  phrase("whoever", "the caller, the client, a process that …")
  phrase("nobody", "no caller, no client, no process, no one")
  phrase("anew", "again")
  phrase("henceforth", "from then on")
  phrase("oneself", "itself")
  phrase("one of whose", "name the thing: a run with a check that …")
  phrase("of one whose", "name the thing: of a run with a check that …")
  phrase("for so long", "for this long, or name the duration")
  split("is are was were be been being", be, " ")
  for (i in be) {
    phrase(be[i] " told", "is sent, notified, reported, logged")
    phrase(be[i] " said", "is logged, reported, documented")
    phrase(be[i] " heard", "is received")
  }
  split("nothing none anything everything", quantity, " ")
  for (i in quantity) phrase(quantity[i] " but", "except, only")
  metaphor("courier", "delivery worker")
  metaphor("keeper", "maintenance")
  metaphor("desk", "admin service, coordinator, handlers")
  metaphor("vault", "durable store")
  metaphor("keyring", "key cache")
  metaphor("purse", "window lease")
  metaphor("lesson", "run update")
  metaphor("shelf", "log reader")
  metaphor("vitals", "heartbeat")
  metaphor("patience", "timeout")
  metaphor("farewell", "linger, shutdown delay")
  metaphor("aloft", "in flight")
  metaphor("vouched", "cached identity")

  affix("^(MOST|LEAST)_", "MAX_…, MIN_…")
  affix("_(MOST|LEAST)$", "MAX_…, MIN_…")
  affix("(^|_)WITHIN$", "…_TIMEOUT")
  affix("(^|_)EVERY$", "…_INTERVAL")
  affix("(^|_)LIVES$", "…_TTL")
  affix("(^|_)AGAIN_AFTER$", "…_RETRY_DELAY")
  affix("^(PAUSE|SOON)$", "…_DELAY, …_INTERVAL")
  affix("^(PATIENCE|SLACK|GRACE|HOLD|FRESH|TRUST|MEMORY)$", "…_TIMEOUT, …_TTL, …_AFTER, with what it limits")
}

function phrase(text, better) { n++; phrases[n] = " " text " "; shown[n] = text; instead[n] = better }
# A word for a thing that has a name of its own in the field: refused in prose, alone or plural, and in names that are defined.
function metaphor(word, better) { phrase(word, better); phrase(word "s", better); names_refused[word] = better }
function affix(pattern, better) { a++; affixes[a] = pattern; affix_better[a] = better }

function report(line, what, better) { printf "%s:%d: %s: %s\n", file, line, what, better }

function width(text) { gsub(/[\200-\277]/, "", text); return length(text) }

# Without its indent, list marker, quote sign or link label, a long line is one token, one link or one code span; in fenced
# code, a test vector or a member of JSON that is one text has no place to break either.
function unbreakable(text,   tokens, count, i) {
  sub(/^[ \t]+/, "", text)
  if (markdown && fenced && text ~ /^[ \t]*"[a-z_]+": ".*",?$/) return 1
  if (markdown && fenced) {
    count = split(text, tokens, " ")
    for (i = 1; i <= count; i++) if (length(tokens[i]) > 60) return 1
  }
  if (markdown) sub(/^([-*+>]|[0-9]+[.)]|\[[^]]*\]:)[ \t]+/, "", text)
  if (text !~ /[ \t]/) return 1
  return markdown && (text ~ /^\[[^]]*\]\([^) ]*\)[.,;:]?$/ || text ~ /^`[^`]*`[.,;:]?$/)
}

function prose(text,   i) {
  if (text ~ /(^|[^A-Za-z])[Ii]nvariant:/) report(FNR, "`Invariant:` in lower case", "INVARIANT:")
  gsub(/`[^`]*`/, " ` ", text)
  # The targets of links are paths.
  if (markdown) gsub(/\]\([^)]*\)/, " ", text)
  if (text ~ /^[ \t]*So (many|long|much) /) report(FNR, "`So many`, `So long` for a value", "say what the value limits")
  text = " " tolower(text) " "
  gsub(/[^a-z`]+/, " ", text)
  gsub(/ told apart /, " ", text)
  for (i = 1; i <= n; i++) if (index(text, phrases[i])) report(FNR, "`" shown[i] "`", instead[i])
}

# The name that a line defines, or nothing.
function defined(text,   name) {
  if (!match(text, /^[ \t]*(pub(\([a-z: ]+\))? +)?(async +|unsafe +|const +)*(fn|struct|enum|trait|type|mod|const|static|macro_rules!) +[A-Za-z_][A-Za-z0-9_]*/))
    return ""
  name = substr(text, RSTART, RLENGTH)
  sub(/^.*[ \t]/, "", name)
  return name
}

function check_name(name,   i, words, count, spread) {
  if (name ~ /^[A-Z][A-Z0-9_]*$/)
    for (i = 1; i <= a; i++) if (name ~ affixes[i]) report(FNR, "constant `" name "`", affix_better[i])
  spread = name
  # CamelCase and snake_case to words.
  if (name !~ /^[A-Z0-9_]+$/) gsub(/[A-Z]/, "_&", spread)
  count = split(tolower(spread), words, "_")
  for (i = 1; i <= count; i++) {
    if (words[i] in names_refused) report(FNR, "name `" name "`", names_refused[words[i]])
    if (words[i] == "whoever" || words[i] == "nobody" || words[i] == "anew")
      report(FNR, "name `" name "`", "say which caller, client or feature")
  }
}

# A block of documentation has ended; `doc_words` counts its words.
function end_of_doc() {
  if (doc_words == 1) report(doc_line, "documentation of one word", "say something that the name does not, or leave it out")
  doc_words = 0
}

function end_of_file() {
  end_of_doc()
  if (file != "" && !markdown && !documented && file !~ /(^|\/)build\.rs$/) report(1, "no module documentation", "3 to 8 lines of `//!`")
}

FNR == 1 {
  end_of_file()
  file = FILENAME
  markdown = file ~ /\.md$/
  fenced = 0; documented = 0; begun = 0
}

{ sub(/\r$/, "") }

markdown {
  if ($0 ~ /^[ \t]*(```|~~~)/) { fenced = !fenced; next }
}

length($0) > MAX_WIDTH && !(file in generated) && width($0) > MAX_WIDTH && !unbreakable($0) {
  report(FNR, width($0) " columns", "break the line at 120")
}

markdown { if (!fenced) prose($0); next }

/^[ \t]*\/\/[\/!]?/ {
  text = $0
  inner = text ~ /^[ \t]*\/\/!/
  outer = text ~ /^[ \t]*\/\/\// && text !~ /^[ \t]*\/\/\/\//
  sub(/^[ \t]*\/\/+!?/, "", text)
  if (inner && !begun) documented = 1
  if (outer) {
    if (doc_words == 0) doc_line = FNR
    doc_words += split(text, ignored, " ")
  } else {
    end_of_doc()
  }
  prose(text)
  next
}

{
  end_of_doc()
  if ($0 ~ /[^ \t]/ && $0 !~ /^#!?\[/) begun = 1
  name = defined($0)
  if (name != "") check_name(name)
  if ((quote = index($0, "\"")) && match(tolower(substr($0, quote)), /[^a-z_](whoever|anew|henceforth)[^a-z_]/))
    report(FNR, "text with `" substr(tolower(substr($0, quote)), RSTART + 1, RLENGTH - 2) "`", "the caller, a process that …; again; from then on")
  # A comment behind code; `//` in a URL or string has no space behind it, as a rule.
  if (match($0, /[;,{}) ]\/\/ /)) prose(substr($0, RSTART + 3))
}

END { end_of_file() }' | awk '{ print } END { if (NR) { printf "style: %d places\n", NR; exit 1 } }'
