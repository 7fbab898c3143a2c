# Prometheus and the node exporter: looks at them, puts a file of theirs in place, starts them, takes them away.
# Arguments: what; the folder; for `put`, the file's name, its content in standard input (common/take.sh); for `remove`, NAME=SHA-256 of our files.
# Exit codes: 0; 65 `put`: not all of it arrived; 66 `remove`: somebody changed a file, and all stays.
export LC_ALL=C
umask 022
what=$1 folder=$2
shift 2
. common/parts.sh
. common/take.sh

hash_of() { if [ -f "$1" ] && [ ! -L "$1" ]; then sha256sum < "$1" | cut -c 1-64; else echo -; fi; }
hashes() { for name in docker-compose.yml prometheus.yml; do echo "$name=$(hash_of "$folder/$name")"; done; }

case $what in
  look)
    part hashes hashes
    if cd -- "$folder" 2> /dev/null; then part services docker compose ps --all --format json; fi ;;
  put)
    [ "$(readlink -m -- "$folder")" = "$folder" ] || { echo "$folder leads elsewhere: look at it"; exit 65; }
    mkdir -p -- "$folder"
    take "$folder/$1.pocqueue-tmp"
    mv -f -- "$folder/$1.pocqueue-tmp" "$folder/$1" ;;
  up)
    cd -- "$folder"
    docker compose up -d --wait --wait-timeout=120 ;;
  remove)
    [ -d "$folder" ] || exit 0
    for pair in "$@"; do
      found=$(hash_of "$folder/${pair%%=*}")
      [ "$found" = - ] || [ "$found" = "${pair#*=}" ] || { echo "$folder/${pair%%=*} was changed since: it stays"; exit 66; }
    done
    # Its volume stays: what was measured is not ours to remove.
    if [ -f "$folder/docker-compose.yml" ]; then (cd -- "$folder" && docker compose down); fi
    for pair in "$@"; do rm -f -- "$folder/${pair%%=*}"; done
    rmdir -- "$folder" 2> /dev/null || true ;;
esac
