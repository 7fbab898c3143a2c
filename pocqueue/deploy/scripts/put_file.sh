# Puts what stands in standard input in the place of a file, as a whole, with a mode from its first byte on.
# Arguments: the file; its mode, octal.
export LC_ALL=C
umask 077
new=$1.pocqueue-tmp
# What an earlier try left behind may have another mode, or be a link.
rm -f -- "$new"
set -C
cat > "$new"
chmod -- "$2" "$new"
sync -- "$new"
mv -fT -- "$new" "$1"
