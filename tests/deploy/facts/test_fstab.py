"""The table of filesystems: our line is known among others, and which stand in its way."""

from __future__ import annotations

import pytest

from pocqueue.deploy.facts.fstab import (
    conflicts,
    has_own_line,
    own_line,
    read_fstab,
)

UUID = "0f814836-0b1e-445f-8411-ded2eba18ce2"
OWN = f"UUID={UUID} /mnt/ssd ext4 defaults,nofail 0 2"


def test_our_line_is_known() -> None:
    """As it would be written, among others."""
    assert own_line(UUID, "/mnt/ssd") == OWN
    lines = read_fstab(f"UUID=1 / ext4 defaults 0 1\n{OWN}\n")
    assert has_own_line(lines, UUID, "/mnt/ssd")
    assert conflicts(lines, UUID, "/mnt/ssd") == ()


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
