# What is found within a node's containers: GPUs as the programs there see them, and errors in the logs.
# Arguments: the folder of the compose files, the service that has the GPUs, then the files. Reads, and writes nothing.
# Prints parts (facts/parts.py); facts/node.py reads them.
export LC_ALL=C
folder=$1 service=$2
shift 2
. common/parts.sh

# Names of ours, without blanks.
files=
for file in "$@"; do files="$files -f $file"; done
cd -- "$folder"

within() { timeout 60 docker compose $files exec -T "$service" "$@" 2>&1; }

# Of all that docker has kept since the containers were made: how many, and the last five.
errors() {
  { timeout 60 docker compose $files logs --no-color 2> /dev/null || echo @unread; } | awk '
    $0 == "@unread" { unread = 1 }
    tolower($0) ~ /level"?[=:] ?"?(error|fatal)/ { n++; last[n % 5] = substr($0, 1, 300) }
    END { if (unread) exit 1; print n + 0; for (i = n - 4; i <= n; i++) if (i > 0) print last[i % 5] }'
}

# A line `GPU 0: name (UUID: …)` each, which no warning looks like: of compose, docker and the driver, on either output.
part gpus within nvidia-smi -L
part torch within python3 -c 'import torch; print(torch.cuda.is_available(), torch.cuda.device_count())'
part errors errors
