# Waits until the chain's node has caught up; one that stands still at three looks is started anew, once. Removes nothing.
# Arguments: the folder of the compose files; how often to look; seconds between.
# Exit code 0 says that the waiting is over; whether it has caught up is asked afterwards.
export LC_ALL=C
folder=$1 tries=$2 every=$3
. common/chain_status.sh

cd -- "$folder"
field() { printf '%s' "$said" | grep -o "\"$1\" *: *\"*[a-z0-9]*" | head -n 1 | sed 's/.*[ :"]//'; }
# While a snapshot is put together there is no height; its parts are counted in the log, which is coloured.
chunk() { docker compose logs --no-color --tail 200 node 2> /dev/null | sed 's/\x1b\[[0-9;]*m//g' | grep -o 'chunk=[0-9]*' | tail -n 1; }

try=0 last= same=0 restarted=
while :; do
  try=$((try + 1))
  said=$(chain_status) || said=
  height=$(field latest_block_height) catching_up=$(field catching_up)
  if [ "$catching_up" = false ] && [ "${height:-0}" -gt 0 ]; then
    echo "height $height, caught up"
    exit 0
  fi
  part=$(chunk || true)
  now="height ${height:-unknown}${part:+, $part}"
  echo "$now, catching up (look $try of $tries)"
  if [ "$now" = "$last" ]; then same=$((same + 1)); else same=1 last=$now; fi
  if [ "$same" -ge 3 ] && [ -z "$restarted" ]; then
    echo "it stands still: node is started anew, once"
    docker compose restart node
    restarted=1 same=0
  fi
  [ "$try" -lt "$tries" ] || break
  sleep "$every"
done
echo "it still catches up after $tries looks, and goes on by itself"
