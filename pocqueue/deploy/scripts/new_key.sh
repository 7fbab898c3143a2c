# Makes the warm key by `inferenced keys add`, once. Its answer, which has the key's words, goes to a file of root's here and
# nowhere else, until it is fetched: the program goes on when the connection breaks, and nothing is lost.
# Arguments: the folder of the compose files; the keyring's folder; our folder; the key's name.
# Standard input: the password, one line. It goes on through pipes: no list of processes, no variable and no file has it.
# Exit codes: 0 it ran, or runs already, and facts tell what came of it; 65 the password did not arrive, nothing was begun;
# 66 there is a key of this name; 69 our folder is somebody else's; 70 there is no space for the answer, nothing was begun.
export LC_ALL=C
umask 077
folder=$1 ring=$2 dir=$3 name=$4
IFS= read -r password || { echo "the password did not arrive"; exit 65; }
mkdir -p -- "$dir"
[ ! -L "$dir" ] && [ -O "$dir" ] || { echo "$dir is not ours."; exit 69; }
# All of it under the lock. An answer of before is never written over. The container has no log: docker's log driver would
# keep the words, in files or at another machine. The keyring's second question is its password once
# more where it is new, and else whether a key is to be overwritten: a password may begin with y.
run='
umask 077
folder=$1 ring=$2 dir=$3 name=$4
IFS= read -r password
exec 9>> "$dir/lock"
flock -n 9 || exit 0
[ ! -e "$ring/$name.info" ] || exit 66
for old in answer answer.new failed; do
  [ ! -e "$dir/$old" ] || mv -- "$dir/$old" "$dir/$old.$(date -u +%Y%m%dT%H%M%SZ)-$$"
done
head -c 65536 /dev/zero > "$dir/answer.new" && sync -- "$dir/answer.new" &&
  printf "services:\n  api:\n    logging:\n      driver: none\n" > "$dir/no-log.yml" || exit 70
second=$password
[ ! -e "$ring/keyhash" ] || second=n
cd -- "$folder"
# What is named by -f takes the place of what compose finds by itself, which is the first of these.
more=
for each in compose.override.yml compose.override.yaml docker-compose.override.yml docker-compose.override.yaml; do
  [ ! -e "$each" ] || { more="-f $each"; break; }
done
printf "%s\n%s\n" "$password" "$second" |
  docker compose -f docker-compose.yml $more -f "$dir/no-log.yml" run --rm --no-deps -T api inferenced keys add "$name" --keyring-backend file 1<> "$dir/answer.new" 2>&1 || true
truncate -s "$(tr -d "\000" < "$dir/answer.new" | wc -c)" -- "$dir/answer.new"
sync -- "$dir/answer.new"
if [ -e "$ring/$name.info" ]; then mv -- "$dir/answer.new" "$dir/answer"; else mv -- "$dir/answer.new" "$dir/failed"; fi
'
begin() {
  if [ "$(id -u)" = 0 ] && [ -d /run/systemd/system ] && command -v systemd-run > /dev/null; then
    # A unit of its own: what is left of a session may be ended with it.
    systemd-run --quiet --collect --pipe --wait --setenv "HOME=${HOME:-/root}" --unit "pocqueue-deploy-key-$name" -- "$@"
  else
    setsid "$@"
  fi
}
code=0
printf '%s\n' "$password" | begin sh -eu -c "$run" sh "$folder" "$ring" "$dir" "$name" > /dev/null 2>&1 &
wait "$!" || code=$?
case $code in
  0) ;;
  66) echo "a key $name is there already; it is never overwritten"; exit 66 ;;
  70) echo "there is no space for its answer below $dir"; exit 70 ;;
  *) echo "it ended with exit code $code; whether there is a key is looked at" ;;
esac
