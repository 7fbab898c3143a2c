# Prints the parts of a keyring's folder, which needs no password to be listed; facts/keys.py reads them.

keyring() {
  part folder sh -c '[ ! -e "$1" ] || stat --printf "kind=%F\nuid=%u\nmode=%a\n" -- "$1"' sh "$1"
  part files sh -c '[ ! -d "$1" ] || ls -A -- "$1"' sh "$1"
}
