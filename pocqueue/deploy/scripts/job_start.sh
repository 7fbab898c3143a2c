# Starts what stands in standard input (common/take.sh) as a job that outlives the connection; one that runs already is left alone.
# Arguments: folder of all jobs; name of the job; the mark of this start, which no other has; that of the last
# start that the caller knows to have ended (`-`: of none); words for its script.
# The job's folder has `cmd` (the script), `mark`, `out` (what it prints), `rc` (its exit code, once it has ended) and
# `lock`, which the job and whatever it starts hold: no number of a process says whether it still runs.
# Exit codes: 0 it runs, or ran already; 65 not all of the script arrived; 67 a start that the caller did not know has ended,
# whose mark is printed: nothing was begun; 69 it does not start.
export LC_ALL=C
umask 077
. common/take.sh
jobs=$1 name=$2 mark=$3 known=$4
shift 4
dir=$jobs/$name
mkdir -p -- "$dir"
[ ! -L "$dir" ] && [ -O "$dir" ] || { echo "$dir is not ours."; exit 69; }
# Before the lock: standard input may be long in coming.
new=$dir/cmd.new.$$
take "$new"
exec 9>> "$dir/lock"
# Whoever looks at it has it for a moment.
if ! flock -w 1 9; then
  rm -f -- "$new"
  echo running
  exit 0
fi
last=-
[ ! -s "$dir/mark" ] || read -r last < "$dir/mark"
if [ "$last" != "$known" ]; then
  rm -f -- "$new"
  echo "$last"
  exit 67
fi
rm -f -- "$dir/rc" "$dir/begun"
printf '%s\n' "$mark" > "$dir/mark"
mv -f -- "$new" "$dir/cmd"
: > "$dir/out"
# The script is the job's name in `ps`; what it prints goes to its file, and its end is written before its lock is free.
run='dir=$1; shift; : > "$dir/begun"; sh -eu "$dir/cmd" "$@" > "$dir/out" 2>&1 < /dev/null && rc=0 || rc=$?; echo "$rc" > "$dir/rc.new"; mv -f "$dir/rc.new" "$dir/rc"'
if [ "$(id -u)" = 0 ] && [ -d /run/systemd/system ] && command -v systemd-run > /dev/null; then
  # A unit of its own: what is left of a session may be ended with it. The lock is taken there, so it is given back here.
  flock -u 9
  # A unit has no home, which docker and git look for.
  systemd-run --quiet --collect --setenv "HOME=${HOME:-/root}" --unit "pocqueue-deploy-$name" -- \
    sh -c 'exec 9>> "$1/lock"; flock -w 5 9 || exit 0; '"$run" sh "$dir" "$@" > /dev/null || { echo "systemd-run failed"; exit 69; }
  tries=0
  until [ -e "$dir/begun" ]; do
    tries=$((tries + 1))
    [ "$tries" -le 100 ] || { echo "$dir does not begin"; exit 69; }
    sleep 0.1
  done
else
  # The lock goes to the job with its open file.
  setsid sh -c "$run" sh "$dir" "$@" > /dev/null 2>&1 < /dev/null &
fi
echo started
