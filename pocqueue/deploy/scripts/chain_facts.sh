# The chain's node: its settings files, how far it is, and since when it runs. Reads, and writes nothing.
# Arguments: the folder of the compose files; our file whose time is that of the last edit; the file with the exit code of the
# job that waited. Prints parts (facts/chain_node.py reads them). Exit code 66: there are no compose files yet.
export LC_ALL=C
folder=$1 edited=$2 waited=$3
. common/parts.sh
. common/chain_status.sh

cd -- "$folder" 2> /dev/null && [ -e docker-compose.yml ] || exit 66
for name in config.toml app.toml; do
  file=.inference/config/$name
  part "$name.kind" sh -c '[ ! -e "$1" ] && [ ! -L "$1" ] || stat --printf "kind=%F\n" -- "$1"' sh "$file"
  if [ -f "$file" ] && [ ! -L "$file" ]; then
    # Of one reading: the hash is that of the text.
    text=$(base64 -w 0 < "$file")
    part "$name" echo "$text"
  fi
done
part status chain_status
# Made at its first start, before its first block.
part store sh -c '[ ! -e .inference/data/blockstore.db ] || echo blockstore.db'

started() {
  id=$(docker compose ps -q node)
  [ -z "$id" ] || date -d "$(docker inspect --format '{{.State.StartedAt}}' "$id")" +%s.%N
}
part started started
time_of() { [ ! -e "$1" ] || stat -c %.9Y -- "$1"; }
part edited time_of "$edited"
# One that failed has not waited.
if [ -e "$waited" ] && [ "$(cat -- "$waited")" = 0 ]; then part waited time_of "$waited"; else part waited true; fi
