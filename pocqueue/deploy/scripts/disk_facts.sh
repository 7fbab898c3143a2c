# What is known of a disk, of whatever uses it and of the folder where it is mounted. Reads, and writes nothing.
# Arguments: the device; the folder; `samples` if its content is looked at, too (0.4 s).
# Prints parts (facts/parts.py); facts/disk.py reads them.
export LC_ALL=C
device=$1 folder=$2 look=${3:-}
. common/parts.sh
. common/device.sh

identity() {
  [ -e "$device" ] || { echo is=missing; return 0; }
  [ -b "$device" ] || { echo is=other; return 0; }
  disk=$(disk_of "$name")
  sequence=
  [ ! -r "/sys/class/block/$disk/diskseq" ] || read -r sequence < "/sys/class/block/$disk/diskseq"
  printf '%s\n' is=block "name=$name" "number=$number" "disk=$disk" "serial=$(serial_of "$disk")" "sequence=$sequence"
}

blocks() {
  for block in /sys/class/block/*; do
    [ -r "$block/dev" ] || continue
    read -r at < "$block/dev" || continue
    this=${block##*/} slaves= holders=
    for other in "$block"/slaves/*; do [ ! -e "$other" ] || slaves=$slaves,${other##*/}; done
    for other in "$block"/holders/*; do [ ! -e "$other" ] || holders=$holders,${other##*/}; done
    # A loop device on a device is no holder in the kernel's eyes.
    if [ -r "$block/loop/backing_file" ] && read -r file < "$block/loop/backing_file" && [ -b "$file" ]; then
      slaves=$slaves,$(name_of "$(number_of "$file")" || true)
    fi
    parent=$(disk_of "$this")
    [ "$parent" != "$this" ] || parent=-
    echo "$this $at $parent ${slaves:-,} ${holders:-,}"
  done
}

mounts_elsewhere() {
  [ -r /proc/1/mountinfo ] || return 1
  # Processes come and go meanwhile, so what grep says of missing files means nothing.
  { cat /proc/1/mountinfo; grep -hs -e ' - [^ ]* /dev/' -e " $number " /proc/[0-9]*/mountinfo || true; } | sort -u
}

swaps() { sed -n 's/^\(.*[^[:space:]]\)[[:space:]]\{1,\}partition[[:space:]].*/\1/p' /proc/swaps; }

fstab() { [ ! -e /etc/fstab ] || cat /etc/fstab; }

# Numbers of the devices that mounts, swaps and fstab name by a path.
nodes() {
  {
    cat /proc/self/mountinfo /proc/1/mountinfo | sed -n 's/^.* - [^ ]* \(\/dev\/[^ ]*\) .*/\1/p'
    fstab | sed -n 's/^[[:space:]]*\(\/dev\/[^[:space:]]*\).*/\1/p'
    swaps
  } | sort -u | while read -r path; do echo "$(number_of "$path") $path"; done
}

samples() {
  [ "$look" = samples ] || return 0
  sectors=$(cat "/sys/class/block/$name/size")
  bytes=$((sectors * 512)) mib=1048576 zero=0 data=
  [ "$bytes" -ge $((2 * mib)) ] || return 0
  for place in "0 $mib" "$((bytes - mib)) $mib" $(shuf -i "0-$((bytes / 4096 - 1))" -n 256); do
    case $place in *' '*) at=${place% *} length=${place#* } ;; *) at=$((place * 4096)) length=4096 ;; esac
    code=0
    cmp -s -i "$at:0" -n "$length" -- "$device" /dev/zero || code=$?
    [ "$code" -le 1 ] || { echo "unreadable=$at"; return 0; }
    # To the end: behind data there may be what cannot be read.
    if [ "$code" = 0 ]; then zero=$((zero + 1)); else data=${data:-$at}; fi
  done
  echo "zero=$zero"
  [ -z "$data" ] || echo "data=$data"
}

where() {
  echo "real=$(readlink -m -- "$folder")"
  [ -e "$folder" ] || return 0
  stat --printf 'kind=%F\nuid=%u\n' -- "$folder"
  [ -z "$(ls -A -- "$folder" | head -n 1)" ] || echo entries=1
}

number=$(number_of "$device")
name=
[ ! -b "$device" ] || name=$(name_of "$number")

part identity identity
part blocks blocks
part mounts cat /proc/self/mountinfo
part mounts_elsewhere mounts_elsewhere
part swaps swaps
part fstab fstab
part nodes nodes
part folder where
part verify findmnt --verify
if [ -b "$device" ]; then
  part lsblk lsblk -J -b -s -o KNAME,TYPE,SIZE,RO,MODEL -- "$device"
  part blkid blkid -p -o export -- "$device"
  part wipefs wipefs -n -J -- "$device"
  part samples samples
fi
