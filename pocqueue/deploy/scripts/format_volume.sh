# Makes an ext4 filesystem on an empty disk, or says why it does not: the last look, right before the only command of
# a deployment that cannot be undone. facts/format_rule.py has the same rule for what was read before; where the two
# differ, nothing is written.
#
# Arguments, all of them: the device; the serial, the size in bytes and the kernel's sequence number (or `-`) that were
# shown to the operator; the smallest size; kinds of devices, such as `disk part`; UUID and label of the filesystem;
# `zero` if every sample has to be zero, `garbage` if the operator typed the serial of a disk whose data is to go.
# Exit codes: 0 it has the filesystem; 65 refused, with a line `REFUSED sentence`, and nothing was written.
export LC_ALL=C
[ "$#" = 9 ] || { echo "REFUSED format_volume.sh takes nine arguments, not $#."; exit 65; }
device=$1 serial=$2 bytes=$3 sequence=$4 min_bytes=$5 kinds=$6 uuid=$7 label=$8 content=$9

refuse() {
  printf 'REFUSED %s\n' "$*"
  exit 65
}
. common/device.sh

# All that a device consists of, by the kernel's names: itself, its disk, and those below.
all_below() {
  echo "$1"
  disk_of "$1"
  for below in "/sys/class/block/$1"/slaves/* "/sys/class/block/$(disk_of "$1")"/slaves/*; do
    [ ! -e "$below" ] || all_below "${below##*/}"
  done
}

[ "$(id -u)" = 0 ] || refuse "Only root can look at $device."
for tool in blkid wipefs lsblk flock cmp shuf stat readlink find sed grep tr mkfs.ext4; do
  command -v "$tool" > /dev/null || refuse "The server has no $tool, so $device cannot be examined: install it."
done
[ -r /proc/1/mountinfo ] && [ -r /proc/swaps ] || refuse "/proc cannot be read, so nothing is known of mounts and swap."

# Who the device is.
[ -e "$device" ] || refuse "$device is not there any more."
[ -b "$device" ] || refuse "$device is no block device."
number=$(number_of "$device")
name=$(name_of "$number") && [ -d "/sys/class/block/$name" ] || refuse "The kernel knows nothing of $device ($number)."
disk=$(disk_of "$name")
(: < "$device") 2> /dev/null || refuse "$device cannot be opened."
# A virtual machine, say, has its disk open and claims nothing; asked before we open it ourselves.
user=$(find /proc/[0-9]*/fd \( -lname "$(readlink -f -- "$device")" -o -lname "/dev/$name" \) 2> /dev/null | head -n 1 || true)
[ -z "$user" ] || refuse "$device is open in the process ${user%/fd/*}."
exec 9< "$device"
# udev leaves a disk alone while it is locked as a whole, and so does another run.
exec 8< "$device"
[ "$disk" = "$name" ] || [ ! -b "/dev/$disk" ] || exec 8< "/dev/$disk"
flock -x -w 60 8 || refuse "$device is locked by another program."
[ "$(number_of /proc/self/fd/9)" = "$number" ] || refuse "$device became another device meanwhile."
found=$(serial_of "$disk")
[ "$found" = "$serial" ] || refuse "$device has the serial '$found' now, not '$serial': device names have changed."
found=$(cat "/sys/class/block/$disk/diskseq" 2> /dev/null || echo -)
[ "$sequence" = - ] || [ "$found" = "$sequence" ] || refuse "$device was exchanged: it is disk number $found since the start, not $sequence."
sectors=$(cat "/sys/class/block/$name/size")
[ "$((sectors * 512))" = "$bytes" ] || refuse "$device has $((sectors * 512)) bytes now, not $bytes."

ids=$(blkid -p -o export -- "$device") && code=0 || code=$?
if [ "$code" = 0 ] && printf '%s\n' "$ids" | grep -qx "UUID=$uuid" && printf '%s\n' "$ids" | grep -qx TYPE=ext4; then
  echo "$device has this filesystem already: UUID $uuid"
  exit 0
fi

# What it is, and who uses it.
[ "$bytes" -ge "$min_bytes" ] || refuse "$device has $bytes bytes, fewer than $min_bytes."
kind=$(lsblk -dno TYPE -- "$device" | tr -d ' ')
case " $kinds " in *" $kind "*) ;; *) refuse "$device is of the kind '$kind', not one of: $kinds." ;; esac
[ -n "$kind" ] || refuse "It is not known of what kind $device is."
[ "$(cat "/sys/class/block/$name/ro")" = 0 ] || refuse "$device is read-only."
for partition in "/sys/class/block/$name"/*/partition; do
  [ ! -e "$partition" ] || refuse "$device has partitions."
done
for holder in "/sys/class/block/$name"/holders/* "/sys/class/block/$name"/slaves/*; do
  [ ! -e "$holder" ] || refuse "$device is in use by ${holder##*/} (LVM, RAID, encryption)."
