"""Logs that are kept as files, `golden/NAME.log`: what differs from run to run has a word in its place."""

from __future__ import annotations

import os
import re
from pathlib import Path

FOLDER = Path(__file__).parent / "golden"
#: In this order: a hash has shorter ones in it.
_WORDS = (
    (r"^\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\]", "[TIME]"),
    (r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", "TIME"),
    (r"\d{8}-\d{6}", "TIME"),
    (r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "UUID"),
    (r"\b([0-9a-f]{64}|[0-9a-f]{40}|[0-9a-f]{16}|[0-9a-f]{12})\b", "HASH"),
    (r"SHA256:[A-Za-z0-9+/]{43}", "SHA256:FINGERPRINT"),
    (r"HEAD is now at \w+", "HEAD is now at HASH"),
    (r"/dev/loop\d+", "/dev/vdc"),
    (r"\bloop\d+\b", "vdc"),
    (r"127\.0\.0\.1:\d{5}\b", "127.0.0.1:PORT"),
    # Bytes, the kernel's number of the disk, and how many of its blocks may have old data.
    (r"(format_volume\.sh \S+ \S+) \d+ \d+ \d+", r"\1 N N N"),
    (r"\bfor \d+ s\b", "for N s"),
    (r"\b\d[\d,.]* (GB|MB|bytes|KiB|MiB|GiB)", r"N \1"),
    (r"[+-]0 s\b", "0 s"),
    (r"(\[INFO\] )\S+@\S+: .*", r"\1USER@SERVER: SYSTEM"),
)


def normal(text: str, *folders: tuple[Path, str]) -> list[str]:
    """Return the lines of a log with words for what differs.

    Args:
        text: of the log.
        folders: paths, and what stands for them.
    """
    for folder, word in folders:
        text = text.replace(str(folder), word)
    lines = []
    for line in text.splitlines():
        for pattern, word in _WORDS:
            line = re.sub(pattern, word, line)
        lines.append(line)
    return lines


def check_golden(name: str, lines: list[str]) -> None:
    """Fail if a log is another one than that in the file; with GOLDEN=write in the environment, it becomes that."""
    path = FOLDER / f"{name}.log"
    text = "\n".join(lines) + "\n"
    if os.environ.get("GOLDEN") == "write":
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert lines == path.read_text().splitlines(), "with GOLDEN=write it is written anew"
