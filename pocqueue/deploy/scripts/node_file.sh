# Files of the node's folder: looks at them, keeps one, or puts it back.
# Arguments: what; the folder; the file's name, for `look` several; for `restore`, the SHA-256 of ours and of the kept one (`-`: there
# was none); last, for `keep` and `restore`, our file on the server with the SHA-256 of every whole file with a secret that is ours.
# `keep` reads one more.
# Exit codes: 0; 66 there is no such folder, or `restore`: somebody changed the file, which stays.
export LC_ALL=C
umask 077
what=$1 folder=$2 name=$3

# Those with the password are kept for their owner alone, as are copies that others could read until now; others as they were.
# A hash is in names and words, and a password is guessed by it: theirs is that of the lines that cannot have a secret.
is_private() { case $name in config.env | .env) ;; *) return 1 ;; esac; }
plain() { if is_private; then sed '/pass\|token\|secret\|key/Id'; else cat; fi; }

hash_of() { if [ -f "$1" ] && [ ! -L "$1" ]; then plain < "$1" | sha256sum | cut -c 1-64; else echo -; fi; }
. common/parts.sh

kind_of() { [ ! -e "$1" ] && [ ! -L "$1" ] || stat --printf 'kind=%F\nmode=%a\n' -- "$1"; }

cd -- "$folder" || exit 66
case $what in
  look)
    shift 2
    for name in "$@"; do
      found=$(hash_of "$name")
      part "stat $name" kind_of "$name"
      part "hash $name" echo "$found"
      [ "$found" = - ] || part "text $name" cat -- "$name"
    done ;;
  keep)
    found=$(hash_of "$name")
    if is_private; then
      read -r whole
      # Before ours is there. It lies where the password does, for root alone, and never leaves the server.
      mkdir -p -- "$(dirname -- "$4")"
      grep -qxs -- "$whole" "$4" || printf '%s\n' "$whole" >> "$4"
    fi
    # Named by its content: kept once, however often this runs. Two that differ by a secret alone are two.
    copy=$name.pocqueue-$found
    if [ "$found" != - ] && [ -e "$copy" ] && ! cmp -s -- "$name" "$copy"; then copy=$copy.$(date -u +%Y%m%dT%H%M%SZ)-$$; fi
    if [ "$found" != - ] && [ ! -e "$copy" ]; then
      # Under its name it is whole.
      if is_private; then kept_as=ownership,timestamps; else kept_as=mode,ownership,timestamps; fi
      cp --preserve="$kept_as" -- "$name" "$name.pocqueue-tmp.$$"
      sync -- "$name.pocqueue-tmp.$$"
      mv -fT -- "$name.pocqueue-tmp.$$" "$copy"
    fi
    ! is_private || for copy in "$name".pocqueue-*; do
      [ ! -f "$copy" ] || [ -L "$copy" ] || chmod 600 -- "$copy"
    done ;;
  restore)
    ours=$4 kept=$5 wholes=${6:-} found=$(hash_of "$name")
    # A run that was cut may have put it back already.
    if [ "$found" = "$kept" ] && { [ "$kept" != "$ours" ] || [ ! -e "$name.pocqueue-$kept" ]; }; then
      if [ "$kept" != - ] || { [ ! -e "$name" ] && [ ! -L "$name" ]; }; then exit 0; fi
    fi
    is_ours() {
      [ "$found" = "$ours" ] || return 1
      # A secret's line alone may be another one.
      ! is_private || [ ! -s "$wholes" ] || sha256sum < "$name" | cut -c 1-64 | grep -qxFf - -- "$wholes"
    }
    is_ours || { echo "$folder/$name was changed since: it stays"; exit 66; }
    if [ "$kept" = - ]; then rm -f -- "$name"; else mv -f -- "$name.pocqueue-$kept" "$name"; fi ;;
esac
