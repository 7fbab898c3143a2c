# Prints a part, as facts/parts.py reads it: `@NAME`, what the command said behind a blank each, `=CODE`.

newline='
'
part() {
  printf '@%s\n' "$1"
  shift
  code=0
  said=$("$@") || code=$?
  # Most say one line at most: no process is needed for that.
  case $said in
    '') ;;
    *"$newline"*) printf '%s\n' "$said" | sed 's/^/ /' ;;
    *) printf ' %s\n' "$said" ;;
  esac
  printf '=%s\n' "$code"
}
