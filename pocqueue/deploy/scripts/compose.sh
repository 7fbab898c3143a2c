# Runs compose in the folder of its files, whose `.env` it reads by itself. Arguments: the folder; words of compose.
export LC_ALL=C
cd -- "$1"
shift
exec docker compose "$@"
