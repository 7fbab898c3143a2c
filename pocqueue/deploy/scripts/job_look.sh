# Says how a job stands, and what it has printed since; changes nothing.
# Arguments: folder of all jobs; name of the job; bytes of its output that are known; bytes to print at most.
# Prints `STATE EXIT_CODE SIZE MARK` and then that output. STATE: none, running, ended, or died (rebooted, or killed); MARK: of
# its last start, `-` if there was none.
export LC_ALL=C
dir=$1/$2 offset=$3 most=$4
state=none rc=- mark=-
if [ -d "$dir" ]; then
  # The lock first: the exit code is there before it is free.
  if [ -e "$dir/lock" ] && ! flock -n "$dir/lock" true; then
    state=running
  elif [ -e "$dir/rc" ]; then
    state=ended
    read -r rc < "$dir/rc"
  elif [ -e "$dir/cmd" ]; then
    state=died
  fi
  [ ! -s "$dir/mark" ] || read -r mark < "$dir/mark"
fi
size=0
[ ! -e "$dir/out" ] || size=$(stat -c %s "$dir/out")
echo "$state $rc $size $mark"
part=$((size - offset))
[ "$part" -le "$most" ] || part=$most
[ "$part" -le 0 ] || tail -c "+$((offset + 1))" "$dir/out" | head -c "$part"
