"""Which GPUs the image of an mlnode is built for: what is known of it by its tag, before any of its many gigabytes are loaded."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

#: Part of the name of the image that computes; its service is called otherwise in every release.
MLNODE = "mlnode"
#: The check of it, as `--ignore` takes it, and what to do where it fails.
CAPABILITY = "gpu-capability"
UNFIT = "Set GONKA_REF to a commit whose docker-compose.mlnode.yml names an image for these GPUs, or use other GPUs."
#: Compute capabilities of the Blackwell GPUs: B200, B300, RTX 5090 and RTX PRO 6000, GB10.
_BLACKWELL = frozenset({"10.0", "10.3", "12.0", "12.1"})


@dataclass(frozen=True, slots=True)
class BuiltFor:
    """What is known of an image.

    Attributes:
        runs: compute capabilities that it is known to run on.
        fails: those that it is known not to run on. Of all others nothing is known.
    """

    runs: frozenset[str] = frozenset()
    fails: frozenset[str] = frozenset()

    def runs_on(self, capabilities: Iterable[str]) -> bool | None:
        """Say whether it runs on all of these; None: that is not known."""
        found = frozenset(capabilities)
        if found & self.fails:
            return False
        return True if found and found <= self.runs else None


#: By the tag, the first that fits. Upstream's page of its hardware lists Ampere, Ada and Hopper; until 3.0.12 Blackwell had
#: images of its own (upstream's announcement of 3.0.12-post6 names all three). 3.0.13 and 3.0.14 are one image for all:
#: operators have published rates of theirs on A100, H100, H200 and B200.
_TAGS = (
    (r".*-blackwell-sm120", BuiltFor(frozenset({"12.0"}))),
    (r".*-blackwell", BuiltFor(frozenset({"10.0"}))),
    (
        r"3\.0\.(\d|1[0-2])(-post\d+)?",
        BuiltFor(frozenset({"8.0", "8.6", "8.9", "9.0"}), _BLACKWELL),
    ),
    (r"3\.0\.1[34](-\w+)?", BuiltFor(frozenset({"8.0", "9.0", "10.0"}))),
)


def built_for(image: str) -> BuiltFor:
    """Return what is known of an image.

    Args:
        image: as compose names it.

    >>> built_for("ghcr.io/product-science/mlnode:3.0.12-post6").runs_on(["12.0"])
    False
    >>> built_for("ghcr.io/product-science/mlnode:3.1.0@sha256:00").runs_on(["9.0"]) is None
    True
    """
    name, _, tag = image.partition("@")[0].rpartition("/")[2].partition(":")
    if name != MLNODE:
        return BuiltFor()
    return next((known for pattern, known in _TAGS if re.fullmatch(pattern, tag)), BuiltFor())


def computing_image(images: Iterable[str]) -> str:
    """Return the one of a project's images that computes; empty: none of them."""
    return next((each for each in images if MLNODE in each.rpartition("/")[2]), "")
