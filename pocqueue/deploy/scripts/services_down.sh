# Ends the containers of compose files; volumes, and folders on the disk, stay. Argument: the folder, then the files.
# Exit codes: 0 there are none any more; 66 a file that it needs is gone, and containers run on, or docker does not say whether.
export LC_ALL=C
folder=$1
shift

# Without its files compose ends nothing, and the containers run on: of them it is said that they do.
none_left() {
  command -v docker > /dev/null || exit 0
  # compose knows the folder as it was typed, or by where its links lead.
  for place in "$folder" "$(readlink -m -- "$folder")"; do
    left=$(docker ps --format '{{.Names}}' --filter label=com.docker.compose.project.working_dir="$place") || {
      echo "$1 is gone, and docker does not say whether its containers run on: \`docker ps\`."
      exit 66
    }
    [ -z "$left" ] || {
      echo "$1 is gone, and its containers run on: end them with \`docker rm -f" $left\`", or put it back."
      exit 66
    }
  done
  exit 0
}

cd -- "$folder" 2> /dev/null || none_left "$folder"
files=
for file in "$@"; do
  [ -e "$file" ] || none_left "$folder/$file"
  files="$files -f $file"
done
# Never `-v`.
docker compose $files down
