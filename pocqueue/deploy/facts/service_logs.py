"""Why a service does not stay up, as its last lines tell: causes that are known, each with what to do."""

from __future__ import annotations

import re

_CAUSES = (
    (
        r"environment variable \S+ is required|is required but not set|parameter not set",
        "a variable of its is missing: see that .env is what phase 3 writes",
    ),
    (
        r"upgrade handler is missing",
        "the chain is newer than this version of the software: set GONKA_REF to the release that the network runs",
    ),
    (
        r"wrong Block\.Header\.AppHash|app ?hash mismatch",
        "its software computes another state than the network: set GONKA_REF to the release that the network runs",
    ),
    (
        r"failed to load .*version does not exist|failed to load latest version|corrupt",
        "its chain data are damaged; they are left as they are: see docs/deploy.md on how to begin anew from a snapshot",
    ),
    (
        r"invalid path .*must be an existing directory",
        "its data folder is missing below .inference: was it moved away? Make an empty one, or put it back",
    ),
    (r"no space left on device", "the disk is full: free some of it"),
    (
        r"address already in use|port is already allocated",
        "another program has its port: see `deploy check`",
    ),
    (
        r"no such host|temporary failure in name resolution",
        "it cannot resolve a name: mend the server's DNS",
    ),
    (
        r"connection refused|i/o timeout|context deadline exceeded|failed to download genesis",
        "it does not reach the network's nodes: see SEED_API_URL, and the firewall",
    ),
    (
        r"genesis doc hash|genesis file .*(?:does not|mismatch)",
        "its genesis is another chain's: see SEED_API_URL",
    ),
    (r"permission denied", "it may not use its own folders: see who owns .inference and .tmkms"),
    (r"out of memory|cannot allocate memory", "the memory is full: end what else runs there"),
)
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def known_causes(log: str) -> tuple[str, ...]:
    """Return what the lines of a service tell of why it ends; empty: nothing that is known.

    >>> known_causes("write /root/.inference/x: no space left on device")
    ('the disk is full: free some of it',)
    """
    plain = _COLOURS.sub("", log)
    return tuple(said for pattern, said in _CAUSES if re.search(pattern, plain, re.IGNORECASE))
