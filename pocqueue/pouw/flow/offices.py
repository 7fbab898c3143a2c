"""Who is in office at a block: asked for each word of a turn, so what was found once is kept."""

from __future__ import annotations

from typing import NamedTuple

from pocqueue.pouw.chain.fork import Position
from pocqueue.pouw.chain.records import Committee
from pocqueue.pouw.flow.core import Core


class _Known(NamedTuple):
    block: bytes
    tip: bytes | None  #: id of the tip by which it is so; None: by any
    committee: Committee


class Offices:
    """The committees by blocks of a node's chain. Of its event loop.

    Args:
        core: of the node.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self._known: _Known | None = None

    async def at(self, block: bytes) -> Committee | None:
        """Return who is in office at a block; if nobody is, the first committee that comes into office above it.

        Returns:
            None: nobody is in office yet, or that block is not here.
        """
        known, tip = self._known, self._core.chain.tip
        if known is None or known.block != block or known.tip not in (None, tip.id):
            known = await self._core.in_chain(self._found, block, tip)
            if known is None:
                return None
            self._known = known
        return known.committee

    def _found(self, block: bytes, tip: Position) -> _Known | None:
        """Look for it. In the chain's thread."""
        chain = self._core.chain
        if not chain.knows(block):
            return None
        state = chain.state_at(block)
        office, committee = state.office, state.committee_in_office
        if committee is not None:
            return _Known(block, None, committee)
        first = tip.state.committee(0 if office is None else office.epoch + 1)
        return None if first is None else _Known(block, tip.id, first)
