# The login's own authorized_keys. Arguments: `look`; or `add` or `remove`, and whole lines.
# `add` appends lines that are not there, `remove` takes away exactly these; the file is replaced as a whole, mode 0600.
# Exit codes: 0; 65 the file or its folder is a link, or not the login's own: nothing was written; 66 `remove`: a key stands
# in a line that somebody changed, or no other key would stay, in which case nothing was written.
export LC_ALL=C
umask 077
what=$1
shift
dir=$HOME/.ssh
file=$dir/authorized_keys
for path in "$dir" "$file"; do
  if [ -L "$path" ] || { [ -e "$path" ] && [ ! -O "$path" ]; }; then
    echo "$path is a link, or not owned by $(id -un): it is left as it is."
    exit 65
  fi
done
if [ "$what" = look ]; then
  [ ! -e "$file" ] || cat -- "$file"
  exit 0
fi
mkdir -p -- "$dir"
new=$file.pocqueue-new
rm -f -- "$new"
: > "$new"
[ ! -e "$file" ] || cat -- "$file" >> "$new"
# The last line of a file that somebody else wrote may have no end.
[ -z "$(tail -c 1 -- "$new")" ] || echo >> "$new"
for line; do
  if [ "$what" = add ]; then
    grep -qxF -- "$line" "$new" || printf '%s\n' "$line" >> "$new"
  else
    grep -vxF -- "$line" "$new" > "$new.less" || [ "$?" = 1 ]
    mv -f -- "$new.less" "$new"
  fi
done
# Lines with a key, without what is commented out.
keys() { sed '/^[[:space:]]*\(#\|$\)/d' -- "$1"; }
if [ "$what" = remove ] && [ -e "$file" ] && [ -n "$(keys "$file")" ] && [ -z "$(keys "$new")" ]; then
  rm -f -- "$new"
  echo "No key would stay in $file, and nobody could log in: add another one first."
  exit 66
fi
sync -- "$new" 2> /dev/null || sync
mv -f -- "$new" "$file"
[ "$what" = remove ] || exit 0
for line; do
  blob=${line#* }
  blob=${blob%% *}
  ! keys "$file" | grep -qF -- "$blob" || { echo "$file has this key still, in a line that was changed since: $line"; left=1; }
done
[ -z "${left:-}" ] || exit 66
