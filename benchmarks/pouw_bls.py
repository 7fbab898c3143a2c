"""A committee's key and signatures: what they cost a member, in committees of 4, 7 and 16.

    python -m benchmarks.pouw_bls

By the time that this process has of a core, so that other work on the machine counts little. Each digest is a new
one, as what was checked once is remembered; points of keys are parsed once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from benchmarks.effort import FULL, Effort
from benchmarks.stats import Figure, Sample
from pocqueue.node.keys import SigningKey
from pocqueue.pouw.chain.records import Candidate, KeyGeneration
from pocqueue.pouw.committee.dealing import Dealer, sum_of
from pocqueue.pouw.committee.quorum import quorum
from pocqueue.pouw.slots import bls
from pocqueue.pouw.wire.transactions import Deal

_SIZES = (4, 7, 16)
_NUM_TURNS = 20
_NETWORK = b"n" * 32


def pouw_bls(effort: Effort = FULL) -> list[Figure]:
    """Measure a member's part of signatures and of a key; some seconds."""
    num = effort.runs(_NUM_TURNS)
    return [figure for size in _SIZES for figure in _committee(size, num)]


def _committee(size: int, num: int) -> Iterator[Figure]:
    needed = quorum(size)
    dealers, generation = _candidates(size)
    deals = {place: dealer.deal(generation) for place, dealer in enumerate(dealers)}
    members = [_share(dealer, generation, deals) for dealer in dealers]
    group = sum_of(list(deals.values()))[0]
    digests = [bytes(28) + number.to_bytes(4) for number in range(num)]
    shares = [
        {place + 1: members[place].sign(digest) for place in range(needed)} for digest in digests
    ]
    whole = [bls.combine(found) for found in shares]

    # What is done, for the digest of a number, and the ms that it may take.
    steps: dict[str, tuple[Callable[[int], object], float]] = {
        "a share signed": (lambda at: members[0].sign(digests[at]), 1),
        "a share checked": (
            lambda at: _check(members[0].public_key, digests[at], shares[at][1]),
            2,
        ),
        f"{needed} shares combined": (lambda at: bls.combine(shares[at]), 0.5 * needed),
        "the group's signature checked": (lambda at: _check(group, digests[at], whole[at]), 2),
        "dealt": (lambda _: dealers[0].deal(generation), size),
        "its shares of all opened and checked": (
            lambda _: _share(dealers[0], generation, deals),
            0.15 * size * needed,
        ),
    }
    for what, (step, most) in steps.items():
        times = Sample([_cpu_ms(step, at) for at in range(num)], "ms")
        median, target = times.median, f"at most {most:.3g} ms"
        name = f"pouw: a committee of {size}: {what}"
        yield Figure(name, times, None, "", median, target, median <= most)


def _candidates(size: int) -> tuple[list[Dealer], KeyGeneration]:
    """Return candidates, and the making of their key."""
    keys = [SigningKey.generate() for _ in range(size)]
    dealers = sorted((Dealer(key, _NETWORK) for key in keys), key=lambda dealer: dealer.account)
    candidates = tuple(
        Candidate(dealer.account, dealer.account[:32], dealer.seal_key) for dealer in dealers
    )
    tickets = tuple(candidate.ticket for candidate in candidates)
    return dealers, KeyGeneration(0, 1, candidates, quorum(size), tickets)


def _share(dealer: Dealer, generation: KeyGeneration, deals: dict[int, Deal]) -> bls.SecretKey:
    found = dealer.share(generation, deals, {})
    assert found is not None
    return found


def _check(public_key: bytes, digest: bytes, signature: bytes) -> None:
    assert bls.verify(public_key, digest, signature)


def _cpu_ms(step: Callable[[int], object], at: int) -> float:
    began = time.process_time()
    step(at)
    return (time.process_time() - began) * 1000


if __name__ == "__main__":
    for figure in pouw_bls():
        verdict = "reached" if figure.reached else "MISSED"
        print(f"{figure.name:70} {figure.measured}  {figure.target}: {verdict}")
