# Our line of /etc/fstab. Arguments: `add` or `remove`; UUID of the filesystem; folder.
# `add` makes the folder, keeps a copy of the table as it was (/etc/fstab.pocqueue-UUID) and appends one line; `remove` takes away
# exactly that line. No other line is touched, and the table is replaced as a whole.
# Exit codes: 0; 65 something is in the way, nothing was written; 66 `remove`: a line that somebody changed names the filesystem.
export LC_ALL=C
umask 022
what=$1 uuid=$2 folder=$3
file=/etc/fstab
line="UUID=$uuid $folder ext4 defaults,nofail 0 2"
[ ! -L "$file" ] || { echo "$file is a link: it is left as it is."; exit 65; }
new=$file.pocqueue-new
[ ! -L "$new" ] || { echo "$new is a link: it is left as it is."; exit 65; }
[ -e "$file" ] || : > "$file"
if [ "$what" = add ]; then
  if grep -qxF -- "$line" "$file"; then exit 0; fi
  while read -r source target rest; do
    case $source in '#'*) continue ;; esac
    if [ "$target" = "$folder" ] || [ "$source" = "UUID=$uuid" ]; then
      echo "$file has a line of its own for this: $source $target $rest"
      exit 65
    fi
  done < "$file"
  mkdir -p -- "$folder"
  cp -p -- "$file" "$new"
  [ -z "$(tail -c 1 -- "$new")" ] || echo >> "$new"
  printf '%s\n' "$line" >> "$new"
  [ -e "$file.pocqueue-$uuid" ] || cp -p -- "$file" "$file.pocqueue-$uuid"
else
  cp -p -- "$file" "$new"
  grep -vxF -- "$line" "$file" > "$new" || [ "$?" = 1 ]
fi
left=
[ "$what" = add ] || left=$(sed '/^[[:space:]]*#/d' -- "$new" | grep -iF -- "$uuid") || [ "$?" = 1 ]
sync -- "$new" 2> /dev/null || sync
mv -f -- "$new" "$file"
# systemd makes units of the table when it starts, or is told.
[ ! -d /run/systemd/system ] || systemctl daemon-reload
[ -z "$left" ] || { echo "$file names the filesystem still, in a line that was changed since: $left"; exit 66; }
