# Makes a venv with the hub's program, beside the place where it is then put as a whole.
# Arguments: the folder; the version.
export LC_ALL=C PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
umask 022
path=$1 version=$2
mkdir -p -- "$(dirname -- "$path")"
# A venv has its own path in its programs: it is made in its place, and is ready when its last file is there.
python3 -m venv -- "$path"
"$path/bin/python" -m pip install --quiet "huggingface_hub==$version"
"$path/bin/hf" version
