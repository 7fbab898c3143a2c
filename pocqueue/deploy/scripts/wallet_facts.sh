# The warm wallet: its keyring, and the answer of `inferenced keys add` where it waits here to be fetched.
# Arguments: the folder of the compose files; the keyring's folder; our folder; the key's name.
# Prints parts (facts/parts.py); facts/wallet.py reads them. Never prints words of a key. Reads, and writes nothing.
# Exit code 66: there are no compose files yet.
export LC_ALL=C
folder=$1 ring=$2 dir=$3 name=$4
. common/parts.sh
. common/answer.sh

answer() {
  file=$(answer_file "$ring" "$name")
  [ -z "$file" ] || [ "$(answer_text "$file" | wc -c)" = 0 ] || answer_text "$file" | sha256sum | cut -c 1-64
}

# Words of a key have no colon behind them, and no slash in them.
failure() {
  [ -f "$dir/failed" ] || return 0
  answer_text "$dir/failed" | grep -E '^(Error|panic|bcrypt): |passphrase| on device|/' | tail -n 5 || true
}

[ -e "$folder/docker-compose.yml" ] || exit 66
# The keyring's folder, which needs no password to be listed; facts/keys.py reads these two.
part folder sh -c '[ ! -e "$1" ] || stat --printf "kind=%F\n" -- "$1"' sh "$ring"
part files sh -c '[ ! -d "$1" ] || ls -A -- "$1"' sh "$ring"
if is_being_made; then part maker echo running; else part maker echo none; fi
part answer answer
part failure failure