done
for file in /sys/class/block/loop*/loop/backing_file; do
  [ -r "$file" ] && read -r backing < "$file" && [ -b "$backing" ] || continue
  [ "$(number_of "$backing")" != "$number" ] || refuse "$device is what a loop device stands on."
done
sed -n 's/^\(.*[^[:space:]]\)[[:space:]]\{1,\}partition[[:space:]].*/\1/p' /proc/swaps | while read -r path; do
  [ "$(number_of "$path")" != "$number" ] && [ "$(number_of "$path")" != '?' ] || exit 3
done || refuse "$device, or a device that is not known, is used as swap."
# 2: a process ended meanwhile.
mounted=0
grep -qhs -e " $number " -e " - [^ ]* $device " -e " - [^ ]* /dev/$name " /proc/1/mountinfo /proc/[0-9]*/mountinfo || mounted=$?
case $mounted in 1|2) ;; 0) refuse "$device is mounted." ;; *) refuse "It is not known what is mounted." ;; esac
for target in / /usr /var /boot /boot/efi; do
  line=$(sed -n "s|^[0-9]* [0-9]* \([0-9:]*\) [^ ]* $target .* - \([^ ]*\) \([^ ]*\) .*|\1 \3|p" /proc/1/mountinfo | tail -n 1)
  at=${line%% *} source=${line#* }
  case $line in
    '') [ "$target" != / ] || refuse "It is not known what / is on."; continue ;;
    0:*) case $source in /dev/*) at=$(number_of "$source") ;; *) continue ;; esac ;;
  esac
  below=$(name_of "$at") && [ -d "/sys/class/block/$below" ] || refuse "It is not known on which disk $target is."
  [ -z "$(all_below "$below" | grep -x -e "$name" -e "$disk")" ] || refuse "$device is on the disk of $target."
done
if [ -e /etc/fstab ]; then
  partuuid=$(printf '%s\n' "$ids" | sed -n 's/^PART_ENTRY_UUID=//p') partlabel=$(printf '%s\n' "$ids" | sed -n 's/^PART_ENTRY_NAME=//p')
  tr -d '"' < /etc/fstab | while read -r source rest || [ -n "$source" ]; do
    case $source in
      "$device"|"$device"[0-9]*|"$device"p[0-9]*) exit 3 ;;
      /dev/*) [ "$(number_of "$source")" != "$number" ] || exit 3 ;;
      PARTUUID=*) [ -z "$partuuid" ] || [ "$(printf %s "${source#*=}" | tr A-F a-f)" != "$(printf %s "$partuuid" | tr A-F a-f)" ] || exit 3 ;;
      PARTLABEL=*) [ -z "$partlabel" ] || [ "${source#*=}" != "$partlabel" ] || exit 3 ;;
    esac
  done || refuse "/etc/fstab names $device."
fi

# What is on it. A partition without content has its entry in the table of its disk, and nothing else.
case $code in
  2) ;;
  0) found=$(printf '%s\n' "$ids" | grep -v -e '^DEVNAME=' -e '^PART_ENTRY_' -e '^$' | tr '\n' ' ' || true)
     [ -z "$found" ] || refuse "$device has content: $found" ;;
  *) refuse "blkid does not understand what is on $device (exit code $code)." ;;
esac
found=$(wipefs -n -- "$device") || refuse "wipefs cannot examine $device."
[ -z "$found" ] || refuse "$device has a signature: $(echo $found)"
mib=1048576 checked=0 with_data=0
[ "$bytes" -ge $((2 * mib)) ] || refuse "$device is too small to be examined."
# What was given away is old data, and not that it cannot be read.
for place in "0 $mib" "$((bytes - mib)) $mib" $(shuf -i "0-$((bytes / 4096 - 1))" -n 256); do
  case $place in *' '*) at=${place% *} length=${place#* } ;; *) at=$((place * 4096)) length=4096 ;; esac
  code=0
  cmp -s -i "$at:0" -n "$length" -- "$device" /dev/zero || code=$?
  [ "$code" -le 1 ] || refuse "$device cannot be read at byte $at."
  [ "$code" = 0 ] || [ "$content" = garbage ] || refuse "$device has data without a signature, at byte $at."
  checked=$((checked + 1)) with_data=$((with_data + code))
done
[ "$checked" = 258 ] || refuse "Only $checked of 258 samples of $device were read."
echo "$device $bytes bytes, serial '$serial': no signature, $((checked - with_data)) samples zero, $with_data with old data"

# No -F: a device that somebody took in this very moment is refused by the kernel.
mkfs.ext4 -q -L "$label" -U "$uuid" -- "$device" < /dev/null
sync
found=$(blkid -p -s UUID -o value -- "$device") || found=nothing
[ "$found" = "$uuid" ] || { echo "$device has the UUID $found after mkfs.ext4, not $uuid"; exit 1; }
echo "UUID $found"
