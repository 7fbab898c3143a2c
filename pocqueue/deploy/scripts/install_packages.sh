# Installs packages of the repositories that this server has already; a job.
# Arguments: seconds to wait for the package manager's lock; `yes`: NVIDIA's runtime is to be made known to docker, too;
# the packages, none of them being what runs containers where containers run.
# Exit codes: 0; 75 the lock was held all the time; 76 dpkg is broken; 77 it would touch what must stay.
export LC_ALL=C DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=l NEEDRESTART_SUSPEND=1 APT_LISTCHANGES_FRONTEND=none
umask 022
wait_s=$1 runtime=$2
shift 2
. common/apt.sh

wait_for_apt() {
  begun=$(date +%s) before=
  while pid=$(apt_holder) && [ -n "$pid" ]; do
    who="$pid ($(cat "/proc/$pid/comm" 2> /dev/null || echo '?'))"
    [ "$who" = "$before" ] || echo "apt is held by process $who: waiting, up to $wait_s s"
    before=$who
    if [ "$(($(date +%s) - begun))" -ge "$wait_s" ]; then
      echo "apt was held by process $who for $wait_s s: let it end (ps -fp $pid), then run again."
      exit 75
    fi
    sleep 1
  done
}

apt_get() {
  wait_for_apt
  # Between that look and its own it may be taken again.
  apt-get -o DPkg::Lock::Timeout="$wait_s" -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold "$@"
}

wait_for_apt
if dpkg_is_broken; then
  echo "an installation was interrupted: type on the server: dpkg --configure -a"
  exit 76
fi
if [ $# -gt 0 ]; then
  apt_get -q update
  # What would be done, before it is: nothing is removed, and no engine is exchanged under containers that run.
  would=$(apt_get -q -s install -y --no-install-recommends -- "$@")
  stays=$(printf '%s\n' "$would" | sed -n 's/^Remv \([^ ]*\).*/\1/p')
  if [ -n "$(docker ps -q 2> /dev/null | head -n 1)" ]; then
    stays="$stays $(printf '%s\n' "$would" | sed -n 's/^Inst \(docker\.io\|docker-ce\|containerd\|containerd\.io\|runc\) .*/\1/p')"
  fi
  stays=$(echo $stays)
  if [ -n "$stays" ]; then
    echo "apt would remove or exchange $stays, and a node may run on it. Look at it: apt-get -s install $*"
    exit 77
  fi
  apt_get -q install -y --no-install-recommends -- "$@"
fi
if [ "$runtime" = yes ]; then
  config=/etc/docker/daemon.json
  # Named by its content: kept once, however often this runs.
  [ ! -f "$config" ] || cp -p -- "$config" "$config.pocqueue-$(sha256sum < "$config" | cut -c 1-64)"
  nvidia-ctk runtime configure --runtime=docker
  # Never a restart: docker reads its runtimes anew, and containers go on.
  systemctl reload docker
fi
