"""Packages that a node takes beside those of pocqueue itself: those of the extra ``pouw``."""

from __future__ import annotations

from importlib.util import find_spec

from pocqueue.pouw.errors import PouwError

_PACKAGES = ("msgspec", "psutil", "pyblst", "wallycore")


def check_packages() -> None:
    """Return if they are installed.

    Raises:
        PouwError: one is not; says how it comes.
    """
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise PouwError(
            f"The network of useful work takes packages that are not installed here ({', '.join(missing)}): "
            "pip install 'pocqueue[pouw]'."
        )
