# Starts a unit anew with the version and the variables that are there now, and waits until it works; a job.
# Arguments: folders of versions and of the variables; `systemd` or `compose`; the unit; the queue of its worker (empty: it is
# none); seconds to wait for that, or that it has to run.
# Exit codes: 0; 70 it does not stay up; 71 its worker is not in the pool.
export LC_ALL=C
opt=$1 etc=$2 way=$3 unit=$4 queue=$5 wait_s=$6
. common/units.sh

ended() {
  echo "$1"
  if [ "$way" = compose ]; then
    compose logs --no-log-prefix --tail=15 "$unit" 2> /dev/null || true
  else
    journalctl --unit="$unit" --lines=15 --no-pager --output=cat 2> /dev/null || true
  fi
  exit "$2"
}

# The id of the queue's live worker.
live() {
  gpus "$unit" 2> /dev/null | python3 -c '
import json, sys
for row in json.load(sys.stdin):
    if row["queue"] == sys.argv[1] and row["is_live"] and not row["draining"]:
        print(row["worker"])' "$queue" 2> /dev/null || true
}

before=
[ -z "$queue" ] || before=$(live)
# SIGTERM first: a worker commits the batch at hand and hands the rest back.
if [ "$way" = compose ]; then
  compose up -d --no-deps --force-recreate "$unit" || ended "$unit does not start" 70
else
  systemctl enable --quiet -- pocqueue.target "$unit"
  systemctl restart -- "$unit" || ended "$unit does not start" 70
fi
begun=$(date +%s) first=
while :; do
  said=$(unit_state "$unit")
  state=$(printf '%s\n' "$said" | sed -n 's/^ActiveState=//p')
  pid=$(printf '%s\n' "$said" | sed -n 's/^MainPID=//p')
  passed=$(($(date +%s) - begun))
  case $state in
    failed|inactive) ended "$unit ended" 70 ;;
    active)
      if [ -n "$queue" ]; then
        worker=$(live)
        if [ -n "$worker" ] && [ "$worker" != "$before" ]; then
          echo "$queue is live in the pool again"
          exit 0
        fi
      else
        first=${first:-$pid}
        [ "$first" = "$pid" ] || ended "$unit ended and was started again" 70
        [ "$passed" -lt "$wait_s" ] || exit 0
      fi ;;
  esac
  [ "$passed" -lt "$wait_s" ] || [ -z "$queue" ] || ended "$queue is not in the pool after $wait_s s" 71
  [ "$passed" -lt "$((wait_s + 60))" ] || ended "$unit is $state after $passed s" 70
  sleep 0.5
done
