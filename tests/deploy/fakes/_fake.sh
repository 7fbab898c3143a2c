# Common to all fakes, which are found on the PATH of a server for tests; tests/deploy/fake_programs.py is the other side.
#
# $FAKES (~/.fakes) has: set/NAME, what a test wants of them; state/, what they did so far; journal/, a file for each call with
# the number of its words, these and its variables, and what it read in one of that name and `.input`; secrets, a line each, which
# no word and no variable may have: a fake that sees one writes `leaked` and fails.
# Each call costs a test as little as can be, hundreds of runs consist of little else: no other program is begun here.
FAKES=${FAKES:-$HOME/.fakes}
fake=${0##*/} here=${0%/*}
[ -d "$FAKES/journal" ] || mkdir -p "$FAKES/set" "$FAKES/state" "$FAKES/journal"
call=$FAKES/journal/$fake-$$
# Numbers of processes come again.
while [ -e "$call" ]; do call=$call-; done
variables=$(export -p)
printf '%s\0' "$#" "$@" "$variables" > "$call"

if [ -s "$FAKES/secrets" ]; then
  while IFS= read -r secret; do
    case "$* $variables" in *"$secret"*)
      echo "$fake $*" >> "$FAKES/leaked"
      echo "$fake: a secret is among its words or variables" >&2
      exit 97 ;;
    esac
  done < "$FAKES/secrets"
fi

# What a test wants, or else the second word.
setting() {
  [ -e "$FAKES/set/$1" ] || { printf '%s\n' "${2:-}"; return; }
  while IFS= read -r row || [ -n "$row" ]; do printf '%s\n' "$row"; done < "$FAKES/set/$1"
}

# Reads all of standard input into a file, for its hash and for what comes after.
take_input() { cat > "$call.input"; }

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
