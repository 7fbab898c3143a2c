"""What the scripts may remove, end or overwrite on a server: this list, and nothing else."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

#: By script: what it removes or ends, and what that is.
REMOVES = {
    # Ours alone, under names that nothing else has: what an earlier try left behind, or what did not arrive whole.
    "common/take.sh": {"rm $1"},
    "admin_keys.sh": {"rm $new"},
    "backup_keys.sh": {"rm $archive.new"},
    "chain_data.sh": {"rm data.pocqueue-new"},
    "job_start.sh": {"rm $new", "rm $dir/rc"},
    "new_key.sh": {"truncate $(tr"},
    "settings_file.sh": {"rm $new"},
    # A folder that is empty, or else it fails.
    "clone.sh": {"rmdir $path"},
    # A content of the model whose hash is wrong; the words of a key that are here, by their hash.
    "load_model.sh": {"rm $blob"},
    "key_answer.sh": {"rm $file"},
    # The one thing that cannot be undone, behind its own look at the disk.
    "format_volume.sh": {"mkfs.ext4 $label"},
    # What the journal takes back.
    "node_file.sh": {"rm $name"},
    "monitoring.sh": {"rm $folder/${pair%%=*}", "rmdir $folder", "docker compose down"},
    "services_down.sh": {"docker compose $files down"},
    "unmount_volume.sh": {"umount $folder"},
}
_REMOVING = re.compile(
    r"(?:^|[;&|({\s])(rm|rmdir|unlink|shred|truncate|dd|umount|mkfs\.\w+|mkswap|lvremove)((?: -\S+)*) \"?(\$\(tr|[^\s\";)]+)"
)
_ENDING = re.compile(r"docker compose (?:[^;)\n]*?)\bdown\b[^;)\n]*")
#: What would lose what others have, in any script.
NEVER = (
    *(r"\bdown\b[^\n]*(-v\b|--volumes|--rmi)", r"\bgit\b[^\n]*\b(reset|clean)\b", r"-delete\b"),
    *(r"docker[^\n]*\b(prune|volume rm|image rm|system)\b", r"wipefs -(?!n)", r"mkfs[^\n]* -F\b"),
    *(r"rm -\S*r\S* (?!-- data\.pocqueue-new)", r"apt-get[^\n]*\b(remove|purge|autoremove)\b"),
    *(r"systemctl restart docker", r"\breboot\b(?!-)[^\n]*now", r"unsafe-reset-all"),
)


def scripts() -> dict[str, str]:
    """Return the lines of each script that are no comments."""
    folder = Path(str(resources.files("pocqueue.deploy").joinpath("scripts")))
    return {
        str(path.relative_to(folder)): "\n".join(
            line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")
        )
        for path in sorted(folder.rglob("*.sh"))
    }


def removed(text: str) -> set[str]:
    """Return what a script removes or ends, without what it says to people."""
    text = re.sub(r"`[^`\n]*`", "", text.replace("\\`", "`"))
    found = {f"{verb} {what}" for verb, _, what in _REMOVING.findall(text)}
    return found | {each.strip() for each in _ENDING.findall(text)}


def test_scripts_remove_what_is_named_here_and_nothing_else() -> None:
    """A new line that removes something has to be put into the list by whoever writes it."""
    found = {name: what for name, text in scripts().items() if (what := removed(text))}
    assert found == REMOVES


def test_nothing_of_others_can_be_lost() -> None:
    """No volumes, no edits in a clone, no signature of a disk, no package, no restart of docker."""
    for name, text in scripts().items():
        for pattern in NEVER:
            assert not re.search(pattern, text), (name, pattern)
