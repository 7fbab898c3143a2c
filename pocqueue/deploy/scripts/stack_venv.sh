# Makes the venv of a version; a job. Nothing runs from it before it is complete.
# Arguments: folder of versions; the version; python; the wheel's name and SHA-256; its extras, `[…]` or nothing; the mark.
export LC_ALL=C PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore
umask 022
opt=$1 version=$2 python=$3 name=$4 hash=$5 extras=$6 mark=$7
dir=$opt/$version wheel=$opt/wheels/$hash/$name
[ "$(sha256sum < "$wheel" | cut -c 1-64)" = "$hash" ] || { echo "$wheel is not what was sent"; exit 65; }
# A venv has its own path in its programs: it is made in its place, and is complete when its mark is there.
"$python" -m venv -- "$dir"
# Of all that it needs, the versions that it was tested with.
"$dir/bin/python" -c 'import sys, zipfile; sys.stdout.write(zipfile.ZipFile(sys.argv[1]).read("pocqueue/_constraints.txt").decode())' \
  "$wheel" > "$dir/constraints.txt"
# Wheels alone: nothing of a package runs as root while it is installed.
"$dir/bin/python" -m pip install --quiet --only-binary=:all: --constraint "$dir/constraints.txt" "$wheel$extras"
"$dir/bin/pocqueue" --help > /dev/null
printf '%s\n' "$mark" > "$dir/.ready.pocqueue-tmp"
mv -f -- "$dir/.ready.pocqueue-tmp" "$dir/.ready"
