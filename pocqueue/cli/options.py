"""Options in the words of whoever typed them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def option_names() -> Iterator[None]:
    """Call the fields of a round in errors as the user wrote them."""
    from pocqueue.errors import InvalidRound

    try:
        yield
    except InvalidRound as exc:
        option = "--window" if exc.field == "window_s" else f"--{exc.field.replace('_', '-')}"
        raise InvalidRound(option, exc.value, exc.allowed) from None
