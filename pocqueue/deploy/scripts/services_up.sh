# Pulls and starts services, and waits until each has run for a while; of those that do not, prints the last lines.
# Arguments: the folder of the compose files; seconds to wait; our file that says who has made them (`-`: others have); services to start, `--`, services whose images alone are wanted.
# Whether they run is seen afterwards: exit code 0 says that compose has done its part.
export LC_ALL=C
folder=$1 wait=$2 ours=$3
shift 3
services= images=
while [ "$1" != -- ]; do services="$services $1"; shift; done
shift
images="$services $*"
cd -- "$folder"

# Running, and not for 15 seconds or less: so long a service that ends at once never seems to.
is_settled() {
  row=$(docker compose ps --all --format json "$1" | grep "\"Service\":\"$1\"") || return 1
  case $row in
    *'"Status":"Up Less than'* | *'"Status":"Up '[0-9]' second'* | *'"Status":"Up 1'[0-5]' second'*) return 1 ;;
    *'"State":"running"'*) return 0 ;;
  esac
  return 1
}

# Names of ours, without blanks.
docker compose pull --policy missing $images
[ "$ours" = - ] || : > "$ours"
docker compose up -d --no-deps $services
began=$(date +%s)
for service in $services; do
  until is_settled "$service"; do
    if [ $(($(date +%s) - began)) -ge "$wait" ]; then
      echo "$service does not settle; its last lines:"
      docker compose logs --no-color --tail 100 "$service" || true
      break
    fi
    sleep 1
  done
done
