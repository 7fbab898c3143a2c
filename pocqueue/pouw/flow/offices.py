"""Who is in office at a block, and who signs a slot: asked for each word of a turn, so what was found once is kept."""

from __future__ import annotations

from typing import NamedTuple

from pocqueue.pouw.chain.fork import Position
from pocqueue.pouw.chain.records import Committee
from pocqueue.pouw.errors import SlotError
from pocqueue.pouw.flow.core import Core
from pocqueue.pouw.wire.slots import Certificate, SignedCertificate

#: Blocks whose committees are kept: a chain's anchor, and that of a newest certificate which is behind it.
_KEPT = 2


class _Known(NamedTuple):
    tip: bytes | None  #: id of the tip by which it is so; None: by any
    committee: Committee


class Offices:
    """The committees by blocks of a node's chain. Of its event loop.

    Args:
        core: of the node.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self._known: dict[bytes, _Known] = {}

    async def at(self, block: bytes) -> Committee | None:
        """Return who is in office at a block; if nobody is, the first committee that comes into office above it.

        Returns:
            None: nobody is in office yet, or that block is not here.
        """
        known, tip = self._known.get(block), self._core.chain.tip
        if known is None or known.tip not in (None, tip.id):
            known = await self._core.in_chain(self._found, block, tip)
            if known is None:
                return None
            self._known[block] = known
            if len(self._known) > _KEPT:
                del self._known[next(iter(self._known))]
        return known.committee

    async def open(self, newest: SignedCertificate | None) -> Committee | None:
        """Return who certifies the next slot: whoever is in office at the anchor of the newest certificate; see `at`.

        Args:
            newest: that one; None: there is none yet.
        """
        anchor = self._core.chain.anchor
        block = anchor.id
        if newest is not None and newest.certificate.anchor_height > anchor.height:
            block = newest.certificate.anchor
        return await self.at(block)

    async def of(
        self, certificate: Certificate, newest: SignedCertificate | None, *, is_asked: bool
    ) -> Committee:
        """Return whose signature a certificate has to have.

        That of an epoch that is over counts for turns up to the one that has ended it: whoever has its keys goes on
        with nothing after that.

        Args:
            certificate: of any slot.
            newest: the newest one here; None: there is none yet.
            is_asked: it is on the way to a certificate that was checked, so it may be of an epoch that is over.

        Raises:
            SlotError: ``missing``: its epoch is not known here yet.
        """
        committee = await self.open(newest)
        if committee is None or certificate.epoch > committee.epoch:
            raise SlotError("missing", f"epoch {certificate.epoch} is not known here yet.")
        if not is_asked or certificate.epoch == committee.epoch:
            return committee
        last = newest.certificate if newest else None
        if last is not None and last.turn < certificate.turn:
            due = await self.at(last.anchor)
            if certificate.epoch < max(last.epoch, due.epoch if due else 0):
                return committee
        return self._core.chain.tip.state.committee(certificate.epoch) or committee

    def _found(self, block: bytes, tip: Position) -> _Known | None:
        """Look for it. In the chain's thread."""
        chain = self._core.chain
        if block not in chain:
            return None
        state = chain.state_at(block)
        office, committee = state.office, state.committee_in_office
        if committee is not None:
            return _Known(None, committee)
        first = tip.state.committee(0 if office is None else office.epoch + 1)
        return None if first is None else _Known(tip.id, first)
