# Numbers, names and serials of block devices. Needs $device and $name: those that are asked for.

# MAJOR:MINOR of a device file, `?` if there is none.
number_of() {
  hex=$(stat -L -c '%t:%T' -- "$1" 2> /dev/null) || { echo '?'; return 0; }
  echo "$((0x${hex%:*})):$((0x${hex#*:}))"
}

# The kernel's name of a device number: what is called /dev/vdc may be another one's node.
name_of() {
  where=$(readlink -f "/sys/dev/block/$1") || return 1
  echo "${where##*/}"
}

disk_of() {
  [ -e "/sys/class/block/$1/partition" ] || { echo "$1"; return 0; }
  where=$(cd -P "/sys/class/block/$1/.." && pwd -P)
  echo "${where##*/}"
}

serial_of() {
  node=/dev/$1
  [ "$1" != "$name" ] || node=$device
  found=$(lsblk -dno SERIAL -- "$node" 2> /dev/null | tr -d ' \t') || found=
  for file in serial device/serial device/wwid wwid; do
    [ -z "$found" ] || break
    [ ! -r "/sys/class/block/$1/$file" ] || found=$(tr -d ' \t\000' < "/sys/class/block/$1/$file")
  done
  echo "$found"
}
