"""Options that several commands take, each declared once, and errors in the words of whoever typed them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pocqueue.poc.scheme import ProofScheme


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
PemFile = Annotated[Path | None, typer.Option(help="PEM file, instead of the setting.")]

Model = Annotated[
    str | None,
    typer.Option(help="Model: embedded, a folder or a hub id [default: POCQUEUE_MODEL]."),
]
DeployedModel = Annotated[
    str | None, typer.Option(help="Deployed model; needed if the live GPUs have several.")
]
SeqLen = Annotated[int, typer.Option(help="Positions of one nonce's input.")]
SeqLenOfProof = Annotated[
    int | None,
    typer.Option(
        help="Positions of one nonce's input [default: 256; of artifacts 1024, as in the network]."
    ),
]
Proof = Annotated[str, typer.Option(help="Proof scheme: distance or artifact.")]
KDim = Annotated[
    int | None, typer.Option(help="Of artifacts: how many numbers each has [default: 12].")
]
DistThreshold = Annotated[
    float | None,
    typer.Option(help="Of artifacts: farther apart than this is a mismatch [default: 0.4]."),
]
PMismatch = Annotated[
    float | None,
    typer.Option(help="Of artifacts: chance of an honest nonce to be a mismatch [default: 0.1]."),
]
#: The same two where a proofs file is at hand.
DistThresholdOfFile = Annotated[
    float | None,
    typer.Option(
        "--dist-threshold",
        help="Of artifacts: farther apart than this is a mismatch [default: the file's].",
    ),
]
PMismatchOfFile = Annotated[
    float | None,
    typer.Option(
        "--p-mismatch",
        help="Of artifacts: chance of an honest nonce to be a mismatch [default: the file's].",
    ),
]
StrongerRng = Annotated[
    bool, typer.Option("--stronger-rng", help="Of artifacts: inputs from 256 bits of a seed.")
]
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


def proof_options(proof: str, **options: Any) -> dict[str, Any]:
    """Return the options of a proof scheme that were given, by the names of its parameters.

    Args:
        proof: name of the scheme.
        options: None, or False of a flag, for those that were not given. Two are no parameters themselves but
            stand for some: `valid_rate` and `preset`.

    Raises:
        InvalidRound: there is no such scheme.
        SettingsError: one of them is for another scheme.
    """
    from pocqueue.errors import SettingsError
    from pocqueue.poc.scheme import CLASSES, scheme_class

    stands_for = {"valid_rate": "r_target", "preset": "dist_threshold"}

    def has(kind: type[ProofScheme], name: str) -> bool:
        return stands_for.get(name, name) in kind.model_fields

    kind = scheme_class(proof)
    given = {k: v for k, v in options.items() if v is not None and v is not False}
    for name, value in given.items():
        if not has(kind, name):
            others = [other for other in CLASSES if has(scheme_class(other), name)]
            raise SettingsError(
                f"{option_name(name)} is {value}, but the proof is {proof}; it is for {' and '.join(others)} "
                "alone: leave it out."
            )
    return given


def option_name(field: str) -> str:
    """Return how the user writes a field of a round."""
    called = {"window_s": "window", "scheme": "proof"}
    return f"--{called.get(field, field).replace('_', '-')}"


@contextmanager
def option_names() -> Iterator[None]:
    """Call the fields of a round in errors as the user wrote them."""
    from pocqueue.errors import InvalidRound

    try:
        yield
    except InvalidRound as exc:
        raise InvalidRound(option_name(exc.field), exc.value, exc.allowed) from None
