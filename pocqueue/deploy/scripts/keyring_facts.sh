# Names in a keyring's folder. Argument: the folder. Prints parts (facts/parts.py); facts/keys.py reads them.
# Reads, and writes nothing.
export LC_ALL=C
folder=$1
. common/parts.sh

part folder sh -c '[ ! -e "$1" ] || stat --printf "kind=%F\nuid=%u\nmode=%a\n" -- "$1"' sh "$folder"
part files sh -c '[ ! -d "$1" ] || ls -A -- "$1"' sh "$folder"
