# Tries whether a container of the image that computes sees the GPUs: the first moment when that image is there. Nothing of it stays.
# Arguments: the image; how many GPUs it needs. Exit code 0: it sees so many.
export LC_ALL=C
. common/container_gpus.sh

said=$(container_gpus "$1") || { printf '%s\n' "$said"; echo "No container gets GPUs: see nvidia-runtime of deploy check."; exit 1; }
found=$(printf '%s\n' "$said" | grep -cx '[0-9][0-9]*') || true
echo "A container sees $found of the $2 GPUs that are needed"
[ "$found" -ge "$2" ] || { printf '%s\n' "$said"; exit 1; }
