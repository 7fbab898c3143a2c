"""The table of filesystems: our line is added once, and nobody else's is touched."""

from __future__ import annotations

import pytest

from pocqueue.deploy.facts.fstab import (
    conflicts,
    has_own_line,
    own_line,
    read_fstab,
    with_own_line,
    without_own_line,
)

UUID = "0f814836-0b1e-445f-8411-ded2eba18ce2"
OWN = f"UUID={UUID} /mnt/ssd ext4 defaults,nofail 0 2"


@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "UUID=1 / ext4 defaults 0 1", "UUID=1 / ext4 defaults 0 1\n"]
)
def test_our_line_is_added_and_taken_away(text: str) -> None:
    """Whether the last line has an end or not; a second time changes nothing."""
    added = with_own_line(text, UUID, "/mnt/ssd")
    assert added.splitlines()[-1] == OWN
    assert added.endswith("\n")
    assert with_own_line(added, UUID, "/mnt/ssd") == added
    assert without_own_line(added, UUID, "/mnt/ssd").strip() == text.strip()
    assert has_own_line(read_fstab(added), UUID, "/mnt/ssd")


@pytest.mark.parametrize(
    "line",
    [
        f"UUID={UUID} /mnt/other ext4 defaults,nofail 0 2",
        f"UUID={UUID} /mnt/ssd ext4 defaults 0 2",
        f"UUID={UUID} /mnt/ssd ext4 defaults,nofail 0 0",
        f"UUID={UUID} /mnt/ssd xfs defaults,nofail 0 2",
        "/dev/vdc /mnt/ssd ext4 defaults,nofail 0 2",
        f"{OWN}\n{OWN}",
    ],
)
def test_another_line_for_the_same_is_in_the_way(line: str) -> None:
    """It is not ours to change; the sentence has its number."""
    text = f"# a table\n{line}\n"
    assert not has_own_line(read_fstab(text), UUID, "/mnt/ssd")
    assert "line 2" in conflicts(read_fstab(text), UUID, "/mnt/ssd")[0]
    with pytest.raises(ValueError, match="line 2"):
        with_own_line(text, UUID, "/mnt/ssd")


def test_lines_as_people_write_them() -> None:
    """Tabs, quotes, escapes, missing numbers, comments."""
    text = '\t# x\n\n  LABEL="a"\t/mnt/a\\040b\text4\tdefaults\n'
    [line] = read_fstab(text)
    assert (line.source, line.target, line.kind, line.options, line.rest) == (
        "LABEL=a",
        "/mnt/a b",
        "ext4",
        "defaults",
        "",
    )
    assert line.number == 3


def test_a_path_with_blanks_is_none() -> None:
    """It would be two words there."""
    with pytest.raises(ValueError, match="no path"):
        own_line(UUID, "/mnt/a b")
