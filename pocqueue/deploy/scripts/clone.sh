# Clones a repository and checks a commit out, beside the place where it is then put as a whole.
# Arguments: URL; the folder; the commit; `partial` if an interrupted clone is there, which is moved aside.
# Deletes nothing but an empty folder.
export LC_ALL=C GIT_TERMINAL_PROMPT=0
umask 022
url=$1 path=$2 commit=$3 there=$4
new=$path.pocqueue-new parent=$(dirname -- "$path")

aside() {
  [ -e "$1" ] || [ -L "$1" ] || return 0
  mv -T -- "$1" "$1.aside-$(date -u +%Y%m%dT%H%M%SZ)-$$"
}

mkdir -p -- "$parent"
aside "$new"
git clone --no-checkout -- "$url" "$new"
git -C "$new" -c advice.detachedHead=false checkout --detach "$commit"
# The clone is the login's, as the disk's top folder is.
chown -R --no-dereference --reference="$parent" -- "$new"
if [ "$there" = partial ]; then aside "$path"; fi
[ ! -d "$path" ] || rmdir -- "$path"
mv -T -- "$new" "$path"
