"""Whether a certificate is of a time that is here already; and who is told when clocks differ."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable

from pocqueue.pouw.chain.records import Committee
from pocqueue.pouw.errors import SlotError
from pocqueue.pouw.flow.core import Core, now_ms
from pocqueue.pouw.slots.certificate import verify_signed
from pocqueue.pouw.wire.slots import SignedCertificate

#: A certificate may be so far ahead of this node's clock.
MAX_AHEAD_MS = 10_000
#: That clocks differ is said this often.
_WARN_S = 60.0

_log = logging.getLogger(__name__)


class CertificateClock:
    """Holds the times of certificates against this machine's clock.

    Args:
        core: of the node.
        in_thread: runs the check of a signature.
    """

    def __init__(self, core: Core, in_thread: Callable[..., Awaitable[bool]]) -> None:
        self._core, self._in_thread = core, in_thread
        self._warn_at_s = 0.0

    async def check(self, signed: SignedCertificate) -> None:
        """Return if a certificate is of this network and of a time that is here.

        Raises:
            SlotError: ``network`` or ``clock``.
        """
        certificate = signed.certificate
        if certificate.network != self._core.genesis.network:
            raise SlotError("network", f"slot {certificate.slot} is of another network.")
        ahead_ms = certificate.time_ms - now_ms()
        if ahead_ms > MAX_AHEAD_MS:
            await self._warn(signed, ahead_ms)
            raise SlotError(
                "clock",
                f"slot {certificate.slot} is {ahead_ms / 1000:.0f} s ahead of this clock; allowed: "
                f"{MAX_AHEAD_MS // 1000} s.",
            )

    async def _warn(self, signed: SignedCertificate, ahead_ms: int) -> None:
        """Say that two clocks differ, if a committee has signed that and it was not said just now."""
        committee = self._core.chain.tip.state.committee(signed.certificate.epoch)
        if committee is None or time.monotonic() < self._warn_at_s:
            return
        if await self._in_thread(is_by, signed, committee):
            self._warn_at_s = time.monotonic() + _WARN_S
            _log.warning(
                "%s This machine's clock is %.0f s behind the supervisor's; allowed: %d s. Set whichever is wrong: "
                "no slot is taken until then.",
                *(self._core.name, ahead_ms / 1000, MAX_AHEAD_MS // 1000),
            )


def is_by(signed: SignedCertificate, committee: Committee) -> bool:
    """Say whether a certificate is a committee's."""
    try:
        verify_signed(signed, committee)
    except SlotError:
        return False
    return True
