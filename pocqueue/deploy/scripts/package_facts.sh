# Which programs that a node needs are there, and what the package manager offers. Reads, and writes nothing.
# Arguments: the folder of the job that installs; packages to ask for, none: it is not asked.
# Prints parts (facts/parts.py); facts/packages.py reads them.
export LC_ALL=C
job=$1
shift
. common/parts.sh
. common/apt.sh

has() { command -v -- "$1" > /dev/null; }
installing() { if [ -e "$job/lock" ] && command -v flock > /dev/null && ! flock -n "$job/lock" true; then echo installing; fi; }
broken() { ! dpkg_is_broken || echo broken; }

part os sh -c 'cat /etc/os-release'
for name in docker nvidia-ctk git curl python3 apt-get; do part "$name" has "$name"; done
# Debian has the parts of a venv in a package of its own.
part venv python3 -c 'import ensurepip, venv'
part holder apt_holder
part broken broken
part installing installing
if [ $# -gt 0 ]; then
  # Without lists apt knows of no package at all.
  part lists sh -c 'ls /var/lib/apt/lists | grep -c Packages || true'
  part offered apt-cache policy -- "$@"
fi
