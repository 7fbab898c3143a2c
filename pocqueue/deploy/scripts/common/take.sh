# Standard input ends where the connection does, too: a part of what was sent, or nothing, looks like all of it.

# Writes it into the new file $1; its first line, which goes before it, is the SHA-256 of the rest. Ends with 65 where not all came.
take() {
  rm -f -- "$1"
  IFS= read -r sent || { echo "nothing arrived"; exit 65; }
  cat > "$1" || { rm -f -- "$1"; exit 1; }
  [ "$(sha256sum < "$1" | cut -c 1-64)" = "$sent" ] || { rm -f -- "$1"; echo "not all arrived of what was sent"; exit 65; }
}
