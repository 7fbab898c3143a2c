# Units of systemd, or services of a compose project. Needs $way (systemd, compose), $opt and $etc.

compose() { docker compose -p pocqueue -f "$opt/docker-compose.json" "$@"; }
container() { compose ps --all --quiet "$1" 2> /dev/null | head -n 1; }

# Lines ActiveState, UnitFileState, MainPID.
unit_state() {
  if [ "$way" = systemd ]; then
    systemctl show --property=ActiveState,UnitFileState,MainPID -- "$1"
    return 0
  fi
  id=$(container "$1") said="none 0"
  [ -z "$id" ] || said=$(docker inspect --format '{{.State.Status}} {{.State.Pid}}' "$id")
  case ${said% *} in running) state=active ;; none) state=inactive ;; restarting) state=activating ;; *) state=failed ;; esac
  printf 'ActiveState=%s\nUnitFileState=enabled\nMainPID=%s\n' "$state" "${said#* }"
}

# With the variables of the services; in a container of a worker, which has them.
gpus() {
  if [ "$way" = compose ]; then
    compose exec -T "$1" pocqueue gpus --json
    return
  fi
  timeout 60 runuser -u pocqueue -- sh -c 'set -a; . "$1"; shift; exec "$@"' sh "$etc/pocqueue.env" \
    "$opt/current/bin/pocqueue" gpus --json
}
