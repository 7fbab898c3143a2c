# What the network says of a participant, and what the job that registered it has printed. Reads, and writes nothing.
# Arguments: the folder of the compose files; the URL that is asked; the job's folder.
# Prints parts (facts/parts.py); the answer's last line is its HTTP status, 000: not reached.
# Exit code 66: there are no compose files yet.
export LC_ALL=C
folder=$1 url=$2 job=$3
. common/parts.sh

[ -e "$folder/docker-compose.yml" ] || exit 66
# With what curl says of a network that it does not reach.
part answer sh -c 'curl -sS --max-time 20 --max-filesize 1000000 -w "\n%{http_code}" -- "$1" 2>&1' sh "$url"
part output sh -c '[ ! -f "$1" ] || [ -L "$1" ] || tail -c 65536 -- "$1"' sh "$job/out"
