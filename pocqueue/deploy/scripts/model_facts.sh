# What the hub's cache has of a model: names and sizes, which takes no time; load_model.sh reads the contents.
# Arguments: HF_HOME; the folder's name, such as models--Qwen--Qwen3-32B-FP8; the revision.
# Prints parts (facts/parts.py); facts/model.py reads them. Reads, and writes nothing.
export LC_ALL=C
home=$1 name=$2 folder=$1/hub/$2 revision=$3
. common/parts.sh

where() { echo "home=$(readlink -m -- "$home")" && echo "folder=$(readlink -m -- "$folder")"; }
. common/model_folder.sh

# Kind, size, name; of a link where it leads to, as it is written.
listed() { [ ! -d "$1" ] || find "$1" -mindepth 1 ! -type d -printf '%y %s %P\t%l\n'; }

# Shards that the index names: of a file of some MB only that is of interest.
shards() {
  index=$folder/snapshots/$revision/model.safetensors.index.json
  [ ! -r "$index" ] || { grep -o '"[^"]*\.safetensors"' "$index" || true; } | sort -u
}

# Of the nearest folder that exists.
free() {
  at=$home
  while [ ! -d "$at" ] && [ "$at" != / ]; do at=$(dirname -- "$at"); done
  df -B1 --output=avail,iavail -- "$at" | tail -n 1
}

# What load_model.sh has proved, and whether the contents are the same since.
verified() {
  [ ! -r "$folder/.pocqueue-verified" ] || echo "proved=$(cat "$folder/.pocqueue-verified")"
  [ ! -d "$folder/blobs" ] || echo "now=$revision $(fingerprint)"
}

part where where
part outside outside
part blobs listed "$folder/blobs"
part snapshot listed "$folder/snapshots/$revision"
part shards shards
part verified verified
part free free
