"""Names of GPU queues: ``gpu0`` on one host, ``HOST.gpu0`` on several. Imports nothing of ours."""

from __future__ import annotations

import re

# No leading zeros: ``gpu1`` and ``gpu01`` would be two queues for one device. Three digits are plenty
# for one host. The host is greedy, so ``gpu1.gpu0`` is device 0 of a host named gpu1.
_GPU_QUEUE = re.compile(
    r"(?:(?P<host>[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*)\.)?gpu(?P<index>0|[1-9][0-9]{0,2})"
)


def parse_queue(name: str) -> tuple[str | None, int] | None:
    """Split the name of a GPU queue into its host and its device index.

    Args:
        name: a Celery queue name. A host has letters, digits, dots, ``-`` and ``_``.

    Returns:
        (host, index), host None if the name has none and index 0 to 999; or None if this is
        not the name of a GPU queue.
    """
    match = _GPU_QUEUE.fullmatch(name)
    return None if match is None else (match["host"], int(match["index"]))
