"""How messages show what they speak of: numbers of things, and values that somebody gave."""

from __future__ import annotations

import re


def counted(num: int, noun: str) -> str:
    """Return a number of things, such as ``1 batch`` or ``2,000 valid nonces``."""
    if num != 1:
        noun += "es" if noun.endswith(("ch", "s")) else "s"
    return f"{num:,} {noun}"


def shown(field: str, value: object) -> str:
    """Return a value as a message may repeat it: short, and without what may be secret.

    Of a URL that is the user, the password, the path and the query, of a token all of it.

    Args:
        field: its name, such as ``params.model``.
        value: what was given.
    """
    if "token" in field.lower() and value is not None:
        return "'…'"
    if isinstance(value, dict) and value:
        return f"an object with {', '.join(map(repr, value))}"[:80]
    if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        return f"a list of {len(value)}"
    if isinstance(value, str) and ("url" in field.lower() or "://" in value):
        scheme, between, rest = value.partition("://")
        if not between or not scheme.isalnum():
            scheme, between, rest = "", "", value
        _, at, place = rest.rpartition("@")
        host = re.split(r"[/?#]", place, maxsplit=1)[0]
        path = place[len(host) :]
        value = f"{scheme}{between}{at and '…@'}{host}{path if path in {'', '/'} else '/…'}"
    text = repr(value)
    if len(text) > 80:
        size = len(value) if isinstance(value, str) else len(text)
        text = f"{text[:60]}… ({size} characters)"
    return text
