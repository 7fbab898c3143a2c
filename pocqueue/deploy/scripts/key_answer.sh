# The answer of `inferenced keys add` that waits here. Arguments: what; our folder; the keyring's folder; the key's name;
# for `drop`, the SHA-256 of what was fetched: another one stays.
# `read` prints it in base64. Exit codes: 0; 66 there is none, or another.
export LC_ALL=C
what=$1 dir=$2 ring=$3 name=$4
. common/answer.sh

file=$(answer_file "$ring" "$name")
case $what in
  read)
    [ -n "$file" ] || exit 66
    answer_text "$file" | base64 -w 0 ;;
  drop)
    # A run that was cut may have done so already.
    [ -n "$file" ] || exit 0
    [ "$(answer_text "$file" | sha256sum | cut -c 1-64)" = "$5" ] || { echo "$file is another one: it stays"; exit 66; }
    rm -f -- "$file" ;;
esac
