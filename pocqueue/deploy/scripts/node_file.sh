# A file of the node's folder: looks at it, keeps it, or puts it back.
# Arguments: what; the folder; the file's name; for `restore`, the SHA-256 of ours and of the kept one (`-`: there was none).
# Exit codes: 0; 66 there is no such folder, or `restore`: somebody changed the file, which stays.
export LC_ALL=C
umask 077
what=$1 folder=$2 name=$3

# Those with the password are kept for their owner alone, as are copies that others could read until now; others as they were.
case $name in config.env | .env) kept_as=ownership,timestamps ;; *) kept_as=mode,ownership,timestamps ;; esac

hash_of() { if [ -f "$1" ] && [ ! -L "$1" ]; then sha256sum < "$1" | cut -c 1-64; else echo -; fi; }
. common/parts.sh

cd -- "$folder" || exit 66
found=$(hash_of "$name")
case $what in
  look)
    part file sh -c '[ ! -e "$1" ] && [ ! -L "$1" ] || stat --printf "kind=%F\nmode=%a\n" -- "$1"' sh "$name"
    part hash echo "$found"
    [ "$found" = - ] || part text cat -- "$name" ;;
  keep)
    # Named by its content: kept once, however often this runs.
    [ "$found" = - ] || [ -e "$name.pocqueue-$found" ] || cp --preserve="$kept_as" -- "$name" "$name.pocqueue-$found"
    [ "$kept_as" = mode,ownership,timestamps ] || for copy in "$name".pocqueue-*; do
      [ ! -f "$copy" ] || [ -L "$copy" ] || chmod 600 -- "$copy"
    done ;;
  restore)
    ours=$4 kept=$5
    # A run that was cut may have put it back already.
    if [ "$found" = "$kept" ] && { [ "$kept" != - ] || { [ ! -e "$name" ] && [ ! -L "$name" ]; }; }; then exit 0; fi
    [ "$found" = "$ours" ] || { echo "$folder/$name was changed since: it stays"; exit 66; }
    if [ "$kept" = - ]; then rm -f -- "$name"; else mv -f -- "$name.pocqueue-$kept" "$name"; fi ;;
esac
