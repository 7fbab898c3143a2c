# Keeps the keys that a node cannot be without: .tmkms/secrets, the keyring, node_key.json, as one archive of root's here.
# Arguments: what; the folder of the compose files; the folder of archives; the archive's first word.
# An archive is named by what is in it: kept once, and proved against the files before it has its name.
# `look` prints parts (facts/parts.py), and writes nothing. Exit codes: 0; 66 no compose files yet; 69 our folder is not ours.
export LC_ALL=C
umask 077
what=$1 folder=$2 dir=$3 name=$4
. common/parts.sh

cd -- "$folder" 2> /dev/null && [ -e docker-compose.yml ] || exit 66
there=
for each in .tmkms/secrets .inference/keyring-file .inference/config/node_key.json; do
  # Not through a link that somebody has put there.
  [ ! -e "$each" ] || [ -L "$each" ] || there="$there $each"
done

# Of names and contents; empty: there are no keys.
keys=
[ -z "$there" ] || keys=$(find $there -type f -exec sha256sum -- {} + | sort -k 2)
print=
[ -z "$keys" ] || print=$(printf '%s\n' "$keys" | sha256sum | cut -c 1-16)
archive=$dir/$name-$print.tar
case $what in
  look)
    part keys echo "$print"
    part archive sh -c '[ ! -f "$1" ] || stat --printf "path=%n\nmode=%a\nuid=%u\n" -- "$1"' sh "$archive" ;;
  make)
    [ -n "$print" ] || exit 0
    mkdir -p -- "$dir"
    [ ! -L "$dir" ] && [ -O "$dir" ] || { echo "$dir is not ours."; exit 69; }
    rm -f -- "$archive.new"
    tar -cf "$archive.new" -- $there
    tar -df "$archive.new"
    sync -- "$archive.new"
    mv -fT -- "$archive.new" "$archive" ;;
esac
