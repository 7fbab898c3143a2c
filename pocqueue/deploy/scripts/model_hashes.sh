# Hashes of the contents in the hub's cache, a line each: hash, blank, the blob's name. Minutes, so run as a job.
# Arguments: HF_HOME; the folder's name, such as models--Qwen--Qwen3-32B-FP8. Reads, and writes nothing.
# A blob of a large file is named by its SHA-256, that of a small one by git's hash of it.
export LC_ALL=C
cd "$1/hub/$2/blobs"
for blob in *; do
  [ -f "$blob" ] && [ ! -L "$blob" ] || continue
  case ${#blob} in
    64) hash=$(sha256sum < "$blob") ;;
    40) hash=$({ printf 'blob %s\0' "$(stat -c %s -- "$blob")" && cat -- "$blob"; } | sha1sum) ;;
    *) continue ;;
  esac
  echo "${hash%% *} $blob"
done
