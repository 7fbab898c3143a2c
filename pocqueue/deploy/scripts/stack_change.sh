# What of pocqueue on this server is done at once.
# Arguments: what, and its own:
#   account OPT ETC STATE          the user and the folders
#   wheel OPT NAME SHA-256         the wheel, in base64 in standard input
#   env ETC                        the variables, in standard input (common/take.sh)
#   unit FOLDER NAME               a unit's file, or compose's, in standard input (common/take.sh)
#   reload                         systemd reads its unit files anew
#   link OPT VERSION               that version is the one that runs at the next start; the one before it is `previous`
#   image OPT IMAGE                the same of compose's image
# Exit codes: 0; 65 not all of it arrived, or `link`: the version is not complete.
export LC_ALL=C
umask 022
. common/take.sh
what=$1
shift
case $what in
  account)
    getent passwd pocqueue > /dev/null ||
      useradd --system --user-group --home-dir "$3" --shell /usr/sbin/nologin pocqueue
    mkdir -p -- "$1" "$2" "$3"
    chown root:root -- "$1"
    chmod 0755 -- "$1"
    chown root:pocqueue -- "$2"
    chmod 0750 -- "$2" "$3"
    chown pocqueue:pocqueue -- "$3" ;;
  wheel)
    dir=$1/wheels/$3
    mkdir -p -- "$dir"
    base64 -d > "$dir/$2.pocqueue-tmp"
    [ "$(sha256sum < "$dir/$2.pocqueue-tmp" | cut -c 1-64)" = "$3" ] || { echo "$2 did not arrive as it was sent"; exit 65; }
    mv -f -- "$dir/$2.pocqueue-tmp" "$dir/$2" ;;
  env)
    file=$1/pocqueue.env
    # Nobody but root from its first byte on; then the service's user, too.
    (umask 077; take "$file.pocqueue-tmp")
    chown root:pocqueue -- "$file.pocqueue-tmp"
    chmod 0640 -- "$file.pocqueue-tmp"
    mv -f -- "$file.pocqueue-tmp" "$file" ;;
  unit)
    take "$1/$2.pocqueue-tmp"
    mv -f -- "$1/$2.pocqueue-tmp" "$1/$2" ;;
  reload) systemctl daemon-reload ;;
  link | image)
    kind=
    [ "$what" = link ] || kind=-image
    [ "$what" = image ] || [ -f "$1/$2/.ready" ] || { echo "$1/$2 is not complete"; exit 65; }
    current=$1/current$kind previous=$1/previous$kind
    before=$(readlink -- "$current" || true)
    [ "$before" != "$2" ] || exit 0
    # Who goes back stays there, however often.
    if [ -n "$before" ] && [ "$(readlink -- "$previous" || true)" != "$2" ]; then
      ln -sfn -- "$before" "$previous.pocqueue-tmp"
      mv -fT -- "$previous.pocqueue-tmp" "$previous"
    fi
    ln -sfn -- "$2" "$current.pocqueue-tmp"
    mv -fT -- "$current.pocqueue-tmp" "$current" ;;
esac
