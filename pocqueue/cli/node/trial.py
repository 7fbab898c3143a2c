"""`pocqueue node try`: play the chain for a running small node."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pocqueue.cli.options import BatchSize, EnvFile, SeqLen
from pocqueue.cli.output import EXIT_FAILED, console, print_error

NodeUrl = Annotated[str | None, typer.Option(help="Of the node. [default: by the settings]")]


def url_by_settings() -> str:
    """Return where a node on this machine listens."""
    from pocqueue.settings import NodeSettings
    from pocqueue.web.listener import url_of

    settings = NodeSettings.load()
    return url_of(settings.host, settings.port)


def try_node(
    url: NodeUrl = None,
    seconds: Annotated[
        float, typer.Option(min=1, max=3600, help="How long the round runs.")
    ] = 20.0,
    output: Annotated[
        Path, typer.Option(help="File for the signed batches, one JSON a line.")
    ] = Path("signed.jsonl"),
    block_hash: Annotated[
        str | None, typer.Option(help="Of the round. [default: a new one]")
    ] = None,
    public_key: Annotated[str, typer.Option(help="In the round.")] = "trial",
    r_target: Annotated[float, typer.Option(help="Distance to stay below, up to 2.")] = 1.38,
    seq_len: SeqLen = 256,
    batch_size: BatchSize = 32,
    env_file: EnvFile = None,
) -> None:
    """Ask a running node for a round, take its batches as the chain would, check their signatures.

    Exit code: 0 if signed batches came, 1 if none came or one was not signed well, 2 if the
    node cannot.
    """
    from rich.markup import escape

    from pocqueue.errors import SignatureError
    from pocqueue.node.trial import Taken, Trial

    url = url or url_by_settings()
    out = console()
    signers: set[str] = set()
    nonces = batches = 0

    def show(taken: Taken) -> None:
        nonlocal nonces, batches
        batches, nonces = batches + 1, nonces + len(taken.body["nonces"])
        signers.add(taken.signer)
        file.write(json.dumps(taken.body) + "\n")
        best = min(taken.body["dist"])
        out.print(
            f"{taken.after_s:7.2f} s  batch of {len(taken.body['nonces']):,} valid nonces, best distance "
            f"{best:.6f}, signed by {taken.signer[:12]}…"
        )

    trial = Trial(
        url,
        block_hash=block_hash,
        public_key=public_key,
        r_target=r_target,
        seq_len=seq_len,
        batch_size=batch_size,
    )
    try:
        with trial, output.open("w") as file:
            status = trial.start()
            mode = "delegated" if status["delegation_mode"] else "searched by the node itself"
            out.print(
                escape(
                    f"Block {trial.block_hash}: {mode}, {status['gpu_count']} GPUs, for {seconds:g} s."
                )
            )
            for taken in trial.batches(seconds):
                show(taken)
            for taken in trial.stop():
                show(taken)
    except SignatureError as exc:
        print_error(str(exc))
        raise typer.Exit(EXIT_FAILED) from None
    out.print(
        f"{nonces:,} valid nonces in {batches:,} signed batches, written to {escape(str(output))}."
    )
    if not batches:
        print_error(
            f"Nothing came within {seconds:g} s: `pocqueue node status` says how the node stands, a larger "
            "--r-target makes more nonces valid."
        )
        raise typer.Exit(EXIT_FAILED)
