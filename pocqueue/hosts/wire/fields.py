"""The fields of messages, as strangers send them: bounded, and read generously where that costs nothing.

`Line` is one printable line, `Text` any text, `Id` a name of ours (empty for what cannot be one), `Log` what a job has written.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, get_args

from pydantic import (
    AliasGenerator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
)
from pydantic.alias_generators import to_camel

from pocqueue.hosts.protocol import ErrorText

#: Characters of a result's logs that are taken; the store keeps fewer, and notes that it has cut.
MAX_LOG = 300_000

UNKNOWN = "unknown"
_ID = re.compile(r"[\w.:-]{1,100}", re.ASCII)


def _plain(value: Any) -> Any:
    """Make one printable line of a text that a stranger sent; what is not there is unknown."""
    if value is None or value == "":
        return UNKNOWN
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    return (one_line(value) or UNKNOWN) if isinstance(value, str) else value


def one_line(text: str) -> str:
    """Return a text as one printable line: control characters and halves of surrogate pairs are blanks."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _text(value: Any) -> Any:
    """Take any JSON for a text: what a job has written is worth more than its type."""
    if value is None:
        return ""
    # No database keeps NUL in a text.
    return (value if isinstance(value, str) else json.dumps(value)).replace("\0", "\ufffd")


def _log(value: Any) -> Any:
    """Take what a job has written, without the middle of what is too long: it may wait for a database."""
    text = _text(value)
    half = MAX_LOG // 2
    return text if len(text) <= MAX_LOG else f"{text[:half]}\n… cut …\n{text[-half:]}"


def _id(value: Any) -> Any:
    """Make nobody's id of what cannot be one."""
    return value if not isinstance(value, str) or _ID.fullmatch(value) else ""


def _status(value: Any) -> Any:
    """Take a status that is not known for a failure."""
    return value if value in {"completed", "cancelled", "timeout"} else "failed"


def _isolation(value: Any) -> Any:
    """Take an engine of containers for a container."""
    return "container" if value in ("docker", "podman") else value


def _known_kinds(value: Any) -> Any:
    """Leave out kinds of jobs that only newer agents know."""
    return [kind for kind in value if kind in get_args(Kind)] if isinstance(value, list) else value


#: What jobs are run in: a container of Docker or podman, bubblewrap, or nothing; then only jobs that need nothing.
Isolation: TypeAlias = Literal["none", "bubblewrap", "container"]
Kind: TypeAlias = Literal["test", "command", "container"]

Line = Annotated[str, BeforeValidator(_plain), Field(max_length=200)]
Text = Annotated[str, BeforeValidator(_text), Field(max_length=1000)]
Id = Annotated[str, BeforeValidator(_id)]
Hex = Annotated[str, Field(pattern=r"^[0-9a-f]*$", max_length=128)]
Attempt = Annotated[int, Field(ge=1, le=1_000_000)]
Log = Annotated[str, BeforeValidator(_log)]
LogPart = Annotated[str, BeforeValidator(_text), Field(max_length=64 << 10)]
Status = Annotated[Literal["completed", "failed", "cancelled", "timeout"], BeforeValidator(_status)]
#: The engine of a container may be named, and is a ``container``.
AnyIsolation = Annotated[Isolation, BeforeValidator(_isolation)]
Kinds = Annotated[tuple[Kind, ...], BeforeValidator(_known_kinds)]


class Message(BaseModel):
    """A JSON object on the wire."""

    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        alias_generator=AliasGenerator(alias=to_camel),
        populate_by_name=True,
        allow_inf_nan=False,
    )

    def to_json(self) -> str:
        """Return it as it is sent: without what is None."""
        return self.model_dump_json(by_alias=True, exclude_none=True)


_Any = TypeVar("_Any")


class BadMessage(ValueError):
    """What came is no message; its text is one of `ErrorText`."""


def read(kind: TypeAdapter[_Any], text: str | bytes) -> _Any:
    """Read a message.

    Raises:
        BadMessage: it is none of this kind.
    """
    try:
        return kind.validate_json(text)
    except ValidationError as exc:
        # Nothing of the message goes on, as it may have a token in it.
        tags = {"union_tag_invalid", "union_tag_not_found"}
        is_unknown = any(error["type"] in tags for error in exc.errors(include_url=False))
    except RecursionError:
        is_unknown = False
    raise BadMessage(ErrorText.UNKNOWN_TYPE if is_unknown else ErrorText.INVALID_FORMAT)
