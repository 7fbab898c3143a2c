# Mounts what /etc/fstab has for a folder. Arguments: UUID that is to be there afterwards; folder.
# Exit codes: 0 it is; 65 another filesystem is mounted there, nothing was done.
export LC_ALL=C
uuid=$1 folder=$2
seen() { findmnt -n -o UUID --mountpoint "$folder" | tail -n 1; }
found=$(seen) || found=
if [ -n "$found" ]; then
  [ "$found" != "$uuid" ] || exit 0
  echo "The filesystem $found is mounted at $folder, not $uuid."
  exit 65
fi
mount -- "$folder"
