# Registers the node with the network, unless that knows it already, and waits until it does.
# Arguments: the folder of the compose files; the node's public URL; the account's public key; the network's URL; the URL that
# is asked for the participant; how often it is asked afterwards, and seconds between.
# Whatever comes of the request, only the network's own answer counts. Exit codes: 0 it knows it; 3 it does not; 4 whether it
# does is not known: nothing was sent.
export LC_ALL=C
folder=$1 public_url=$2 public_key=$3 seed=$4 url=$5 tries=$6 every=$7

# Sets $known: yes, with a key, as an account that has none yet was never registered; no; or unclear, after any other answer
# than the network's own for one that it does not know (`read_participant` in facts/keys.py).
ask() {
  known=unclear
  said=$(curl -sS --max-time 10 --max-filesize 1000000 -w '\n%{http_code}' -- "$url" 2> /dev/null) || return 0
  says() { printf '%s\n' "$said" | grep -q "$1"; }
  case $(printf '%s\n' "$said" | tail -n 1) in
    200) if says '"pubkey" *: *"[^"]'; then known=yes; elif says '"pubkey" *: *""'; then known=no; fi ;;
    404) known=no ;;
    500) ! says '^ *{ *"error" *: *"[^"]*code = NotFound' || known=no ;;
  esac
}

cd -- "$folder"
ask
case $known in
  yes) echo "the network knows it already: nothing was sent"; exit 0 ;;
  unclear) echo "whether the network knows it is not known: nothing was sent"; exit 4 ;;
esac
code=0
timeout 120 docker compose run --rm --no-deps -T api inferenced register-new-participant "$public_url" "$public_key" --node-address "$seed" || code=$?
[ "$code" = 0 ] || echo "the request ended with exit code $code; whether it arrived is asked"
try=0
while ask; [ "$known" != yes ]; do
  try=$((try + 1))
  [ "$try" -lt "$tries" ] || { echo "after $tries questions the network does not know it"; exit 3; }
  sleep "$every"
done
echo "the network knows it"
