# The chain's data, which are moved aside and never removed. Arguments: what (look, move); the folder of the compose files; the
# folder's name aside. Two small files stay in place: what was signed last, without which a validator may sign twice, and which
# release the node had come to.
# `look` prints parts (facts/parts.py), and writes nothing. Exit codes: 0; 66 there is no such folder, or it is a link.
export LC_ALL=C
umask 077
what=$1 folder=$2 aside=$3
. common/parts.sh

cd -- "$folder/.inference" 2> /dev/null || exit 66
case $what in
  look)
    part aside sh -c 'if [ -d "$1" ] && [ -d data ]; then echo there; fi' sh "$aside"
    part size sh -c '[ ! -d data ] || du -s -B1 -- data | cut -f 1'
    part free sh -c 'df -B1 --output=avail -- . | tail -n 1' ;;
  move)
    # A run that was cut has moved it already, and this one ends what that began.
    if [ ! -d "$aside" ]; then
      [ -d data ] && [ ! -L data ] || { echo "$folder/.inference/data is no folder."; exit 66; }
      mv -T -- data "$aside"
    fi
    [ -d data ] || mkdir -m 700 -- data.pocqueue-new 2> /dev/null || [ -d data.pocqueue-new ]
    [ -d data ] || {
      for file in priv_validator_state.json upgrade-info.json; do
        [ ! -f "$aside/$file" ] || [ -L "$aside/$file" ] || cp -p -- "$aside/$file" data.pocqueue-new/
      done
      chown --reference="$aside" -- data.pocqueue-new
      chmod --reference="$aside" -- data.pocqueue-new
      mv -T -- data.pocqueue-new data
    } ;;
esac
