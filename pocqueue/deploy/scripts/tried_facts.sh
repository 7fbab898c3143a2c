# What only a try tells: whether a container sees the GPUs, and how fast the data disk is. Nothing of either stays.
# Argument: the folder where that disk is mounted; `-`: nowhere yet. Prints parts (facts/tried.py); facts/tried.py reads them.
export LC_ALL=C
folder=$1
. common/parts.sh
. common/container_gpus.sh

# One that is there, the node's own first: nothing is loaded for this.
image() {
  docker image ls --format '{{.Repository}} {{.ID}}' | awk '
    $1 ~ /(^|\/)mlnode$/ { print 1, $2 } $1 == "nvidia/cuda" { print 2, $2 } $1 ~ /^(ubuntu|debian)$/ { print 3, $2 }' | sort -n | head -n 1 | cut -d ' ' -f 2
}

gpus() {
  case $(docker info --format '{{json .Runtimes}}' 2> /dev/null) in *nvidia*) ;; *) return 0 ;; esac
  id=$(image)
  [ -n "$id" ] || return 0
  container_gpus "$id"
}

# Bytes a second, past the cache, of a file that has no name: it is gone with its program, and its folder is as it was.
rate() {
  [ "$folder" != - ] || return 0
  python3 -c '
import mmap, os, sys, time
file = os.open(sys.argv[1], os.O_TMPFILE | os.O_WRONLY | os.O_DIRECT)
data, begun = mmap.mmap(-1, 1 << 22), time.monotonic()
for _ in range(16): os.write(file, data)
os.fsync(file)
print(int(16 * len(data) / (time.monotonic() - begun)))' "$folder"
}

part gpus gpus
part rate rate
