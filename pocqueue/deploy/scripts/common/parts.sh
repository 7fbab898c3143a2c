# Prints a part, as facts/parts.py reads it: `@NAME`, what the command said behind a blank each, `=CODE`.

part() {
  printf '@%s\n' "$1"
  shift
  code=0
  said=$("$@") || code=$?
  [ -z "$said" ] || printf '%s\n' "$said" | sed 's/^/ /'
  printf '=%s\n' "$code"
}
