# What runs in containers: the engine, and the services of one project. Reads, and writes nothing.
# Arguments: the folder of the compose files (`-`: no project yet), then the files.
# Prints parts (facts/parts.py); facts/docker.py reads them.
export LC_ALL=C
folder=$1
shift
. common/parts.sh

# Its variables are in `.env`, which compose reads by itself: nothing is sourced.
compose() { docker compose $files "$@"; }

# Names of ours, without blanks.
files=
for file in "$@"; do files="$files -f $file"; done

part engine docker version --format '{{json .Server.Version}}'
part compose docker compose version --short
part runtimes docker info --format '{{json .Runtimes}}'
if [ "$folder" != - ] && cd "$folder" 2> /dev/null; then
  part services compose ps --all --format json
  part config compose config --format json
fi
