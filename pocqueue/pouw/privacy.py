"""What differential privacy a task's training gives: an accountant for Gaussian noise, in exact decimals.

A message of a private task is one release: the sum of gradients, each clipped to a norm, with Gaussian noise of
`noise_multiplier` times that norm. Whoever sees T messages that a training sample may be in can tell whether it is in the
data only as far as (epsilon, delta) allows, with

    epsilon = min over a of T * a / (2 * s^2) + ln(1 - 1/a) - (ln delta + ln a) / (a - 1)

where s is the noise multiplier, a the order (Rényi differential privacy of the Gaussian mechanism, Mironov 2017, corollary 3; to epsilon and delta as in Canonne, Kamath and
Steinke 2020, proposition 12). No amplification by sampling is counted on: which samples a message is made of is public.

Of the chain, so in decimals: their logarithms are rounded correctly by definition, those of floats as a machine's
library likes.
"""

from __future__ import annotations

import functools
from decimal import Context, Decimal
from typing import Final

#: Orders that are tried: those of dp-accounting 0.6.0.
ORDERS: Final = (
    *(Decimal(f"{tenths}e-1") for tenths in range(11, 110)),
    *map(Decimal, range(11, 64)),
    *map(Decimal, (128, 256, 512, 1024)),
)
# All arithmetic is in it, whatever the thread's own is.
_CONTEXT: Final = Context(prec=28)


def epsilon(noise_multiplier: Decimal, num_messages: int, delta: Decimal) -> Decimal:
    """Return the epsilon of so many messages.

    Args:
        noise_multiplier: standard deviation of the noise over the norm that gradients are clipped to; > 0.
        num_messages: 0 and up.
        delta: above 0, below 1.
    """
    if num_messages == 0:
        return Decimal(0)
    add, times = _CONTEXT.add, _CONTEXT.multiply
    each = times(num_messages, _loss(noise_multiplier))
    found = min(add(times(each, order), extra) for order, extra in _extras(delta))
    return max(found, Decimal(0))


def allowed_messages(noise_multiplier: Decimal, delta: Decimal, limit: Decimal) -> int:
    """Return the largest number of messages for which `epsilon` is not above a limit; 0: it is above that with one.

    Args:
        noise_multiplier, delta: as of `epsilon`.
        limit: of epsilon.
    """
    loss = _loss(noise_multiplier)
    subtract, times = _CONTEXT.subtract, _CONTEXT.multiply
    found = max(
        int(_CONTEXT.divide_int(max(subtract(limit, extra), Decimal(0)), times(loss, order)))
        for order, extra in _extras(delta)
    )
    # A quotient may be rounded the other way than `epsilon` is.
    while epsilon(noise_multiplier, found + 1, delta) <= limit:
        found += 1
    while found and epsilon(noise_multiplier, found, delta) > limit:
        found -= 1
    return found


def least_noise(num_messages: int, delta: Decimal, limit: Decimal, most: int) -> Decimal | None:
    """Return the smallest noise multiplier, in thousandths, with which so many messages have no epsilon above a limit.

    Args:
        num_messages: 1 and up.
        delta, limit: as of `allowed_messages`.
        most: the largest that is looked at.

    Returns:
        None: that one is not enough.
    """
    low, high = 0, 1000 * most  # of those, this one alone may be enough
    if allowed_messages(Decimal(most), delta, limit) < num_messages:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        is_enough = allowed_messages(Decimal(middle).scaleb(-3), delta, limit) >= num_messages
        low, high = (low, middle) if is_enough else (middle, high)
    return Decimal(high).scaleb(-3)


def _loss(noise_multiplier: Decimal) -> Decimal:
    """Return what a message adds for each unit of the order: 1 / (2 * noise_multiplier^2)."""
    return _CONTEXT.divide(
        1, _CONTEXT.multiply(2, _CONTEXT.multiply(noise_multiplier, noise_multiplier))
    )


@functools.lru_cache(64)
def _extras(delta: Decimal) -> tuple[tuple[Decimal, Decimal], ...]:
    """Return each order, with what is added to the losses there."""
    add, subtract, divide = _CONTEXT.add, _CONTEXT.subtract, _CONTEXT.divide
    log = _CONTEXT.ln
    found = []
    for order in ORDERS:
        above = log(subtract(1, divide(1, order)))
        below = divide(add(log(delta), log(order)), subtract(order, 1))
        found.append((order, subtract(above, below)))
    return tuple(found)
