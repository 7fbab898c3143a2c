# A model's folder in the hub's cache. Needs $home, $name, $folder and $revision.

# What leads out of the model's folder, a line each: root would write, or remove, wherever a link says.
outside() {
  for path in "$home/hub" "$home/hub/.locks/$name" "$home/xet" "$folder" "$folder/blobs" "$folder/snapshots/$revision" "$folder/refs"; do
    [ "$(readlink -m -- "$path")" = "$path" ] || echo "$path"
  done
  [ ! -d "$folder" ] || find "$folder" -type l | while IFS= read -r link; do
    case $(readlink -m -- "$link") in "$folder"/*) ;; *) echo "$link" ;; esac
  done
}

# Contents that the snapshot's links name: those of other revisions are not ours to hash or to remove.
contents() {
  [ ! -d "$folder/snapshots/$revision" ] || find "$folder/snapshots/$revision" -type l -printf '%l\n' |
    sed -n 's#^\(\.\./\)*blobs/\([0-9a-f]*\)$#\2#p' | sort -u
}

# The marker is about these very contents: names, sizes and times.
fingerprint() {
  contents | while read -r blob; do
    [ ! -f "$folder/blobs/$blob" ] || find "$folder/blobs/$blob" -type f -printf '%f %s %T@\n'
  done | sha256sum | cut -c 1-64
}
