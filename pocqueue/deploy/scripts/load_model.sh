# Loads a model and proves that its contents are what the hub names them by; goes on where it was interrupted.
# Arguments: HF_HOME; the folder's name, such as models--Qwen--Qwen3-32B-FP8; the model; the revision; the hub's program;
# seconds without growth after which a download is begun anew.
# Removes contents of this revision whose hash is wrong, which are then loaded again, and nothing else.
# Exit codes: 0; 3 wrong after three tries; 65 something leads out of the model's folder, nothing is written there.
export LC_ALL=C HF_HOME=$1 HF_HUB_DISABLE_TELEMETRY=1
umask 022
home=$1 name=$2 folder=$1/hub/$2 model=$3 revision=$4 hf=$5 stall=$6

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
. common/model_folder.sh

check() {
  found=$(outside | head -n 5)
  [ -z "$found" ] || { echo "leads out of $folder: $(echo $found)"; exit 65; }
}

# Writes text $1 to the file $2, whatever is there: a link is replaced, and not written through.
put() {
  new=$(mktemp -- "$folder/.pocqueue-tmp.XXXXXXXX")
  printf %s "$1" > "$new"
  chmod 644 -- "$new"
  mv -fT -- "$new" "$2"
}

for try in 1 2 3; do
  check
  until load; do
    check
    failed=$((${failed:-0} + 1))
    [ "$failed" -lt 5 ] || { echo "the download failed $failed times"; exit 1; }
    # Too many requests: the hub wants a pause.
    sleep "$((failed * (stall < 10 ? stall : 10)))"
  done
  check
  bad=
  for digest in $(contents); do
    blob=$folder/blobs/$digest
    [ -f "$blob" ] && [ ! -L "$blob" ] || continue
    case ${#digest} in
      64) hash=$(sha256sum < "$blob") ;;
      40) hash=$({ printf 'blob %s\0' "$(stat -c %s -- "$blob")" && cat -- "$blob"; } | sha1sum) ;;
      *) continue ;;
    esac
    [ "${hash%% *}" = "$digest" ] || { echo "damaged: $digest"; rm -- "$blob"; bad=1; }
  done
  if [ -z "$bad" ]; then
    # A download of a commit leaves no such name, by which engines look a model up.
    check
    mkdir -p -- "$folder/refs"
    put "$revision" "$folder/refs/main"
    put "$revision $(fingerprint)" "$folder/.pocqueue-verified"
    echo "all contents are what they are named by"
    exit 0
  fi
done
exit 3
