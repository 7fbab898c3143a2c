# Holds the lock of a server for as long as the connection lives: sshd closes standard input with it.
# Arguments: folder; who holds it, one line.
# Prints `locked`, or who holds it already and ends with 75.
export LC_ALL=C
umask 077
mkdir -p -- "$1"
exec 9>> "$1/lock"
if ! flock -n 9; then
  cat "$1/lock.who" 2> /dev/null || true
  exit 75
fi
printf '%s\n' "$2" > "$1/lock.who"
echo locked
exec cat > /dev/null
