"""What members of the committee in office say about a turn, as it comes in at any node: checked, kept, passed on."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Final, Protocol

from pocqueue.pouw.chain.records import Committee
from pocqueue.pouw.chain.signatures import verify
from pocqueue.pouw.committee.turn import Turn
from pocqueue.pouw.errors import BadEncoding, PeerFault, SlotError
from pocqueue.pouw.flow.core import Core
from pocqueue.pouw.flow.slots import SlotFlow
from pocqueue.pouw.p2p.frames import Kind
from pocqueue.pouw.p2p.service import PeerInfo
from pocqueue.pouw.slots import bls
from pocqueue.pouw.wire.codec import decode, encode
from pocqueue.pouw.wire.slots import Certificate
from pocqueue.pouw.wire.votes import BeaconShare, Proposal, Vote

Word = Proposal | Vote | BeaconShare
KINDS: Final[dict[Kind, type[Word]]] = {
    Kind.PROPOSAL: Proposal,
    Kind.VOTE: Vote,
    Kind.BEACON: BeaconShare,
}
#: Words of one member about one turn that are passed on: some ballots' votes, and two of each that contradict.
MAX_WORDS: Final = 64
#: A member that speaks of a turn that ended so long ago has missed its record, ...
_LATE_S = 0.3
#: ... which is then said again, this often at most. And so long nobody is asked for a turn that may just end.
_AGAIN_S = 0.4
_POINTS = 50


class Listener(Protocol):
    """A turn in which this node has a seat."""

    turn: Turn

    def hear(self, word: Word) -> bool:
        """Take a word of this turn; True if it is new and worth passing on.

        Raises:
            SlotError: it breaks a rule.
        """


class Hearing:
    """Takes the words of members from peers.

    Args:
        core, slots: of the node.
        on_missing: hears of a peer that has turns which are not here.

    Attributes:
        listener: the open turn of this node, if it has a seat.
        on_word: hears of whose words are good: the committee, the turn, the member's place.
    """

    def __init__(self, core: Core, slots: SlotFlow, on_missing: Callable[[PeerInfo], None]) -> None:
        self._core, self._slots, self._on_missing = core, slots, on_missing
        self.listener: Listener | None = None
        self.on_word: Callable[[Committee, int, int], None] | None = None
        self._waiting: defaultdict[int, list[Word]] = defaultdict(list)
        # By turn and member.
        self._counts: Counter[tuple[int, int]] = Counter()
        self._behind: tuple[int, float] | None = None
        self._said_again_s = float("-inf")

    def waiting(self, turn: Turn) -> list[Word]:
        """Return what came for a turn before it was open here, once; what is of earlier turns is forgotten."""
        found = self._waiting.pop(turn.number, [])
        for before in [at for at in self._waiting if at < turn.number]:
            del self._waiting[before]
        # The committee may be another one than was expected.
        return [word for word in found if _about(word).epoch == turn.committee.epoch]

    async def receive(self, peer: PeerInfo, kind: Kind, body: bytes) -> bool:
        """Take a PROPOSAL, VOTE or BEACON; True if it is a member's, of about this turn, and new."""
        try:
            word = decode(body, KINDS[kind])
        except BadEncoding as exc:
            raise PeerFault(_POINTS, str(exc)) from None
        assert isinstance(word, Word)
        about = _about(word)
        committee, due = await self._slots.committee(), self._slots.next_turn
        if about.network != self._core.genesis.network:
            return False
        if committee is None or about.epoch != committee.epoch:
            if committee is None or about.epoch > committee.epoch:
                # The turn that ended this epoch may be missing here, or the block that it made final: then nothing else
                # shows that, as the next turn waits for this node.
                self._is_behind(peer, due, is_far=False)
            return False
        if about.turn > due:
            self._is_behind(peer, due, is_far=about.turn > due + 1)
        if not due - 1 <= about.turn <= due + 1:
            return False
        try:
            is_new = self._heard(word, Turn(about.network, committee, about.turn), due)
        except SlotError as exc:
            if self._slots.is_nobodys_fault(exc):
                return False
            raise PeerFault(_POINTS, f"a {kind.name}: {exc}") from None
        if is_new and self.on_word is not None:
            place = word.head.member if isinstance(word, Proposal) else word.member
            self.on_word(committee, about.turn, place)
        return is_new

    def _heard(self, word: Word, turn: Turn, due: int) -> bool:
        listener = self.listener
        if listener is not None and listener.turn == turn:
            return listener.hear(word)
        check(turn, word)
        place = word.head.member if isinstance(word, Proposal) else word.member
        if any(at < due - 1 for at, _ in self._counts):
            self._counts = Counter({at: n for at, n in self._counts.items() if at[0] >= due - 1})
        self._counts[turn.number, place] += 1
        if self._counts[turn.number, place] > MAX_WORDS:
            return False
        if turn.number >= due:
            self._waiting[turn.number].append(word)
        else:
            self._say_again()
        return True

    def _is_behind(self, peer: PeerInfo, due: int, *, is_far: bool) -> None:
        """Ask a peer for what is missing here, unless the record may be on its way."""
        now_s = time.monotonic()
        if self._behind is None or self._behind[0] != due:
            self._behind = (due, now_s)
            # What was heard once is not heard again: these may be the last words until this node has its say.
            asyncio.get_running_loop().call_later(_AGAIN_S, self._ask, peer, due)
        if is_far or now_s - self._behind[1] > _AGAIN_S:
            self._behind = (due, now_s)
            self._on_missing(peer)

    def _ask(self, peer: PeerInfo, due: int) -> None:
        if self._slots.next_turn == due:
            self._on_missing(peer)

    def _say_again(self) -> None:
        """Say the newest record again if somebody has missed it."""
        now_s, record = time.monotonic(), self._slots.newest_record
        is_late = time.time() - self._slots.heard_at > _LATE_S
        if record is not None and is_late and now_s - self._said_again_s > _AGAIN_S:
            self._said_again_s = now_s
            self._core.network.push(Kind.RECORD, encode(record))


def _about(word: Word) -> Certificate | Vote | BeaconShare:
    """Return what says of which network, epoch and turn a word is."""
    return word.head.certificate if isinstance(word, Proposal) else word


def check(turn: Turn, word: Word) -> None:
    """Return if a word of this turn is its member's, and may be passed on.

    Raises:
        SlotError: as `Turn.check`; of a beacon's share: ``member`` or ``signature``, or ``early``: its certificate is not
            signed by the committee. The share itself is not looked at: whoever combines it does that.
    """
    if isinstance(word, BeaconShare):
        _check_share(turn.committee, word)
    else:
        turn.check(word)


def _check_share(committee: Committee, word: BeaconShare) -> None:
    if word.member >= len(committee.members):
        raise SlotError(
            "member", f"{word.member} is no place in a committee of {len(committee.members)}."
        )
    if not verify(committee.members[word.member], word.id, word.signature):
        raise SlotError("signature", f"a share of a beacon is not by member {word.member}.")
    if not bls.verify(committee.group_key, word.word, word.proof):
        raise SlotError("early", "a share of a beacon comes without its signed certificate.")
