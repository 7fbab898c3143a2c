"""A member's seat in a committee: its place there, and its share of the group's key."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pocqueue.pouw.chain.records import Committee
from pocqueue.pouw.chain.state import State
from pocqueue.pouw.committee.dealing import Dealer
from pocqueue.pouw.slots import bls


@dataclass(frozen=True, slots=True)
class Seat:
    """What a member signs with in an epoch."""

    committee: Committee
    place: int  #: in `Committee.members`
    share: bls.SecretKey  #: of the group's key; of a committee of one it is that key


#: Returns this node's seat in a committee; None: it has none. In the chain's thread.
FindSeat = Callable[[Committee], Seat | None]


def share_key(committee: Committee, place: int) -> bytes:
    """Return the public key of a member's share."""
    return committee.shares[place] if committee.shares else committee.group_key


def seat_in(committee: Committee, account: bytes, secret: bls.SecretKey) -> Seat | None:
    """Return an account's seat in a committee of one; None: it has none there.

    Args:
        committee: of any epoch.
        account: whose seat.
        secret: BLS key of its ticket.
    """
    is_own = committee.members == (account,) and committee.group_key == secret.public_key
    return Seat(committee, 0, secret) if is_own else None


def seat_at(state: State, committee: Committee, dealer: Dealer) -> Seat | None:
    """Return an account's seat in a committee of several, by what was dealt; None: it has none, or not by this state.

    Args:
        state: of a block at which the committee is in office.
        committee: of any epoch.
        dealer: of the account.
    """
    generation = state.generation_of(committee.epoch)
    # Before it is in office, its members' shares are not there yet.
    if generation is None or state.committee_in_office != committee:
        return None
    if dealer.account not in committee.members:
        return None
    place = committee.members.index(dealer.account)
    epoch = generation.epoch
    share = dealer.share(generation, state.deals(epoch), state.complaints(epoch))
    # Of another branch, or of a share that nobody has complained about: it signs nothing.
    is_good = share is not None and share.public_key == share_key(committee, place)
    return Seat(committee, place, share) if share is not None and is_good else None
