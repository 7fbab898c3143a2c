"""`pocqueue node verify`: the signatures of batches that were saved to a file."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from pocqueue import strict_json
from pocqueue.cli.options import Json
from pocqueue.cli.output import EXIT_FAILED, print_error, print_json
from pocqueue.errors import BatchFileError, SignatureError


@dataclass(frozen=True, slots=True)
class _Problem:
    """A batch that does not verify."""

    where: str
    reason: str


def verify(
    file: Annotated[
        str, typer.Argument(help="A batch, a list of them, or one a line, as JSON; - is stdin.")
    ],
    signer: Annotated[
        str | None,
        typer.Option("--signer", help="Public key that all have to be signed with, 66 hex digits."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check the signatures of batches and verdicts, in the form that the node sends them in.

    Exit code: 0 if all are right, 1 if one is not, 2 for bad input.
    """
    from pocqueue.node.keys import check_public_key
    from pocqueue.node.signing import verify_body

    if signer is not None:
        check_public_key(signer)
    batches: Counter[str] = Counter()
    nonces: Counter[str] = Counter()
    problems: list[_Problem] = []
    for where, body in _bodies(_read(file), "stdin" if file == "-" else file):
        try:
            if not isinstance(body, dict):
                raise SignatureError("It is no JSON object and so no batch.")
            by = verify_body(body, signer)
        except SignatureError as exc:
            problems.append(_Problem(where, str(exc)))
            continue
        batches[by] += 1
        nonces[by] += len(body["nonces"])
    if as_json:
        print_json(
            {
                "batches": batches.total(),
                "nonces": nonces.total(),
                "signers": {
                    by: {"batches": count, "nonces": nonces[by]} for by, count in batches.items()
                },
                "problems": [
                    {"where": problem.where, "reason": problem.reason} for problem in problems
                ],
            }
        )
    else:
        for by, count in batches.items():
            typer.echo(f"{_counted(count, 'batch')}, {_counted(nonces[by], 'nonce')}: {by}")
        for problem in problems:
            print_error(f"{problem.where}: {problem.reason}")
        typer.echo(
            f"{_counted(batches.total(), 'batch')} with {_counted(nonces.total(), 'nonce')} verified, "
            f"{len(problems)} not."
        )
    if problems:
        raise typer.Exit(EXIT_FAILED)


def _counted(count: int, noun: str) -> str:
    plural = "batches" if noun == "batch" else f"{noun}s"
    return f"{count:,} {noun if count == 1 else plural}"


def _read(file: str) -> str:
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as exc:
        raise BatchFileError(
            f"{file} cannot be read ({exc.strerror}): name a file of signed batches, or - for stdin."
        ) from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BatchFileError(f"{file} is no UTF-8 text, as JSON has to be.") from None


def _bodies(text: str, name: str) -> Iterator[tuple[str, Any]]:
    """Yield each body and where it stands.

    Raises:
        BatchFileError: it is empty, or neither JSON nor JSON lines.
    """
    if text.strip() in {"", "[]"}:
        raise BatchFileError(f"{name} is empty: there is nothing to verify.")
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    try:
        whole = strict_json.loads(text)
    except ValueError as exc:
        if len(lines) == 1 or not lines[0][1].rstrip().endswith("}"):
            raise BatchFileError(_no_json(name, exc)) from None
    else:
        if isinstance(whole, list):
            yield from ((f"index {index}", body) for index, body in enumerate(whole))
        else:
            yield "the batch", whole
        return
    for number, line in lines:
        try:
            yield f"line {number}", strict_json.loads(line)
        except ValueError as exc:
            raise BatchFileError(_no_json(f"Line {number} of {name}", exc)) from None


def _no_json(what: str, exc: ValueError) -> str:
    return f"{what} is no JSON ({exc}): allowed are a signed batch, a list of them, or one on each line."
