# pocqueue on this server: versions, links, variables, unit files, units, pool. Reads, and writes nothing.
# Arguments: folders of versions, of the variables, of what outlives a process, and of unit files; names of unit files, and of units, blanks between them;
# the worker whose pool is asked for, or `-`; `systemd` or `compose`; compose's image.
# Prints parts (facts/parts.py); facts/stack.py reads them.
export LC_ALL=C
opt=$1 etc=$2 state_dir=$3 systemd=$4 files=$5 units=$6 worker=$7 way=$8 image=$9
. common/parts.sh
. common/units.sh

hash_of() { if [ -f "$1" ] && [ ! -L "$1" ]; then sha256sum < "$1" | cut -c 1-64; else echo -; fi; }

is_as() { [ -d "$1" ] && [ "$(stat -c '%U:%G %a' -- "$1")" = "$2" ]; }

# As `stack_change account` makes it: a run may have been cut between the user and its folders.
account() {
  getent passwd pocqueue && is_as "$opt" 'root:root 755' && is_as "$etc" 'root:pocqueue 750' && is_as "$state_dir" 'pocqueue:pocqueue 750'
}

# Those that can make a venv, up to the first one that is new enough.
pythons() {
  for name in python3 python3.14 python3.13 python3.12 python3.11; do
    command -v "$name" > /dev/null || continue
    said=$("$name" -c 'import ensurepip, venv, sys; print("%s=%d.%d" % (sys.argv[1], *sys.version_info[:2]))' "$name" 2> /dev/null) || continue
    echo "$said"
    case $said in *=3.[0-9]|*=3.10) ;; *) break ;; esac
  done
}

versions() {
  for mark in "$opt"/*/.ready; do
    [ -f "$mark" ] || continue
    folder=${mark%/.ready}
    [ -L "$folder" ] || echo "${folder##*/}=$(head -n 1 "$mark")"
  done
  # An image is a version, too.
  [ -z "$image" ] || ! docker image inspect -- "$image" > /dev/null 2>&1 || echo "$image=there"
}

# Of compose they lead nowhere: they have an image's name.
kind=
[ "$way" != compose ] || kind=-image
links() { for name in current previous; do echo "$name=$(readlink -- "$opt/$name$kind" || true)"; done; }

env_file() {
  echo "hash=$(hash_of "$etc/pocqueue.env")"
  [ ! -f "$etc/pocqueue.env" ] || stat -c 'mode=%a' -- "$etc/pocqueue.env"
}

unit_files() { for name in $files; do echo "$name=$(hash_of "$systemd/$name")"; done; }

# Of its environment the one variable that is ours, which is no secret.
unit() {
  said=$(unit_state "$1")
  printf '%s\n' "$said"
  pid=$(printf '%s\n' "$said" | sed -n 's/^MainPID=//p')
  [ "${pid:-0}" = 0 ] || echo "stack=$(tr '\0' '\n' < "/proc/$pid/environ" 2> /dev/null | sed -n 's/^STACK_ID=//p')"
}

part account account
part pythons pythons
part versions versions
part links links
part env env_file
part files unit_files
for name in $units; do part "unit:$name" unit "$name"; done
if [ "$worker" != - ] && [ -f "$etc/pocqueue.env" ]; then
  if [ "$way" = compose ] || [ -x "$opt/current/bin/pocqueue" ]; then part pool gpus "$worker"; fi
fi
