"""Options that several commands take, each declared once, and errors in the words of whoever typed them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Annotated

import typer


def _load_env_file(path: Path | None) -> Path | None:
    if path is not None:
        from pocqueue.env_file import load_env_file

        load_env_file(path)
    return path


def check_output(output: Path | None) -> Path | None:
    """Find out now, not after the round, that its proofs could not be written."""
    from pocqueue.errors import SettingsError

    if output is None:
        return None
    if output.is_dir():
        raise SettingsError(f"--output is {str(output)!r}, a folder; allowed: a file's path.")
    folder = output.absolute().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise SettingsError(
            f"--output is {str(output)!r}, but {folder} is no folder that can be written to; "
            "make it, or name another file."
        )
    return output


#: Its variables are in the environment before the command runs.
EnvFile = Annotated[
    Path | None,
    typer.Option(
        "--env-file",
        callback=_load_env_file,
        help="File with lines NAME=value or export NAME=value; the environment goes before it.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Watch = Annotated[bool, typer.Option("--watch", help="Go on until Ctrl-C.")]
#: It can be written to, as far as anybody can tell beforehand.
Output = Annotated[
    Path | None,
    typer.Option(callback=check_output, help="File for the proofs [default: in the state folder]."),
]
Port = Annotated[
    int | None,
    typer.Option(
        min=0, max=65535, help="Port to listen on, instead of the setting; 0 takes a free one."
    ),
]
Host = Annotated[str | None, typer.Option(help="Address to listen on, instead of the setting.")]

Model = Annotated[
    str | None,
    typer.Option(help="Model: embedded, a folder or a hub id [default: POCQUEUE_MODEL]."),
]
DeployedModel = Annotated[
    str | None, typer.Option(help="Deployed model; needed if the live GPUs have several.")
]
SeqLen = Annotated[int, typer.Option(help="Positions of one nonce's input.")]
BatchSize = Annotated[int, typer.Option(help="Nonces of one forward pass.")]
Window = Annotated[float, typer.Option(help="Seconds until the deadline, up to 3600.")]
ValidRate = Annotated[float, typer.Option(help="Share of nonces to be valid, above 0 and below 1.")]
RTarget = Annotated[
    float | None, typer.Option(help="A nonce is valid below this distance; distances are up to 2.")
]
ValidRateInstead = Annotated[
    float | None,
    typer.Option(help="Instead of --r-target: share of nonces to be valid [default: 0.1]."),
]


def default_output(state_dir: Path) -> Path:
    """Return the folder for proofs that no file was named for; it is made now, before the round.

    Raises:
        SettingsError: it cannot be made or written to.
    """
    from pocqueue.errors import SettingsError

    folder = state_dir / "proofs"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Not `os.access`: a file system may be full or read-only.
        TemporaryFile(dir=folder).close()
    except OSError as exc:
        raise SettingsError(
            f"The folder for proofs, {folder}, cannot be used ({exc.strerror}): mend it, set "
            "POCQUEUE_STATE_DIR, or name a file with --output."
        ) from None
    return folder


def check_count(field: str, value: int, most: int) -> None:
    """Refuse a number that is not from 1 to `most`.

    Raises:
        InvalidRound: it is not.
    """
    from pocqueue.errors import InvalidRound

    if not 1 <= value <= most:
        raise InvalidRound(field, value, f"a whole number from 1 to {most}")


@contextmanager
def option_names() -> Iterator[None]:
    """Call the fields of a round in errors as the user wrote them."""
    from pocqueue.errors import InvalidRound

    try:
        yield
    except InvalidRound as exc:
        option = "--window" if exc.field == "window_s" else f"--{exc.field.replace('_', '-')}"
        raise InvalidRound(option, exc.value, exc.allowed) from None
