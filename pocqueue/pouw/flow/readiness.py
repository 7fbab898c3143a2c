"""Whether a supervisor may act: not before it has what it may have signed earlier.

A slot that is signed twice shows its beacon before its messages are chosen, and parts the network. A supervisor that
has lost its slots, or has an older copy of them, cannot know by itself what it has signed: the chain's blocks and its
peers show it.
"""

from __future__ import annotations

import itertools
import logging
import time

from pocqueue.pouw.flow.core import Core
from pocqueue.pouw.flow.slots import SlotFlow
from pocqueue.pouw.wire.blocks import Header
from pocqueue.pouw.wire.hashes import ZERO

#: Who may have peers waits so long for a first one.
_ALONE_S = 30.0
#: Why it waits is said this often.
_TELL_S = 60.0
#: Blocks that are looked at for the newest trained one: others are made while nobody mines alone.
_LOOKED_BACK = 1000

_log = logging.getLogger(__name__)


class Readiness:
    """What a supervisor asks before it founds blocks or certifies slots.

    Args:
        core, slots: of the node.
    """

    def __init__(self, core: Core, slots: SlotFlow) -> None:
        self._core, self._slots = core, slots
        self._alone_until_s = time.monotonic() + _ALONE_S
        # By level: what waits for a link is said at once, what needs the operator when it has waited for long.
        self._tell_at_s = {logging.WARNING: 0.0, logging.ERROR: self._alone_until_s}
        self._checked: bytes | None = None
        self._is_first: bool | None = None

    def may_act(self) -> bool:
        """Say whether this node has what those have that it is linked to, or may be alone.

        Who names bootstrap peers, or has a past, is not alone before it has waited for a link.
        """
        core = self._core
        if core.is_current.is_set():
            return True
        if core.network.peers:
            return False
        if self._is_first is None:
            has_past = core.chain.tip.height > 0 or self._slots.newest[2] is not None
            self._is_first = not (has_past or core.config.bootstrap_peers)
        if self._is_first or time.monotonic() >= self._alone_until_s:
            return True
        self._tell(
            logging.WARNING,
            f"This supervisor is linked to nobody yet. It waits {_ALONE_S:.0f} s for a peer that may know what it does "
            "not; then it goes on, or founds the network, alone.",
        )
        return False

    async def may_sign(self, *, is_alone: bool = True) -> bool:
        """Say whether this node may certify slots: it may act, and has all slots that blocks of its chain are of.

        Args:
            is_alone: nobody certifies with it. A member of several need not have all: the others would refuse what does
                not follow, and what it said itself of an open turn is on its disk.
        """
        if not self.may_act():
            if self._core.network.peers:
                self._tell(
                    logging.ERROR,
                    "No slot is certified: peers show blocks or slots that are not here. It goes on when it has them; if "
                    "that lasts, look in the log for what it cannot take, or put the newest copy of its folder in place.",
                )
            return False
        tip = self._core.chain.tip.id
        if not is_alone or self._checked == tip:
            return True
        header = await self._core.in_chain(self._newest_trained, tip)
        if header is not None:
            here = await self._slots.num_slots(header.task)
            if here <= header.slot:
                self._tell(
                    logging.ERROR,
                    f"No slot is certified: block {header.height} is of slot {header.slot} of task {header.task.hex()}, "
                    f"and slots before {here} alone are here, so this supervisor may have signed later ones that it "
                    "has lost. Put the newest copy of slots.sqlite3 in place, or link it to a node that has them.",
                )
                return False
        self._checked = tip
        return True

    def _newest_trained(self, tip: bytes) -> Header | None:
        """Return the newest header that names a slot. In the chain's thread."""
        headers = itertools.islice(self._core.chain.ancestors(tip), _LOOKED_BACK)
        return next((header for header in headers if header.message != ZERO), None)

    def _tell(self, level: int, why: str) -> None:
        now_s = time.monotonic()
        if now_s >= self._tell_at_s[level]:
            self._tell_at_s[level] = now_s + _TELL_S
            _log.log(level, "%s %s", self._core.name, why)
