"""`pocqueue node …`: the small node, its key, and what it signed."""

from __future__ import annotations

import json
import math
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer

from pocqueue import strict_json
from pocqueue.cli import outbox, trust
from pocqueue.cli.options import (
    BatchSize,
    EnvFile,
    Host,
    Json,
    Port,
    SeqLen,
    Watch,
    check_output,
)
from pocqueue.cli.output import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    console,
    facts,
    print_error,
    print_json,
    seconds,
    show_status,
)
from pocqueue.errors import (
    InvalidRound,
    KeyFileError,
    PocqueueError,
    ProofFileError,
    SettingsError,
    SignatureError,
)
from pocqueue.words import counted

app = typer.Typer(
    help="The small node: owns the key, delegates or works itself, signs and sends.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
key_app = typer.Typer(
    help="The signing key of the small node: secp256k1, readable by its owner only.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(key_app, name="key", short_help="Make or show the signing key.")
app.add_typer(outbox.app, name="outbox", short_help="List, resend or drop what was not taken.")
app.add_typer(trust.app, name="trust", short_help="Big nodes that were caught cheating.")

NodeUrl = Annotated[str | None, typer.Option(help="Of the node. [default: by the settings]")]
_UNSET = "; unset: POCQUEUE_NODE_KEY, or node-key.pem in the state folder."


@app.command("serve", short_help="Serve the node's routes; Ctrl-C ends it.")
def serve(
    host: Host = None,
    port: Port = None,
    key: Annotated[Path | None, typer.Option(help="Instead of POCQUEUE_NODE_KEY.")] = None,
    env_file: EnvFile = None,
) -> None:
    """Serve the chain's routes: delegated if DELEGATION_URL and DELEGATION_AUTH_TOKEN are set.

    What it reads is signed and kept in the state folder until its receiver has taken it. Exit code: 0
    after Ctrl-C or SIGTERM, 2 for bad input.
    """
    import logging

    from pocqueue.logs import log_to_stderr
    from pocqueue.node.app import create_app
    from pocqueue.settings import NODE_PREFIX, DelegationSettings, NodeSettings, Settings
    from pocqueue.web.listener import address_of, listen
    from pocqueue.web.serve import serve as serve_app

    settings, delegation = Settings.load(), DelegationSettings.load()
    node = NodeSettings.override(host=host, port=port, key=key)
    log_to_stderr(settings.log_level)
    application = create_app(settings, delegation, node)
    # Before anything is resumed or loaded.
    listener = listen(node.host, node.port, NODE_PREFIX)
    mode = f"delegates to {delegation.url}" if delegation.is_delegating else "works by itself"
    logging.getLogger(__name__).info(
        "Small node on http://%s: DELEGATION %s, it %s.",
        address_of(listener),
        "on" if delegation.is_delegating else "off",
        mode,
    )
    serve_app(application, listener, trusted_proxies=settings.trusted_proxies)


@app.command("status", short_help="Show how a node stands.")
def status(
    url: NodeUrl = None,
    watch: Watch = False,
    as_json: Json = False,
    env_file: EnvFile = None,
) -> None:
    """Show how a node stands: what it does, what it received, what waits to be sent."""
    from pocqueue.node.client import NodeClient

    with NodeClient(url or _url_by_settings()) as node:
        show_status(node.status, _table, watch=watch, as_json=as_json)
    if watch:
        raise typer.Exit(EXIT_INTERRUPTED)


def _table(found: dict[str, Any]) -> Any:
    kept = found.get("outbox", {})
    lag = found.get("poll_lag_seconds")
    mode = "delegation" if found.get("delegation_mode") else "local"
    rows = [
        ("status", str(found.get("status"))),
        ("mode", f"{mode}, {counted(found.get('gpu_count', 0), 'GPU')}"),
        ("session", str(found.get("session_id") or "none")),
        ("block", str(found.get("block_hash") or "none")),
        (
            "received",
            f"{counted(found.get('total_nonces', 0), 'valid nonce')} in {counted(found.get('total_batches', 0), 'batch')}",
        ),
        (
            "outbox",
            (
                f"{kept.get('waiting', 0):,} waiting (oldest {seconds(kept.get('oldest_seconds', 0))}), "
                f"{kept.get('refused', 0):,} refused, {kept.get('held', 0):,} held"
            ),
        ),
        ("recomputed", counted(found.get("sampled_nonces", 0), "nonce")),
        ("big node heard", "-" if lag is None else f"{seconds(lag)} ago"),
        ("signer", str(found.get("signer"))),
    ]
    shown = facts(rows)
    if found.get("fraud_detected"):
        shown.append("\nfraud           the session was stopped; nothing more of it is sent", "red")
    if found.get("distrusted"):
        shown.append(f"\nnot trusted     {', '.join(found['distrusted'])}", "red")
    if found.get("error"):
        shown.append(f"\nerror           {found['error']}", "red")
    return shown


def _url_by_settings() -> str:
    """Return where a node on this machine listens."""
    from pocqueue.settings import NodeSettings
    from pocqueue.web.listener import url_of

    settings = NodeSettings.load()
    return url_of(settings.host, settings.port)


@key_app.command(short_help="Make a key.")
def new(
    out: Annotated[Path | None, typer.Option(help=f"New file{_UNSET}")] = None,
    as_json: Json = False,
    env_file: EnvFile = None,
) -> None:
    """Make a key in a new file of mode 0600, and print its public key. No file is overwritten."""
    from pocqueue.node.keys import SigningKey

    path = _key_path(out)
    if out is None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as exc:
            raise KeyFileError(
                f"The folder {path.parent} of the signing key cannot be made ({exc.strerror}): give "
                "another file with --out, or set POCQUEUE_STATE_DIR to another folder."
            ) from None
    key = SigningKey.generate()
    key.save_pem(path)
    if as_json:
        print_json({"path": str(path), "public_key": key.public_hex})
        return
    typer.echo(f"Signing key: {path}")
    typer.echo(f"Public key:  {key.public_hex}")
    typer.echo("Keep a copy of the file in a safe place: nobody can make this key again.")


@key_app.command(short_help="Print the public key.")
def show(
    key: Annotated[Path | None, typer.Option(help=f"Its file{_UNSET}")] = None,
    as_json: Json = False,
    env_file: EnvFile = None,
) -> None:
    """Print the public key, by which receivers know the node.

    The secret is never printed.
    """
    from pocqueue.node.keys import SigningKey

    path = _key_path(key)
    public_hex = SigningKey.load(path).public_hex
    if as_json:
        print_json({"path": str(path), "public_key": public_hex})
        return
    typer.echo(public_hex)


def _key_path(given: Path | None) -> Path:
    from pocqueue.settings.base import full_path

    if given is not None:
        return full_path(given)
    from pocqueue.node.keys import key_path
    from pocqueue.settings import NodeSettings, Settings

    return key_path(Settings.load(), NodeSettings.load())


@app.command("try", short_help="Play the chain for a running node.")
def try_node(
    url: NodeUrl = None,
    seconds: Annotated[
        float, typer.Option(min=1, max=3600, help="How long the round runs.")
    ] = 20.0,
    output: Annotated[
        Path,
        typer.Option(callback=check_output, help="File for the signed batches, one JSON a line."),
    ] = Path("signed.jsonl"),
    block_hash: Annotated[
        str | None, typer.Option(help="Of the round. [default: a new one]")
    ] = None,
    public_key: Annotated[str, typer.Option(help="In the round.")] = "trial",
    r_target: Annotated[
        float, typer.Option(help="Distance to stay below; distances are up to 2.")
    ] = 1.38,
    seq_len: SeqLen = 256,
    batch_size: BatchSize = 32,
    env_file: EnvFile = None,
) -> None:
    """Ask a running node for a round, take its batches as the chain would, check their signatures.

    Exit code: 0 if signed batches came, 1 if none came or one was not signed well, 2 if the
    node cannot.
    """
    from rich.markup import escape

    from pocqueue.node.trial import Trial

    if not math.isfinite(r_target):
        # JSON has no such number, so it would never reach the node, which refuses all others.
        raise InvalidRound("--r-target", r_target, "a number above 0")
    out = console()
    num_nonces = num_batches = 0
    trial = Trial(
        url=url or _url_by_settings(),
        block_hash=block_hash,
        public_key=public_key,
        r_target=r_target,
        seq_len=seq_len,
        batch_size=batch_size,
    )
    try:
        # For appending: what a trial before has written is kept until this one is under way.
        with trial, output.open("a") as file:
            status = trial.start(lambda text: console(stderr=True).print(escape(text)))
            if output.is_file():
                file.truncate(0)
            mode = "delegated" if status["delegation_mode"] else "searched by the node itself"
            out.print(
                escape(
                    f"Block {trial.block_hash}: {mode}, {counted(status['gpu_count'], 'GPU')}, for {seconds:g} s."
                )
            )
            for taken in chain(trial.batches(seconds), trial.stop()):
                nonces, best = taken.body["nonces"], min(taken.body["dist"])
                num_batches += 1
                num_nonces += len(nonces)
                file.write(json.dumps(taken.body) + "\n")
                out.print(
                    f"{taken.after_s:7.2f} s  batch of {counted(len(nonces), 'valid nonce')}, best distance "
                    f"{best:.6f}, signed by {taken.signer[:12]}…"
                )
    except SignatureError as exc:
        print_error(str(exc))
        raise typer.Exit(EXIT_FAILED) from None
    except OSError as exc:
        if isinstance(exc, PocqueueError):
            raise
        raise SettingsError(
            f"--output is {str(output)!r}, which cannot be written ({exc.strerror}); make room there, or name another file."
        ) from None
    out.print(
        f"{counted(num_nonces, 'valid nonce')} in {counted(num_batches, 'signed batch')}, written to "
        f"{escape(str(output))}."
    )
    if not num_batches:
        print_error(
            f"Nothing came within {seconds:g} s: `pocqueue node status` says how the node stands, a larger "
            "--r-target makes more nonces valid."
        )
        raise typer.Exit(EXIT_FAILED)


@app.command("verify", short_help="Check the signatures of batches in a file.")
def verify(
    file: Annotated[
        typer.FileBinaryRead,
        typer.Argument(
            metavar="FILE", help="A batch, a list of them, or one a line, as JSON; - is stdin."
        ),
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
    from pocqueue.node.keys import read_public_key
    from pocqueue.node.signing import verify_body

    if signer is not None:
        # Found now: of a file it would be said of each batch.
        read_public_key(signer)
    batches: Counter[str] = Counter()
    nonces: Counter[str] = Counter()
    problems: list[dict[str, str]] = []
    for where, body in _bodies(file.read(), getattr(file, "name", "<stdin>")):
        try:
            if not isinstance(body, dict):
                raise SignatureError("It is no JSON object and so no batch.")
            by = verify_body(body, signer)
        except SignatureError as exc:
            problems.append({"where": where, "reason": str(exc)})
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
                "problems": problems,
            }
        )
    else:
        for by, count in batches.items():
            typer.echo(f"{counted(count, 'batch')}, {counted(nonces[by], 'nonce')}: {by}")
        for problem in problems:
            print_error(f"{problem['where']}: {problem['reason']}")
        typer.echo(
            f"{counted(batches.total(), 'batch')} with {counted(nonces.total(), 'nonce')} verified, "
            f"{len(problems)} not."
        )
    if problems:
        raise typer.Exit(EXIT_FAILED)


def _bodies(data: bytes, name: str) -> list[tuple[str, Any]]:
    """Return each body and where it stands.

    Raises:
        ProofFileError: there is none, or it is neither JSON nor JSON lines.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ProofFileError(f"{name} is no UTF-8 text, as JSON has to be.") from None
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    try:
        whole = _json(text, name)
    except ProofFileError:
        if len(lines) < 2 or not lines[0][1].rstrip().endswith("}"):
            raise
        return [
            (f"line {number}", _json(line, f"Line {number} of {name}")) for number, line in lines
        ]
    if not isinstance(whole, list):
        return [("the batch", whole)]
    return [(f"index {index}", body) for index, body in enumerate(whole)]


def _json(text: str, name: str) -> Any:
    if text.strip() in {"", "[]"}:
        raise ProofFileError(f"{name} is empty: there is nothing to verify.")
    try:
        return strict_json.loads(text)
    except ValueError as exc:
        raise ProofFileError(
            f"{name} is no JSON ({exc}): allowed are a signed batch, a list of them, or one on each line."
        ) from None
