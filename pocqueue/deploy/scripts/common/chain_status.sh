# What the node says of itself at /status, in the folder of its compose files: of its container first, as another node may
# run on this server. Some releases publish its port on loopback, too.

chain_status() {
  id=$(docker compose ps -q node 2> /dev/null) || id=
  for address in $([ -z "$id" ] || docker inspect --format '{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}' "$id") 127.0.0.1; do
    if curl -fsS --max-time 5 "http://$address:26657/status" 2> /dev/null; then return 0; fi
  done
  return 1
}
