"""What jobs may run: templates of commands with typed parameters, and images of containers by digest.

The operator writes the list, a TOML file; `commands.toml` beside this module is the one that is used if there is
none. Whoever submits a job chooses from it and fills in parameters; nothing of what he writes is ever read by a
shell. Agents of protocol 1 have nothing but a shell: they get a job as text only if each word of it means itself in
``sh``, and none otherwise.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from pocqueue.hosts.errors import CommandsError, JobRefused
from pocqueue.hosts.records import NewJob
from pocqueue.words import shown

#: Words that a shell takes as they are.
_PLAIN: Final = re.compile(r"[A-Za-z0-9_@%+=:,./-]+")
_PLACE: Final = re.compile(r"\{([a-z][a-z0-9_]*)\}")
_NAME: Final = r"^[a-z][a-z0-9_-]{0,39}$"
#: Words of a container's command, and characters of each.
_MAX_WORDS: Final = 64
_MAX_WORD: Final = 4096

DEFAULT_TIMEOUT_S: Final = 600

_Name = Annotated[str, Field(pattern=_NAME)]
_Parameter = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")]


class _Strict(BaseModel):
    # A misspelt bound would be no bound.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class IntegerParameter(_Strict):
    """A whole number."""

    type: Literal["integer"]
    min: int
    max: int

    def word(self, value: object) -> str | None:
        """Return how the value stands in a command; None: it is not allowed."""
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        return str(value) if is_whole and self.min <= value <= self.max else None  # type: ignore[operator]

    @property
    def allowed(self) -> str:
        """What is, in words."""
        return f"a whole number from {self.min} to {self.max}"


class NumberParameter(_Strict):
    """A number."""

    type: Literal["number"]
    min: float
    max: float

    def word(self, value: object) -> str | None:
        """Return how the value stands in a command; None: it is not allowed."""
        if not isinstance(value, int | float) or isinstance(value, bool):
            return None
        return repr(value) if self.min <= value <= self.max else None

    @property
    def allowed(self) -> str:
        """What is, in words."""
        return f"a number from {self.min:g} to {self.max:g}"


class ChoiceParameter(_Strict):
    """One of some texts."""

    type: Literal["choice"]
    of: tuple[str, ...] = Field(min_length=1)

    def word(self, value: object) -> str | None:
        """Return how the value stands in a command; None: it is not allowed."""
        return str(value) if value in self.of else None

    @property
    def allowed(self) -> str:
        """What is, in words."""
        return f"one of {', '.join(map(repr, self.of))}"


class TextParameter(_Strict):
    """A text that matches a pattern. It never begins with ``-``: it would be taken for an option."""

    type: Literal["text"]
    pattern: str
    max_length: int = Field(default=200, ge=1, le=_MAX_WORD)

    def word(self, value: object) -> str | None:
        """Return how the value stands in a command; None: it is not allowed."""
        if not isinstance(value, str) or len(value) > self.max_length:
            return None
        is_fit = "\0" not in value and not value.startswith("-")
        return value if is_fit and re.fullmatch(self.pattern, value) else None

    @property
    def allowed(self) -> str:
        """What is, in words."""
        return f"a text that matches {self.pattern}, up to {self.max_length} characters"

    @model_validator(mode="after")
    def _is_pattern(self) -> TextParameter:
        try:
            re.compile(self.pattern)
        except re.error as exc:
            raise ValueError(f"pattern cannot be read: {exc}") from None
        return self


class Template(_Strict):
    """A command that may be run."""

    about: str = ""  #: for people
    argv: tuple[str, ...] = Field(min_length=1, max_length=_MAX_WORDS)
    parameters: dict[
        _Parameter,
        Annotated[
            IntegerParameter | NumberParameter | ChoiceParameter | TextParameter,
            Field(discriminator="type"),
        ],
    ] = {}
    max_seconds: int = Field(default=86_400, ge=1, le=86_400)
    memory_mib: int = Field(default=4096, ge=16, le=1 << 24)
    cpus: float = Field(default=1.0, gt=0, le=1024)
    disk_mib: int = Field(default=1024, ge=1, le=1 << 24)
    processes: int = Field(default=256, ge=1, le=100_000)
    network: bool = False

    @model_validator(mode="after")
    def _hangs_together(self) -> Template:
        if _PLACE.search(self.argv[0]):
            raise ValueError("argv begins with a parameter; the program itself has to be fixed")
        named = {name for word in self.argv for name in _PLACE.findall(word)}
        if named != self.parameters.keys():
            odd = ", ".join(sorted(named ^ self.parameters.keys()))
            raise ValueError(f"argv and parameters differ in {odd}")
        return self

    def words(self, given: Mapping[str, object]) -> list[str]:
        """Return the command for these parameters.

        Raises:
            JobRefused: one is missing, unknown or not allowed.
        """
        for name in given:
            if name not in self.parameters:
                known = ", ".join(self.parameters) or "none"
                raise JobRefused(f"parameters.{name} is not known; allowed: {known}.")
        values = {}
        for name, rule in self.parameters.items():
            if (word := rule.word(given.get(name))) is None:
                said = shown(name, given[name]) if name in given else "missing"
                raise JobRefused(f"parameters.{name} is {said}; allowed: {rule.allowed}.")
            values[name] = word
        return [_PLACE.sub(lambda found: values[found[1]], word) for word in self.argv]

    def limits(self) -> dict[str, Any]:
        """Return what a job gets, by the names of `wire.Limits`."""
        return self.model_dump(include={"memory_mib", "cpus", "disk_mib", "processes", "network"})


class Submission(BaseModel):
    """A job as it is asked for; camelCase in JSON."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        alias_generator=to_camel,
        populate_by_name=True,
    )

    kind: Literal["command", "container"] = "command"
    name: str = Field(max_length=100, description="Of a command or an image of the list.")
    parameters: dict[str, int | float | str] = Field(
        default={}, max_length=_MAX_WORDS, description="Of a command."
    )
    argv: tuple[Annotated[str, Field(max_length=_MAX_WORD)], ...] = Field(
        default=(), max_length=_MAX_WORDS, description="What a container starts; none: its own."
    )
    gpus: int = Field(default=0, ge=0, le=64, description="That the job has to itself.")
    vram_mib: int = Field(default=0, ge=0, le=1 << 24, description="Of each of its GPUs, at least.")
    timeout_s: int | None = Field(
        default=None,
        ge=1,
        le=86_400,
        description="Seconds after which it is ended; none: 600, or as many as its command may have.",
    )
    priority: int = Field(default=0, ge=-100, le=100, description="Higher goes first.")
    node: str | None = Field(
        default=None, max_length=100, description="Only there; none: anywhere."
    )


