# Loads a model and proves that its contents are what the hub names them by; goes on where it was interrupted.
# Arguments: HF_HOME; the folder's name, such as models--Qwen--Qwen3-32B-FP8; the model; the revision; the hub's program;
# seconds without growth after which a download is begun anew.
# Removes contents whose hash is wrong, which are then loaded again, and nothing else. Exit code 3: wrong after three tries.
export LC_ALL=C HF_HOME=$1 HF_HUB_DISABLE_TELEMETRY=1
umask 022
folder=$1/hub/$2 model=$3 revision=$4 hf=$5 stall=$6

size() { du -sb -- "$folder" 2> /dev/null | cut -f 1; }

# Ends the download $1 if nothing comes any more.
watch() {
  last= still=0 every=5
  [ "$stall" -ge 5 ] || every=1
  # Without the job's lock, which would stay a moment longer.
  while sleep "$every" 9>&-; do
    now=$(size)
    if [ "$now" = "$last" ]; then still=$((still + every)); else still=0 last=$now; echo "$now bytes"; fi
    if [ "$still" -ge "$stall" ]; then echo "no byte for $still s: the download begins anew"; kill "$1"; return; fi
  done
}

load() {
  "$hf" download "$model" --revision "$revision" &
  download=$!
  watch "$download" &
  watcher=$!
  code=0
  wait "$download" || code=$?
  kill "$watcher" 2> /dev/null || true
  wait "$watcher" 2> /dev/null || true
  return "$code"
}

# The marker is about these very contents: names, sizes and times.
fingerprint() { find "$folder/blobs" -type f -printf '%f %s %T@\n' | sort | sha256sum | cut -c 1-64; }

for try in 1 2 3; do
  until load; do
    failed=$((${failed:-0} + 1))
    [ "$failed" -lt 5 ] || { echo "the download failed $failed times"; exit 1; }
    # Too many requests: the hub wants a pause.
    sleep "$((failed * (stall < 10 ? stall : 10)))"
  done
  bad=
  for blob in "$folder/blobs"/*; do
    name=${blob##*/}
    [ -f "$blob" ] && [ ! -L "$blob" ] || continue
    case ${#name} in
      64) hash=$(sha256sum < "$blob") ;;
      40) hash=$({ printf 'blob %s\0' "$(stat -c %s -- "$blob")" && cat -- "$blob"; } | sha1sum) ;;
      *) continue ;;
    esac
    [ "${hash%% *}" = "$name" ] || { echo "damaged: $name"; rm -- "$blob"; bad=1; }
  done
  if [ -z "$bad" ]; then
    # A download of a commit leaves no such name, by which engines look a model up.
    mkdir -p -- "$folder/refs"
    printf %s "$revision" > "$folder/refs/main.pocqueue-tmp"
    mv -f -- "$folder/refs/main.pocqueue-tmp" "$folder/refs/main"
    echo "$revision $(fingerprint)" > "$folder/.pocqueue-verified"
    echo "all contents are what they are named by"
    exit 0
  fi
done
exit 3
