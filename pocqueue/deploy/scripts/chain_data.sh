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
    # Of a run that was cut between moving them and giving the node a new folder: the newest, by the time in its name.
    part left sh -c '
      [ -e data ] || [ -L data ] || for each in data.pocqueue-[0-9]*; do
        if [ -d "$each" ] && [ ! -L "$each" ]; then echo "$each"; fi
      done | tail -n 1'
    part size sh -c '[ ! -d data ] || du -s -B1 -- data | cut -f 1'
    part free sh -c 'df -B1 --output=avail -- . | tail -n 1' ;;
  move)
    [ ! -d "$aside" ] || [ ! -d data ] || exit 0
    # A run that was cut has moved it already, and this one ends what that began.
    from=data
    [ ! -d "$aside" ] || from=$aside
    [ -d "$from" ] && [ ! -L "$from" ] || { echo "$folder/.inference/$from is no folder."; exit 66; }
    # The new folder is whole, and on the disk, before the old one is moved: a full disk leaves that in its place. One that is there
    # may be of a run before, and what was signed then is too old.
    trap 'echo "$folder/.inference/data.pocqueue-new cannot be written; the data stay in $folder/.inference/$from, and node is stopped."' EXIT
    rm -rf -- data.pocqueue-new
    mkdir -m 700 -- data.pocqueue-new
    for file in priv_validator_state.json upgrade-info.json; do
      if [ -f "$from/$file" ] && [ ! -L "$from/$file" ]; then
        cp -p -- "$from/$file" data.pocqueue-new/
        sync -- "data.pocqueue-new/$file"
      fi
    done
    chown --reference="$from" -- data.pocqueue-new
    chmod --reference="$from" -- data.pocqueue-new
    sync -- data.pocqueue-new
    trap - EXIT
    [ "$from" = "$aside" ] || mv -T -- data "$aside"
    mv -T -- data.pocqueue-new data ;;
esac
