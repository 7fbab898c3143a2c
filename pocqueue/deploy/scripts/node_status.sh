# What the chain's node says of itself. Argument: the folder of the compose files. Reads, and writes nothing.
# Prints a part (facts/parts.py); facts/chain.py reads its text.
export LC_ALL=C
. common/parts.sh
. common/chain_status.sh

cd -- "$1"
part status chain_status
