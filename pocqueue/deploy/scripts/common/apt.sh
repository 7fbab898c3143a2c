# Who holds the package manager's lock: the process's number; nothing where nobody does.

apt_holder() {
  for lock in /var/lib/dpkg/lock-frontend /var/lib/apt/lists/lock; do
    [ -e "$lock" ] || continue
    inode=$(stat -c %i -- "$lock")
    while read -r number kind mode type pid where rest; do
      # A process that waits for it has an arrow before it.
      case $where in *":$inode") echo "$pid"; return 0 ;; esac
    done < /proc/locks
  done
}

# An installation was interrupted; without dpkg none can be.
dpkg_is_broken() { command -v dpkg > /dev/null && [ -n "$(dpkg --audit 2> /dev/null | head -n 1)" ]; }
