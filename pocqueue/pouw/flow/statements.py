"""Statements: what a committee signs beside its slots. Whoever wants one moves it, members judge it and answer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec

from pocqueue.pouw.chain.records import SUPERVISOR, VERIFIER, Committee
from pocqueue.pouw.chain.signatures import sign, verify
from pocqueue.pouw.committee.seats import FindSeat, Seat, share_key
from pocqueue.pouw.errors import BadEncoding, NotSigned, PeerFault, PouwError
from pocqueue.pouw.flow.core import Bell, Core, Tasks
from pocqueue.pouw.p2p.frames import Kind
from pocqueue.pouw.p2p.limits import Bucket, Conduct
from pocqueue.pouw.p2p.service import PeerInfo
from pocqueue.pouw.slots import bls
from pocqueue.pouw.wire.codec import decode, encode
from pocqueue.pouw.wire.evidence import Fault
from pocqueue.pouw.wire.statements import (
    CloseMotion,
    FaultMotion,
    Motion,
    Statement,
    StatementShare,
    statement_digest,
)

#: A motion is said again this often, until it is signed or given up.
REPEAT_S: Final = 2.0
#: One that is heard again is passed on, and answered, this often at most.
_PASS_S: Final = 1.5
#: Motions that are remembered, and those of one account among them.
_MAX_HEARD, _MAX_OF_SENDER = 1000, 64
#: So many motions a second are passed on and judged, and so many at once: of one sender that are new, as many of it
#: that were heard before, so that nobody keeps new ones out who repeats another's old ones; and of all senders. A link
#: may carry twice as many as the last.
_OF_SENDER: Final = (1.0, 8)
_OF_ALL: Final = (10.0, 100)
_MAX_BUCKETS = 1000
#: For an accusation that a member has trained over and found wrong: an account with four of them is not heard for a
#: while (`Conduct`). A member whose own machine is faulty thereby hears nobody, and there are others.
_WRONG_POINTS = 25
_POINTS = 50
_ACCUSERS = (SUPERVISOR, VERIFIER)

_log = logging.getLogger(__name__)


class _Heard:
    """A motion that was heard."""

    def __init__(self, sender: bytes) -> None:
        self.sender = sender
        self.passed_s = float("-inf")  # monotonic
        self.is_judged = False
        self.answer: bytes | None = None  # our share, as it is sent


class _Moved:
    """A statement of our own that is to be signed."""

    def __init__(self, committee: Committee) -> None:
        self.committee = committee
        self.shares: dict[int, bytes] = {}  # by number, each checked
        self.enough = asyncio.Event()

    def add(self, place: int, share: bytes) -> None:
        self.shares[self.committee.numbers[place]] = share
        if len(self.shares) >= self.committee.threshold:
            self.enough.set()


class Statements:
    """A node's part in them: it moves its own, judges those of others as a member, and passes on both.

    Args:
        core, tasks: of the node.
        find_seat: this node's in a committee.

    Attributes:
        judges: by the statement's type, what says whether one is right. It is asked once for each statement, one
            of a type at a time; it may raise a PouwError if it cannot say yet, then it is asked again with the next
            repeat.
    """

    def __init__(self, core: Core, tasks: Tasks, find_seat: FindSeat) -> None:
        self._core, self._tasks, self._find_seat = core, tasks, find_seat
        self.judges: dict[type, Callable[[Any], Awaitable[bool]]] = {}
        self._heard: dict[bytes, _Heard] = {}
        self._moved: dict[bytes, _Moved] = {}
        # By the statement's type: an end of a task does not wait for accusations.
        self._judging: defaultdict[type, asyncio.Lock] = defaultdict(asyncio.Lock)
        # By sender, empty for all of them, and whether it is for motions that were heard before.
        self._buckets: dict[tuple[bytes, bool], Bucket] = {}
        self._conduct = Conduct()
        #: A judge has said what it thinks of a statement.
        self.judged = Bell()

    async def sign(self, statement: Statement, timeout_s: float = 60.0) -> bytes:
        """Return the committee's signature on a statement, which the caller has found right.

        Raises:
            NotSigned: there is no such committee, or too few of its members have agreed in time.
        """
        core = self._core
        committee = core.chain.tip.state.committee(statement.epoch)
        if committee is None:
            raise NotSigned(f"There is no committee of epoch {statement.epoch} on this chain.")
        digest = statement_digest(core.genesis.network, statement)
        moved = self._moved.setdefault(digest, _Moved(committee))
        heard = self._heard.get(digest) or self._new(digest, core.account)
        heard.is_judged = True  # by the caller
        seat = await core.in_chain(self._find_seat, committee)
        if seat is not None:
            share = seat.share.sign(digest)
            moved.add(seat.place, share)
            heard.answer = self._answer(seat, digest, share)  # somebody else may move the same
        try:
            async with asyncio.timeout(timeout_s):
                while not moved.enough.is_set():
                    core.network.push(Kind.MOTION, encode(self._motion(statement)))
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(REPEAT_S):
                            await moved.enough.wait()
        except TimeoutError:
            raise NotSigned(
                f"{len(moved.shares)} of the {committee.threshold} members have signed it in {timeout_s:g} s that have to."
            ) from None
        finally:
            self._moved.pop(digest, None)
        return bls.combine(dict(list(moved.shares.items())[: committee.threshold]))

    async def receive_motion(self, peer: PeerInfo, body: bytes) -> bool:
        """Take somebody's motion: pass it on if its sender has a ticket, judge it if we are a member.

        Always False: it is passed on here, as one that is repeated is to be answered again.
        """
        try:
            motion = decode(body, Motion)
        except BadEncoding as exc:
            raise PeerFault(_POINTS, str(exc)) from None
        statement, core = motion.asked.statement, self._core
        if motion.network != core.genesis.network:
            raise PeerFault(_POINTS, "a motion of another network")
        digest, now_s = statement_digest(motion.network, statement), time.monotonic()
        heard = self._heard.get(digest)
        if heard is not None and now_s - heard.passed_s < _PASS_S:
            return False
        committee = self._in_office(statement.epoch)
        if committee is None or not self._may_move(motion):
            return False
        if self._conduct.is_banned(motion.sender, now_s):
            return False
        if not verify(motion.sender, motion.id, motion.signature):
            raise PeerFault(_POINTS, "a motion that is not signed by its sender")
        if not self._allows(motion.sender, now_s, is_repeated=heard is not None):
            return False
        heard = heard or self._new(digest, motion.sender)
        heard.passed_s = now_s
        core.network.push(Kind.MOTION, body)
        if heard.answer is not None:
            core.network.push(Kind.SHARE, heard.answer)
        elif not heard.is_judged and type(statement) in self.judges:
            self._tasks.start(self._judge(motion, committee, digest, heard))
        return False

    def receive_share(self, peer: PeerInfo, body: bytes) -> bool:
        """Take a member's share; True if it is one of a motion that was heard here, and new."""
        try:
            share = decode(body, StatementShare)
        except BadEncoding as exc:
            raise PeerFault(_POINTS, str(exc)) from None
        moved = self._moved.get(share.digest)
        committee = self._in_office(share.epoch) if moved is None else moved.committee
        if committee is None or (moved is None and share.digest not in self._heard):
            return False
        is_named = (share.network, share.epoch) == (self._core.genesis.network, committee.epoch)
        if not is_named or share.member >= len(committee.members):
            return False
        if not bls.verify(share_key(committee, share.member), share.digest, share.share):
            raise PeerFault(_POINTS, f"a share that is not that of member {share.member}")
        if moved is not None:
            moved.add(share.member, share.share)
        return True

    def _answer(self, seat: Seat, digest: bytes, share: bytes) -> bytes:
        """Return a share of ours as it is sent."""
        network, epoch = self._core.genesis.network, seat.committee.epoch
        return encode(StatementShare(network, epoch, digest, seat.place, share))

    def _motion(self, statement: Statement) -> Motion:
        core = self._core
        kind = FaultMotion if isinstance(statement, Fault) else CloseMotion
        blank = Motion(core.genesis.network, kind(statement), core.account, bytes(64))  # type: ignore[arg-type]
        return msgspec.structs.replace(blank, signature=sign(core.key, blank.id))

    def _in_office(self, epoch: int) -> Committee | None:
        """Return the committee of an epoch if it is in office at the tip, or is the one before."""
        state = self._core.chain.tip.state
        office = state.office
        if office is None or not office.epoch - 1 <= epoch <= office.epoch:
            return None
        return state.committee(epoch)

    def _may_move(self, motion: Motion) -> bool:
        """Say whether its sender has a ticket for that: who audits accuses, who certifies closes a task."""
        roles = _ACCUSERS if isinstance(motion.asked, FaultMotion) else (SUPERVISOR,)
        state = self._core.chain.tip.state
        return any(state.live_ticket(motion.sender, role) is not None for role in roles)

    def _allows(self, sender: bytes, now_s: float, *, is_repeated: bool) -> bool:
        """Count a motion; False if it is one too many, of its sender or of all."""
        for which, (per_second, burst) in (
            ((sender, is_repeated), _OF_SENDER),
            ((b"", False), _OF_ALL),
        ):
            bucket = self._buckets.pop(which, None) or Bucket(per_second, burst, burst, now_s)
            self._buckets[which] = bucket  # as the newest one
            if len(self._buckets) > _MAX_BUCKETS:
                del self._buckets[next(iter(self._buckets))]
            if not bucket.take(now_s):
                return False
        return True

    def _new(self, digest: bytes, sender: bytes) -> _Heard:
        """Remember a motion, and forget the oldest one if its sender, or all, have too many."""
        own = [at for at, one in self._heard.items() if one.sender == sender]
        if len(own) >= _MAX_OF_SENDER:
            del self._heard[own[0]]
        elif len(self._heard) >= _MAX_HEARD:
            del self._heard[next(iter(self._heard))]
        found = self._heard[digest] = _Heard(sender)
        return found

    async def _judge(
        self, motion: Motion, committee: Committee, digest: bytes, heard: _Heard
    ) -> None:
        """Say what we think of a statement, if we have a seat in its committee."""
        core, statement = self._core, motion.asked.statement
        seat: Seat | None = await core.in_chain(self._find_seat, committee)
        if seat is None:
            return
        async with self._judging[type(statement)]:
            if heard.is_judged or self._conduct.is_banned(motion.sender, time.monotonic()):
                return
            try:
                is_right = await self.judges[type(statement)](statement)
            except PouwError as exc:
                _log.info("%s A statement is not judged yet: %s", core.name, exc)
                return
            heard.is_judged = True
        if is_right:
            heard.answer = self._answer(seat, digest, seat.share.sign(digest))
            core.network.push(Kind.SHARE, heard.answer)
        else:
            _log.warning(
                "%s A statement of %s is not right: %s",
                core.name,
                motion.sender.hex()[:16],
                statement,
            )
            if isinstance(statement, Fault):
                self._conduct.charge(motion.sender, _WRONG_POINTS, time.monotonic())
        self.judged.ring()
