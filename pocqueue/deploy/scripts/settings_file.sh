# Puts a settings file of the chain's node in place, whole; the one before is kept beside it.
# Arguments: the folder; the file's name; SHA-256 of the one that is there, and of the new one; our file whose time tells that
# the node has to be started anew. Standard input: the new one.
# Exit codes: 0; 65 it did not arrive whole; 66 the file was changed meanwhile; nothing is changed then.
export LC_ALL=C
umask 077
folder=$1 name=$2 before=$3 after=$4 edited=$5
hash_of() { sha256sum < "$1" | cut -c 1-64; }

cd -- "$folder"
[ -f "$name" ] && [ ! -L "$name" ] || { echo "$name is no file"; exit 66; }
# Its own: a script whose connection broke may still be at work.
new=$name.pocqueue-tmp.$$
# With its owner and its mode.
cp -p -- "$name" "$new"
cat > "$new" || { rm -f -- "$new"; exit 1; }
[ "$(hash_of "$new")" = "$after" ] || { rm -f -- "$new"; echo "$name did not arrive whole"; exit 65; }
now=$(hash_of "$name")
# Such a script has put the very same one there.
[ "$now" != "$after" ] || { rm -f -- "$new"; exit 0; }
[ "$now" = "$before" ] || { rm -f -- "$new"; echo "$name was changed meanwhile"; exit 66; }
# Named by its content: kept once, however often this runs.
[ -e "$name.pocqueue-$before" ] || cp -p -- "$name" "$name.pocqueue-$before"
sync -- "$new"
mkdir -p -- "$(dirname -- "$edited")"
# First: where this ends in between, the node is started anew for nothing.
touch -- "$edited"
mv -fT -- "$new" "$name"
