"""Types of fields that are checked where they enter the system, each with the words for its bounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, Field, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from pocqueue.errors import InvalidRound

MAX_TEXT = 256
MAX_URL = 2048

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Allowed:
    """What a field may be, in the words of an error message; stands behind the bounds it speaks of.

    Whatever is wrong with a value, these words are then pydantic's message (`msg`).
    """

    words: str

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.custom_error_schema(
            handler(source), custom_error_type="allowed", custom_error_message=self.words
        )


def build(
    model: type[Model], fields: Mapping[str, Any], flat: Sequence[type[BaseModel]] = ()
) -> Model:
    """Make a model.

    Args:
        model: its class.
        fields: by name.
        flat: models whose fields are given among the others.

    Raises:
        InvalidRound: a field is out of bounds; names the field, the value and what is allowed.
    """
    try:
        return model.model_validate(fields)
    except ValidationError as exc:
        problem = exc.errors()[0]
        if isinstance(raised := problem.get("ctx", {}).get("error"), InvalidRound):
            raise raised from None
        name = str(problem["loc"][0]) if problem["loc"] else "round"
        if problem["type"] != "missing":
            raise InvalidRound(name, problem["input"], problem["msg"]) from None
        # For a missing field pydantic's input is all the others.
        raise InvalidRound(name, None, _words([model, *flat], name) or problem["msg"]) from None


def _words(models: Sequence[type[BaseModel]], name: str) -> str | None:
    fields = (model.model_fields.get(name) for model in models)
    items = (item for field in fields if field is not None for item in field.metadata)
    return next((item.words for item in items if isinstance(item, Allowed)), None)


def _printable(text: str) -> str:
    if not text.strip():
        raise PydanticCustomError("allowed", f"1 to {MAX_TEXT} characters, not all of them blank")
    if not text.isprintable():
        raise PydanticCustomError("allowed", f"1 to {MAX_TEXT} printable characters on one line")
    return text


def _http_url(url: str) -> str:
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(url)
        good = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good or any(c.isspace() for c in url):
        raise PydanticCustomError("allowed", "an http:// or https:// URL with a host")
    if parts.username is not None:
        raise PydanticCustomError("allowed", "a URL without a user name or password in it")
    return url


Text = Annotated[
    str,
    Field(min_length=1, max_length=MAX_TEXT),
    Allowed(f"1 to {MAX_TEXT} printable characters"),
    AfterValidator(_printable),
]
HttpUrl = Annotated[
    str,
    Field(max_length=MAX_URL),
    Allowed(f"an http:// or https:// URL of at most {MAX_URL} characters"),
    AfterValidator(_http_url),
]
