"""How hard the next block is: ASERT in whole numbers, from the chain's own times alone.

``target = first target · 2^(lag / halflife)``, where lag is how far trained blocks are behind one block every
`block_ms`. It is Bitcoin Cash's aserti3 (its specification of 2020-11-15): no window, so no oscillation.
"""

from __future__ import annotations

from pocqueue.pouw.chain.genesis import Parameters
from pocqueue.pouw.chain.records import Clock

#: The target of founding blocks: 2^16 hashes.
FOUNDING_TARGET = (1 << 240).to_bytes(32, "big")
#: A founding block is at least so much later than its parent.
FOUNDING_GAP_MS = 500
#: What a founding block counts for in the weight of its chain.
FOUNDING_WEIGHT = 1

_EASIEST = 2**256 - 1


def asert(target: int, lag_ms: int, halflife_ms: int) -> int:
    """Return ``target · 2^(lag / halflife)``, within 0.013 %, 1 at least.

    Args:
        target: of a chain that is on its schedule.
        lag_ms: behind the schedule; negative: ahead of it.
        halflife_ms: the target doubles every time that the chain is this much later.
    """
    scaled = lag_ms << 16
    # Towards zero, as the published one divides.
    exponent = scaled // halflife_ms if scaled >= 0 else -(-scaled // halflife_ms)
    shift, fraction = exponent >> 16, exponent & 0xFFFF
    cubic = 195766423245049 * fraction + 971821376 * fraction**2 + 5127 * fraction**3 + (1 << 47)
    product = target * (65536 + (cubic >> 48))
    shift -= 16
    return max(1, product >> -shift if shift <= 0 else product << min(shift, 512))


def next_target(parameters: Parameters, clock: Clock) -> bytes:
    """Return the target of a trained block on the one with this clock, 32 bytes, big-endian."""
    first = int.from_bytes(parameters.first_target, "big")
    target = asert(first, clock.lag_ms, parameters.halflife_ms)
    return min(target, _EASIEST).to_bytes(32, "big")


def next_clock(parameters: Parameters, parent: Clock, time_ms: int, *, is_founding: bool) -> Clock:
    """Return the clock of a block on the one with `parent`.

    Founding blocks have no schedule: it begins after the last one. A pause of the whole network counts as
    one halflife at most: else the morning after a night's pause would be a storm of the night's blocks.
    """
    if is_founding:
        return Clock(parent.height + 1, time_ms)
    passed = min(time_ms - parent.time_ms, parameters.halflife_ms)
    return Clock(parent.height + 1, time_ms, parent.lag_ms + passed - parameters.block_ms)


def weight(target: bytes) -> int:
    """Return how many draws a block with this target takes on average."""
    return (1 << 256) // (int.from_bytes(target, "big") + 1)
