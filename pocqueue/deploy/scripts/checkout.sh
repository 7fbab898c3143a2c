# Checks another commit out in a clone of ours; git refuses where that would lose edits.
# Arguments: the folder; the commit.
export LC_ALL=C GIT_TERMINAL_PROMPT=0
umask 022
path=$1 commit=$2
# As its owner, who may be another than root: git reads no clone of somebody else's, and Ubuntu 22.04's cannot be told to.
owner=$(stat -c %u -- "$path") group=$(stat -c %g -- "$path")
in_clone() {
  set -- git -C "$path" -c advice.detachedHead=false "$@"
  if [ "$(id -u)" = "$owner" ]; then "$@"; else
    HOME=/nonexistent setpriv --reuid "$owner" --regid "$group" --clear-groups -- "$@"
  fi
}
in_clone cat-file -e "$commit^{commit}" 2> /dev/null || in_clone fetch --tags origin
in_clone checkout --detach "$commit"
