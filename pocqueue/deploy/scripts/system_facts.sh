# The server as a whole: who we are there, what it is, what listens, what it reaches. Reads, and writes nothing.
# Arguments: the folder that the node's data goes to, then URLs that it has to reach (HTTP HEAD, ten seconds each).
# Prints parts (facts/parts.py); facts/system.py reads them.
export LC_ALL=C
folder=$1
shift
. common/parts.sh
. common/apt.sh

# Of the nearest folder that exists.
free() {
  at=$folder
  while [ ! -d "$at" ] && [ "$at" != / ]; do at=$(dirname -- "$at"); done
  df -B1 --output=avail,iavail -- "$at" | tail -n 1
}

apt() {
  pid=$(apt_holder)
  [ -z "$pid" ] || echo "pid=$pid"
  ! dpkg_is_broken || echo broken=1
}

# All at once; 000: not reached.
reach() {
  for url in "$@"; do
    { status=$(curl -sS -o /dev/null -w '%{http_code}' -I -L --max-time 10 -- "$url" 2> /dev/null) || true
      echo "${status:-000} $url"; } &
  done
  wait
}

part id id -u
part os sh -c 'cat /etc/os-release'
part kernel uname -srm
part clock date +%s
part memory sh -c 'sed -n "s/^\(MemTotal\|MemAvailable\): *\([0-9]*\) kB/\1=\2/p" /proc/meminfo'
part free free
part ports sh -c 'ss -H -l -n -t -p'
part apt apt
part reboot sh -c '[ ! -e /run/reboot-required ] || echo reboot'
part synced sh -c 'timedatectl show -p NTPSynchronized --value 2> /dev/null || true'
part tools sh -c 'for tool in sudo git curl python3 docker flock findmnt ss; do ! command -v $tool > /dev/null || echo $tool; done'
part reach reach "$@"
