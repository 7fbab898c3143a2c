# Common to all fakes, which are found on the PATH of a server for tests; tests/deploy/fake_programs.py is the other side.
#
# $FAKES (~/.fakes) has: set/NAME, what a test wants of them; state/, what they did so far; journal/, a folder for each call
# with its words, a hash of what it read and the names of its variables; secrets, a line each, which no word and no
# variable may have: a fake that sees one writes `leaked` and fails.
# Each call costs a test as little as can be: hundreds of runs consist of little else.
FAKES=${FAKES:-$HOME/.fakes}
fake=${0##*/} here=${0%/*}
[ -d "$FAKES/journal" ] || mkdir -p "$FAKES/set" "$FAKES/state" "$FAKES/journal"
call=$FAKES/journal/$(date +%s%N)-$fake-$$
mkdir "$call"
printf '%s\n' "$fake" > "$call/fake"
for word in "$@"; do printf '%s\0' "$word"; done > "$call/argv"
export -p > "$call/env"

if [ -s "$FAKES/secrets" ] && grep -qF -f "$FAKES/secrets" -- "$call/argv" "$call/env"; then
  echo "$fake $*" >> "$FAKES/leaked"
  echo "$fake: a secret is among its words or variables" >&2
  exit 97
fi

# What a test wants, or else the second word.
setting() { if [ -e "$FAKES/set/$1" ]; then cat "$FAKES/set/$1"; else printf '%s\n' "${2:-}"; fi; }

# Reads all of standard input into a file, for its hash and for what comes after.
take_input() {
  cat > "$call/input"
  sha256sum < "$call/input" | cut -c 1-64 > "$call/stdin"
}

# The program of this name that is no fake.
real() {
  rest=$PATH:
  while [ -n "$rest" ]; do
    folder=${rest%%:*} rest=${rest#*:}
    [ "$folder" = "$here" ] || [ ! -x "$folder/$1" ] || { echo "$folder/$1"; return 0; }
  done
  return 1
}

# Holds on until a test wants it to go on; a test that ends kills it.
wait_for() { while [ ! -e "$FAKES/set/$1" ]; do sleep 0.05; done; }