class Commands(_Strict):
    """The list of what may be run."""

    command: dict[_Name, Template] = {}
    image: dict[
        _Name,
        Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._:/-]{0,254}@sha256:[0-9a-f]{64}$")],
    ] = {}

    @classmethod
    def load(cls, path: Path | None) -> Commands:
        """Read the list.

        Args:
            path: of a TOML file; None: the one of this package.

        Raises:
            CommandsError: it cannot be read, or something in it is not allowed; says what.
        """
        name = path or "commands.toml"
        try:
            if path is None:
                text = resources.files(__package__).joinpath("commands.toml").read_text("utf-8")
            else:
                text = path.read_text("utf-8")
            return cls.model_validate(tomllib.loads(text))
        except OSError as exc:
            raise CommandsError(
                f"The list of commands {name} cannot be read ({exc.strerror}); "
                "POCQUEUE_HOSTS_COMMANDS_FILE names it."
            ) from None
        except ValidationError as exc:
            problem = exc.errors()[0]
            where = ".".join(str(part) for part in problem["loc"])
            reason = problem["msg"].removeprefix("Value error, ")
            raise CommandsError(
                f"The list of commands {name} is wrong at {where}: {reason}."
            ) from None
        except ValueError as exc:
            raise CommandsError(f"The list of commands {name} is no TOML: {exc}.") from None

    def job(self, asked: Submission, submitter: str) -> NewJob:
        """Make a job of a submission.

        Args:
            submitter: a wallet or ``admin``.

        Raises:
            JobRefused: it is not in the list, or not as it is there.
        """
        timeout_s = DEFAULT_TIMEOUT_S if asked.timeout_s is None else asked.timeout_s
        if asked.kind == "container":
            spec = self._container(asked)
        elif (template := self.command.get(asked.name)) is None:
            raise _not_listed("command", asked.name, self.command)
        elif asked.argv:
            raise JobRefused("argv is for containers; a command has parameters.")
        elif asked.timeout_s is not None and asked.timeout_s > template.max_seconds:
            raise JobRefused(
                f"timeoutS is {asked.timeout_s}; allowed for {asked.name}: up to {template.max_seconds}."
            )
        else:
            timeout_s = min(timeout_s, template.max_seconds)
            words = template.words(asked.parameters)
            spec = {"argv": words, "text": shell_text(words), "limits": template.limits()}
        return NewJob(
            kind=asked.kind,
            spec=spec,
            submitter=submitter,
            timeout_s=timeout_s,
            gpus=asked.gpus,
            vram_mib=asked.vram_mib,
            priority=asked.priority,
            only_node=asked.node,
        )

    def _container(self, asked: Submission) -> dict[str, Any]:
        if (image := self.image.get(asked.name)) is None:
            raise _not_listed("image", asked.name, self.image)
        if asked.parameters:
            raise JobRefused("parameters are for commands; a container has argv.")
        if any("\0" in word for word in asked.argv):
            raise JobRefused("argv has a NUL character in it, which no program can be given.")
        return {"image": image, "argv": list(asked.argv), "text": None, "limits": {}}


def shell_text(words: list[str]) -> str | None:
    """Return a command as text that means the same in ``sh``; None: there is none that surely does."""
    is_plain = all(_PLAIN.fullmatch(word) for word in words) and "=" not in words[0]
    return " ".join(words) if is_plain else None


def _not_listed(what: str, name: str, known: Mapping[str, object]) -> JobRefused:
    allowed = ", ".join(known) or f"none; the operator's list has no {what}"
    return JobRefused(
        f"name is {shown('name', name)}, which is no {what} of the list; allowed: {allowed}."
    )
