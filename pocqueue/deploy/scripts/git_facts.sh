# A folder that is, or becomes, a clone of a repository. Reads, and writes nothing.
# Argument: the folder. Prints parts (facts/parts.py); facts/git.py reads them.
export LC_ALL=C GIT_OPTIONAL_LOCKS=0 GIT_TERMINAL_PROMPT=0
folder=$1
. common/parts.sh

where() {
  echo "real=$(readlink -m -- "$folder")"
  [ -e "$folder" ] || return 0
  stat --printf 'kind=%F\n' -- "$folder"
  [ -z "$(ls -A -- "$folder" | head -n 1)" ] || echo entries=1
  [ ! -e "$folder/.git" ] || echo git=1
  [ ! -e "$folder/.git/index" ] || echo index=1
}

at() { git -C "$folder" "$@"; }

part folder where
if [ -e "$folder/.git" ]; then
  part head at rev-parse --verify --quiet 'HEAD^{commit}'
  part remote at config --get remote.origin.url
  part status at status --porcelain=v1 --untracked-files=no
  part top at rev-parse --show-toplevel
fi
