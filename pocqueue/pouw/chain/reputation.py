"""Reputation: what an account's work on clients' tasks has been like. Input to matching, nothing else.

(1 + good) / (2 + good + bad), where 100 certified slots are one good, 20 missed ones in a row one bad and a fault 20.
Both are halved every 10,000 blocks: when they are read or added to, so that no block has to touch all accounts.
"""

from __future__ import annotations

from typing import Final

import msgspec

from pocqueue.pouw.chain.records import Reputation, reputation_key
from pocqueue.pouw.chain.state import Draft, State
from pocqueue.pouw.chain.tasks import MILLION

#: What a run of missed slots and a fault weigh, in hundredths.
MISSED: Final = 100
FAULT: Final = 2000
PERIOD_BLOCKS: Final = 10_000
#: More is not counted, in hundredths.
_MOST: Final = 2**40


def current(state: State | Draft, account: bytes) -> Reputation:
    """Return what is known of an account's work at this state, halved as often as is due."""
    known, period = state.reputation(account), state.clock.height // PERIOD_BLOCKS
    halvings = period - known.period
    return Reputation(known.good >> halvings, known.bad >> halvings, period)


def reputation(state: State | Draft, account: bytes) -> int:
    """Return an account's reputation in millionths: above 0, below a million."""
    found = current(state, account)
    return MILLION * (100 + found.good) // (200 + found.good + found.bad)


def note(draft: Draft, account: bytes, *, good: int = 0, bad: int = 0) -> None:
    """Add to what is known of an account's work, in hundredths: a certified slot is one."""
    if good or bad:
        found = current(draft, account)
        known = msgspec.structs.replace(
            found, good=min(found.good + good, _MOST), bad=min(found.bad + bad, _MOST)
        )
        draft.put(reputation_key(account), known)
