# What services answer to the server itself. Arguments: URLs (HTTP GET, ten seconds each). Reads, and writes nothing.
# Prints parts (facts/parts.py) named by their URLs, each the body and in its last line the HTTP status, 000: not reached;
# facts/http.py reads them.
export LC_ALL=C
. common/parts.sh

# A line of its own for the status, wherever the body ends; of an endless answer nothing is read.
get() { curl -sS --max-time 10 --max-filesize 1000000 -w '\n%{http_code}' -- "$1" 2> /dev/null; }

for url in "$@"; do part "$url" get "$url"; done
