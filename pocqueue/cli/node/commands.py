"""`pocqueue node …`: the small node, its key, and what it signed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pocqueue.cli.node import key as node_key
from pocqueue.cli.node.trial import NodeUrl, try_node, url_by_settings
from pocqueue.cli.node.verify import verify
from pocqueue.cli.options import EnvFile, Host, Json, Port, Watch
from pocqueue.cli.output import EXIT_INTERRUPTED, facts, seconds, show_status

if TYPE_CHECKING:
    pass

app = typer.Typer(
    help="The small node: owns the key, delegates or works itself, signs and sends.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(node_key.app, name="key", short_help="Make or show the signing key.")
app.command("verify", short_help="Check the signatures of batches in a file.")(verify)
app.command("try", short_help="Play the chain for a running node.")(try_node)


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
    from pocqueue.settings import (
        NODE_PREFIX,
        DelegationSettings,
        NodeSettings,
        Settings,
    )
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
    serve_app(application, listener)


@app.command("status", short_help="Show how a node stands.")
def status(
    url: NodeUrl = None,
    watch: Watch = False,
    as_json: Json = False,
    env_file: EnvFile = None,
) -> None:
    """Show how a node stands: what it does, what it received, what waits to be sent."""
    from pocqueue.node.client import NodeClient

    with NodeClient(url or url_by_settings()) as node:
        show_status(node.status, _table, watch=watch, as_json=as_json)
    if watch:
        raise typer.Exit(EXIT_INTERRUPTED)


def _table(found: dict[str, Any]) -> Any:
    from rich.markup import escape

    outbox = found.get("outbox", {})
    lag = found.get("poll_lag_seconds")
    mode = "delegation" if found.get("delegation_mode") else "local"
    rows = [
        ("status", str(found.get("status"))),
        ("mode", f"{mode}, {found.get('gpu_count', 0)} GPUs"),
        ("session", str(found.get("session_id") or "none")),
        ("block", str(found.get("block_hash") or "none")),
        (
            "received",
            f"{found.get('total_nonces', 0):,} valid nonces in {found.get('total_batches', 0):,} batches",
        ),
        (
            "outbox",
            (
                f"{outbox.get('waiting', 0):,} waiting (oldest {seconds(outbox.get('oldest_seconds', 0))}), "
                f"{outbox.get('refused', 0):,} refused, {outbox.get('held', 0):,} held"
            ),
        ),
        ("recomputed", f"{found.get('sampled_nonces', 0):,} nonces"),
        ("big node heard", "-" if lag is None else f"{seconds(lag)} ago"),
        ("signer", str(found.get("signer"))),
    ]
    table = facts(rows)
    if found.get("fraud_detected"):
        table.add_row("[red]fraud[/red]", "the session was stopped; nothing more of it is sent")
    if found.get("error"):
        table.add_row("[red]error[/red]", escape(str(found["error"])))
    return table
