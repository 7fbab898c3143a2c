# Puts what stands in standard input (common/take.sh) in the place of a file, as a whole, with a mode from its first byte on.
# Arguments: the file; its mode, octal.
# Exit codes: 0; 65 not all of it arrived.
export LC_ALL=C
umask 077
. common/take.sh
new=$1.pocqueue-tmp
# What an earlier try left behind may have another mode, or be a link.
set -C
take "$new"
chmod -- "$2" "$new"
sync -- "$new"
mv -fT -- "$new" "$1"
