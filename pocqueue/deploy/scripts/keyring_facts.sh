# Names in a keyring's folder. Argument: the folder. Prints parts (facts/parts.py); facts/keys.py reads them.
# Reads, and writes nothing.
export LC_ALL=C
folder=$1
. common/parts.sh
. common/keyring.sh

keyring "$folder"
