"""What a candidate has to say at a state of the chain, and when the founders' next block is made."""

from __future__ import annotations

from collections.abc import Collection
from types import UnionType

from pocqueue.pouw.chain.difficulty import FOUNDING_GAP_MS
from pocqueue.pouw.chain.genesis import Genesis
from pocqueue.pouw.chain.office import Step, due_step
from pocqueue.pouw.chain.records import KeyGeneration
from pocqueue.pouw.chain.state import State
from pocqueue.pouw.committee.dealing import Dealer
from pocqueue.pouw.wire.transactions import Answer, Complaint, Confirm, Deal

#: Founders make blocks by turns; whose turn is next waits so long for the one before.
_TURN_MS = 1000
#: So long a block waits for candidates that have not dealt yet.
_DEALS_MS = 5000
#: So long for what candidates say of their shares, and for answers; who is busy may need it.
_WORDS_MS = 3000


def steps_of(state: State, dealer: Dealer) -> list[Step]:
    """Return what an account has to say in the next block; nothing, if it is no candidate, or has said it.

    Args:
        state: after a block.
        dealer: of the account.
    """
    generation = state.generation
    place = None if generation is None else generation.place(dealer.account)
    if generation is None or place is None:
        return []
    step = due_step(generation, state.clock.height + 1)
    if step is Deal:
        return [] if place in state.deals(generation.epoch) else [dealer.deal(generation)]
    if step is None:
        return []
    complaints = state.complaints(generation.epoch)
    said: list[Step] = []
    if step is Answer:
        said = [
            dealer.answer(generation, candidate)
            for (other, candidate), answer in complaints.items()
            if other == place and answer is None
        ]
    if place in state.confirmed(generation.epoch):
        return said
    wrong = [
        Complaint(generation.id, other)
        for other, deal in state.deals(generation.epoch).items()
        if (other, place) not in complaints and dealer.opened(generation, other, deal) is None
    ]
    if step is Complaint:
        said += wrong
    # Who came too late to complain says nothing: it would be a member without a share.
    return said if wrong else [*said, Confirm(generation.id)]


def founding_due_ms(
    genesis: Genesis, state: State, account: bytes, waiting: Collection[tuple[bytes, Step]]
) -> int:
    """Return when an account may make the next founding block without hurry, in ms since 1970.

    No rule of the chain: a founder that is away is not waited for longer than this, and who is quicker loses nothing but
    others' deals.

    Args:
        genesis: the network.
        state: after the block that it is built on.
        account: of a supervisor.
        waiting: what waits for a block of candidates' steps, with their accounts.
    """
    generation, clock = state.generation, state.clock
    founders = genesis.supervisors if state.office is None else ()
    if generation is not None:
        founders = tuple(candidate.account for candidate in generation.candidates)
    if not founders:
        return clock.time_ms
    num = len(founders)
    turn = (founders.index(account) - clock.height) % num if account in founders else num
    patience_ms = 0 if generation is None else _patience_ms(state, generation, waiting)
    # Whoever is first begins to hash before the gap is over; the others when its block should be here.
    turn_ms = FOUNDING_GAP_MS + turn * _TURN_MS if turn else 0
    return clock.time_ms + patience_ms + turn_ms


def _patience_ms(
    state: State, generation: KeyGeneration, waiting: Collection[tuple[bytes, Step]]
) -> int:
    step = due_step(generation, state.clock.height + 1)
    if step is None:
        return 0
    num, epoch = len(generation.candidates), generation.epoch

    def have_all(spoken: Collection[int], says: type | UnionType) -> bool:
        """Say whether all candidates have spoken, in the chain or in what waits."""
        heard = {
            generation.place(account)
            for account, one in waiting
            if isinstance(one, says) and one.generation == generation.id
        }
        return len({*spoken} | (heard - {None})) == num

    dealt = state.deals(epoch)
    if step is Deal:
        return 0 if have_all(dealt, Deal) else _DEALS_MS
    if len(dealt) < num:  # it will begin anew, whatever is said
        return 0
    is_asked = step is Answer and None in state.complaints(epoch).values()
    is_heard = have_all(state.confirmed(epoch), Complaint | Confirm)
    return 0 if is_heard and not is_asked else _WORDS_MS
