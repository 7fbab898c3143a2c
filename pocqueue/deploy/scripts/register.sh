# Registers the node with the network, unless that knows it already, and waits until it does.
# Arguments: the folder of the compose files; the node's public URL; the account's public key; the network's URL; the URL that
# is asked for the participant; how often it is asked afterwards, and seconds between.
# Whatever comes of the request, only the network's own answer counts. Exit codes: 0 it knows it; 3 it does not.
export LC_ALL=C
folder=$1 public_url=$2 public_key=$3 seed=$4 url=$5 tries=$6 every=$7

# With a key: an account that has none yet was never registered.
is_known() { curl -fsS --max-time 10 -- "$url" 2> /dev/null | grep -q '"pubkey" *: *"[^"]'; }

cd -- "$folder"
if is_known; then
  echo "the network knows it already: nothing was sent"
  exit 0
fi
code=0
timeout 120 docker compose run --rm --no-deps -T api inferenced register-new-participant "$public_url" "$public_key" --node-address "$seed" || code=$?
[ "$code" = 0 ] || echo "the request ended with exit code $code; whether it arrived is asked"
try=0
until is_known; do
  try=$((try + 1))
  [ "$try" -lt "$tries" ] || { echo "after $tries questions the network does not know it"; exit 3; }
  sleep "$every"
done
echo "the network knows it"
