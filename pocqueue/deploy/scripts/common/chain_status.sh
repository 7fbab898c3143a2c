# What the node says of itself at /status, in the folder of its compose files: of its container alone, as another node may run
# on this server. By the container's own address, or where docker says that it publishes the port.

chain_status() {
  id=$(docker compose ps -q node 2> /dev/null) || id=
  [ -n "$id" ] || return 1
  for address in $(docker inspect --format '{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}' "$id" | sed 's/[^ ][^ ]*/&:26657/g') \
    $(docker port "$id" 26657 2> /dev/null | sed -n 's/^0\.0\.0\.0:/127.0.0.1:/; /^[0-9]/p'); do
    if curl -fsS --max-time 5 "http://$address/status" 2> /dev/null; then return 0; fi
  done
  return 1
}
