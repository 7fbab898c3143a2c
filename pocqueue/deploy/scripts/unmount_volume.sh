# Takes a mounted folder away, if it is this filesystem and nothing uses it. Arguments: UUID; folder.
export LC_ALL=C
uuid=$1 folder=$2
found=$(findmnt -n -o UUID --mountpoint "$folder" | tail -n 1) || found=
[ "$found" = "$uuid" ] || exit 0
umount -- "$folder"
