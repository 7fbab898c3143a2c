# Prints the numbers of the GPUs that a container sees, or why there is none. Argument: its image, which is there: none is loaded.
container_gpus() {
  timeout 60 docker run --rm --pull never --network none --gpus all --entrypoint nvidia-smi "$1" --query-gpu=index --format=csv,noheader 2>&1
}
