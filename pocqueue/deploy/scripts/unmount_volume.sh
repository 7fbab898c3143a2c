# Takes a mounted folder away, if it is this filesystem and nothing uses it. Arguments: UUID; folder.
# Exit codes: 0 it is not mounted there; 66 it is still, below another one or twice.
export LC_ALL=C
uuid=$1 folder=$2
seen() { findmnt -n -o UUID --mountpoint "$folder" || true; }
[ "$(seen | tail -n 1)" != "$uuid" ] || umount -- "$folder"
! seen | grep -qxF -- "$uuid" || { echo "The filesystem $uuid is still mounted at $folder, or is below another one there."; exit 66; }
