# Ends the containers of compose files; volumes, and folders on the disk, stay. Argument: the folder, then the files.
# Exit codes: 0 there are none any more.
export LC_ALL=C
folder=$1
shift
cd -- "$folder" 2> /dev/null || exit 0
files=
for file in "$@"; do
  [ -e "$file" ] || exit 0
  files="$files -f $file"
done
# Never `-v`.
docker compose $files down
