"""`pocqueue pouw testnet`: real nodes of a network of their own, as processes on this machine, and a live table."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pocqueue.cli.options import EnvFile, Json
from pocqueue.cli.output import EXIT_FAILED, console, print_error, print_json
from pocqueue.cli.pouw_nodes import QUICK, Node, found_network, look, places, running
from pocqueue.cli.pouw_view import COMPARED_BLOCKS, COMPARED_SLOTS, line, table, verdict

if TYPE_CHECKING:
    from pocqueue.cli.pouw_chaos import Chaos
    from pocqueue.processes.tree import ProcessTree

_LOOK_S = 1.0
_LINE_S = 5.0
#: What is on its way at the end arrives within this, or never.
_AGREE_S = 30.0
_LARGEST_SEED = 2**31


def run(
    supervisors: Annotated[
        int,
        typer.Option(min=1, max=16, help="Who certifies slots: one alone, or 4 and more together."),
    ] = 1,
    miners: Annotated[int, typer.Option(min=1, max=32, help="Nodes that train and mine.")] = 3,
    verifiers: Annotated[
        int, typer.Option(min=0, max=8, help="Nodes that train others' messages over.")
    ] = 0,
    evaluators: Annotated[
        int,
        typer.Option(min=0, max=8, help="Nodes that judge clients' models once they are trained."),
    ] = 0,
    seconds: Annotated[
        float | None,
        typer.Option(
            min=1,
            help="End by itself after that long [default: at Ctrl-C]; with --chaos when all is done, if that is sooner.",
        ),
    ] = None,
    chaos: Annotated[
        bool,
        typer.Option(
            "--chaos",
            help="Kill, pause and cut off nodes, and have some cheat: each kind once. Takes 3 miners or more, and about two minutes.",
        ),
    ] = False,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=_LARGEST_SEED,
            help="Of what --chaos does: the same one plans the same [default: another one each time].",
        ),
    ] = None,
    as_json: Json = False,
    env_file: EnvFile = None,
) -> None:
    """Run a network of real nodes on this machine, and show how they get on.

    Each node is a process with a folder and a key of its own; they talk over loopback. Nothing outlives the command.
    On a terminal a table is renewed every second, elsewhere a line is printed every 5 s; with --json one object
    at the end. Exit code: 0 if all nodes have one history at the end; 1 if they do not, or one did not stay up, or with
    --chaos if something was not done before the time was up, or the network did not do what it should about it; 2 for bad
    input.
    """  # fmt: skip
    from pocqueue.processes.tree import stop_signals

    counts = {"supervisor": supervisors, "miner": miners, "verifier": verifiers, "evaluator": evaluators}  # fmt: skip
    _check(counts, seconds, chaos=chaos, seed=seed)
    nodes = places([role for role, count in counts.items() for _ in range(count)])
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pocqueue-testnet-")))
        network = found_network(nodes, folder, QUICK if chaos else None)
        tree = stack.enter_context(running(nodes, folder, network, has_chaos=chaos))
        if not as_json:
            where = f"--bootstrap 127.0.0.1:{nodes[0].port}"
            settings = f"POCQUEUE_POUW_NETWORK={network}"
            console().print(
                f"To order here: {settings} pocqueue pouw task submit digits {where}",
                soft_wrap=True,
            )
        happens = _chaos(seed, nodes, tree, shown=not as_json) if chaos else None
        is_interrupted = True
        with (
            suppress(KeyboardInterrupt),
            stop_signals(),
            nullcontext() if happens is None else happens,
        ):
            failure = _watch(nodes, tree, seconds, happens, shown=not as_json)
            if failure:
                print_error(failure)
                raise typer.Exit(EXIT_FAILED)
            is_interrupted = False
        distrusted = set() if happens is None else happens.distrusted
        found = _settled(nodes, distrusted)
    agreement = verdict(found, distrusted)
    if as_json:
        said = {} if happens is None else {"chaos": happens.to_json()}
        print_json({"nodes": found, "agreement": agreement, **said})
    else:
        for text in [] if happens is None else happens.summary():
            console().print(text)
        console().print(agreement["sentence"])
    is_right = happens is None or (happens.is_well and (happens.is_done or is_interrupted))
    if not agreement["agree"] or not is_right:
        raise typer.Exit(EXIT_FAILED)


def _check(
    counts: Mapping[str, int], seconds: float | None, *, chaos: bool, seed: int | None
) -> None:
    from pocqueue.pouw.chaos.plan import LEAST_MINERS, least_s
    from pocqueue.pouw.errors import ConfigError

    supervisors, miners = counts["supervisor"], counts["miner"]
    if supervisors in (2, 3):
        raise ConfigError(
            "--supervisors",
            supervisors,
            "1, or 4 and more: a committee of 2 or 3 tolerates nobody's failure, so it is worse than one",
        )
    if chaos and miners < LEAST_MINERS:
        raise ConfigError(
            "--miners", miners, f"{LEAST_MINERS} and more with --chaos: two of them cheat"
        )
    least = least_s(supervisors, sum(counts.values()))
    if chaos and seconds is not None and seconds < least:
        raise ConfigError(
            "--seconds",
            seconds,
            f"{least} and more with --chaos and so many nodes, or none: it ends when all is done",
        )
    if seed is not None and not chaos:
        raise ConfigError("--seed", seed, "with --chaos only")


def _chaos(seed: int | None, nodes: Sequence[Node], tree: ProcessTree, *, shown: bool) -> Chaos:
    """Return what is to happen by the seed, or by one that is chosen now."""
    from pocqueue.cli.pouw_chaos import Chaos
    from pocqueue.pouw.chaos.plan import plan

    chosen = random.randrange(_LARGEST_SEED) if seed is None else seed  # noqa: S311 - no secret
    if shown:
        console().print(f"Chaos of seed {chosen}; --seed {chosen} plans the same again.")
    supervisors, miners = (
        [node.name for node in nodes if node.role == role] for role in ("supervisor", "miner")
    )
    return Chaos(chosen, plan(chosen, supervisors, miners), nodes, tree)


def _watch(
    nodes: Sequence[Node],
    tree: ProcessTree,
    limit_s: float | None,
    happens: Chaos | None,
    *,
    shown: bool,
) -> str | None:
    """Show the nodes until time is up, or all has happened; return why one did not stay up."""
    from rich.live import Live

    view = console()
    began = said = time.monotonic()
    num_told = 0
    with ExitStack() as stack:
        live = None
        if shown and view.is_terminal:
            live = stack.enter_context(Live(console=view, auto_refresh=False))
        while limit_s is None or time.monotonic() - began < limit_s:
            failure = tree.wait(_LOOK_S)
            if failure is not None:
                return failure.message
            if happens is not None and happens.is_over:
                return None
            if not shown:
                continue
            if live is not None:
                told = [] if happens is None else happens.summary()
                up_s = time.monotonic() - began
                live.update(table(look(nodes), told, width=view.width, up_s=up_s), refresh=True)
                continue
            for deed in [] if happens is None else happens.deeds[num_told:]:
                view.print(f"Now: {deed.act.text}.")
                num_told += 1
            if time.monotonic() - said >= _LINE_S:
                said = time.monotonic()
                view.print(line(look(nodes)))
    return None


def _settled(nodes: Sequence[Node], distrusted: set[str]) -> list[dict[str, Any]]:
    """Return what the nodes say at the end, as soon as they agree; or after a while, whatever they say then."""
    deadline = time.monotonic() + _AGREE_S
    while True:
        found = look(nodes, COMPARED_BLOCKS, COMPARED_SLOTS)
        if verdict(found, distrusted)["agree"] or time.monotonic() > deadline:
            return found
        time.sleep(_LOOK_S)
