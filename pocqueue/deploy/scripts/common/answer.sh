# The answer of `inferenced keys add`, which has a key's words, in our folder $dir on the server. `answer` is a whole one,
# `answer.new` that of a program which runs, or was killed with the server; `failed` has no key to it.

is_being_made() { [ -e "$dir/lock" ] && ! flock -n "$dir/lock" true; }

# Its file, if there is one with a key in the keyring $1 of the name $2.
answer_file() {
  if [ -f "$dir/answer" ]; then echo "$dir/answer"
  elif [ -f "$dir/answer.new" ] && [ -e "$1/$2.info" ] && ! is_being_made; then echo "$dir/answer.new"
  fi
}

# The file was as long as it might become before the program began.
answer_text() { tr -d '\000' < "$1"; }
