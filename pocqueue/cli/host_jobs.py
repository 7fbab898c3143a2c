"""`pocqueue hosts job …`: jobs for GPU hosts."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pocqueue.cli.host_store import open_store, tell
from pocqueue.cli.options import EnvFile, Json
from pocqueue.cli.output import columns, console, facts, print_json, seconds
from pocqueue.words import counted

if TYPE_CHECKING:
    from pocqueue.hosts.commands import Commands
    from pocqueue.hosts.records import Attempt, Job

app = typer.Typer(help="Jobs for GPU hosts.", no_args_is_help=True)

JobId = Annotated[str, typer.Argument(metavar="JOB", help="Its id, as `list` shows it.")]
#: Letters of what a job runs, in the list; `show` has all of them.
_SHOWN = 120
State = Literal["queued", "leased", "running", "completed", "failed", "cancelled"]


@app.command(short_help="Have a command or a container run on some node.")
def submit(
    name: Annotated[str, typer.Argument(help="Of a command or an image of the list.")],
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PARAMETER=VALUE]…",
            help="Of a command; for a container what it starts, behind `--`.",
        ),
    ] = None,
    kind: Annotated[
        Literal["command", "container"], typer.Option(help="What NAME is.")
    ] = "command",
    gpus: Annotated[int, typer.Option(min=0, max=64, help="GPUs that it has to itself.")] = 0,
    vram: Annotated[int, typer.Option(min=0, help="MiB of each GPU, at least.")] = 0,
    timeout: Annotated[
        int | None, typer.Option(min=1, max=86_400, help="Seconds after which it is ended.")
    ] = None,
    priority: Annotated[int, typer.Option(min=-100, max=100, help="Higher goes first.")] = 0,
    node: Annotated[str | None, typer.Option(help="Only on this node.")] = None,
    env_file: EnvFile = None,
) -> None:
    """Submit a job; its id goes to standard output.

    What may be run is a list, POCQUEUE_HOSTS_COMMANDS_FILE. Exit code: 2 if this is not in it.
    """
    from pydantic import ValidationError

    from pocqueue.errors import SettingsError
    from pocqueue.rounds.task_names import HOSTS_QUEUE, PLACE_JOBS
    from pocqueue.settings import HostsSettings

    with open_store() as store:
        from pocqueue.hosts.commands import Commands, Submission

        commands = Commands.load(HostsSettings.load().commands_file)
        is_command = kind == "command"
        try:
            asked = Submission(
                kind=kind,
                name=name,
                parameters=_parameters(commands, name, words or []) if is_command else {},
                argv=() if is_command else tuple(words or ()),
                gpus=gpus,
                vram_mib=vram,
                timeout_s=timeout,
                priority=priority,
                node=node,
            )
        except ValidationError as exc:
            problem = exc.errors()[0]
            where = ".".join(map(str, problem["loc"]))
            raise SettingsError(f"{where} is not allowed: {problem['msg']}.") from None
        if node is not None:
            store.nodes.get(node)
        job = store.jobs.submit(commands.job(asked, "admin"))
    tell(PLACE_JOBS, HOSTS_QUEUE, job_id=job.id)
    typer.echo(job.id)


@app.command("list", short_help="List jobs, newest first.")
def list_jobs(
    state: Annotated[State | None, typer.Option(help="In this state alone.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")] = 50,
    as_json: Json = False,
    env_file: EnvFile = None,
) -> None:
    """List jobs, newest first, with how they stand."""
    with open_store() as store:
        jobs, _ = store.jobs.listed([state] if state else (), limit=limit)
        now_ms = store.now_ms()
    if as_json:
        print_json([_view(job) for job in jobs])
        return
    from rich.markup import escape

    names = ("job", "kind", "what", "state", "why")
    table = columns(*names, right=("tries", "age"), words=("what", "why"))
    for job in jobs:
        what = _what(job)
        shown = what if len(what) <= _SHOWN else f"{what[: _SHOWN - 1]}…"
        cells = (job.id, job.kind, shown, str(job.state), job.reason or "")
        age = seconds(max(0, now_ms - job.created_ms) / 1000)
        table.add_row(*(escape(cell) for cell in cells), str(job.attempts), age)
    if jobs:
        console().print(table)
    else:
        console().print("No jobs. `pocqueue hosts job submit sleep seconds=5` submits one.")


@app.command(short_help="Show a job and its attempts.")
def show(job: JobId, as_json: Json = False, env_file: EnvFile = None) -> None:
    """Show how a job stands, why it waits, and what each attempt came to."""
    from pocqueue.hosts.pay import hyper

    with open_store() as store:
        found, attempts = store.jobs.get(job), store.jobs.attempts(job)
    if as_json:
        print_json(_view(found) | {"attempts": [_attempt(one) for one in attempts]})
        return
    rows = [
        ("job", found.id),
        ("what", f"{found.kind}: {_what(found)}"),
        ("state", str(found.state) + (f" ({found.reason})" if found.reason else "")),
        ("for", found.submitter),
        ("needs", f"{_gpus(found)}, {found.timeout_s} s at most"),
    ]
    for one in attempts:
        end = f"{one.outcome or 'at work'}"
        code = "" if one.exit_code is None else f", exit code {one.exit_code}"
        rows.append((f"attempt {one.n}", f"{end} on {one.node_id}{code}, {hyper(one.micro)} HYPER"))
    console().print(facts(rows))


@app.command(short_help="Print what a job has written.")
def log(
    job: JobId,
    attempt: Annotated[
        int | None,
        typer.Option(min=1, max=1_000_000, help="Of this one [default: the newest]."),
    ] = None,
    env_file: EnvFile = None,
) -> None:
    """Print what a job has written, as it came; control characters of a terminal are shown as dots."""
    with open_store() as store:
        text = store.jobs.log(job, attempt).text
    # A stranger's machine wrote it, and a terminal obeys it.
    shown = "".join(c if c.isprintable() or c in "\n\t" else "·" for c in text)
    # Not into the prompt.
    is_open = sys.stdout.isatty() and shown and not shown.endswith("\n")
    typer.echo(shown, nl=bool(is_open))


@app.command(short_help="Cancel a job.")
def cancel(job: JobId, env_file: EnvFile = None) -> None:
    """Cancel a job: one that waits is over, one that runs is ended; its node is paid until now."""
    from pocqueue.hosts.leases import Verdict
    from pocqueue.rounds.task_names import DELIVER_JOB, RELAY_PREFIX

    with open_store() as store:
        done = store.leases.cancel(job, actor="admin")
    if done is not None:
        turn = done.attempt
        about = {"node_id": turn.node_id, "job_id": job, "n": turn.n}
        # The gateway counts one that has ended by this.
        what = "cancelled" if done.verdict is Verdict.COUNTS else "cancel"
        tell(DELIVER_JOB, f"{RELAY_PREFIX}{turn.relay}", what=what, **about)
    console().print(f"Job {job} is cancelled.")


def _parameters(
    commands: Commands, name: str, words: Sequence[str]
) -> dict[str, int | float | str]:
    """Return parameters as they were typed: numbers where the list wants some."""
    from pocqueue.errors import SettingsError

    template = commands.command.get(name)
    found: dict[str, int | float | str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise SettingsError(f"{word!r} is no parameter; allowed: such as seconds=5.")
        rule = None if template is None else template.parameters.get(key)
        found[key] = value
        with suppress(ValueError):
            if rule is not None and rule.type in {"integer", "number"}:
                found[key] = int(value) if rule.type == "integer" else float(value)
    return found


def _gpus(job: Job) -> str:
    if not job.gpus:
        return "no GPU"
    return counted(job.gpus, "GPU") + (f" of {job.vram_mib:,} MiB" if job.vram_mib else "")


def _what(job: Job) -> str:
    text = " ".join(job.spec.get("argv") or ())
    image = job.spec.get("image")
    return f"{image} {text}".strip() if image else text


def _view(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "kind": job.kind,
        "spec": job.spec,
        "state": str(job.state),
        "reason": job.reason,
        "submitter": job.submitter,
        "priority": job.priority,
        "gpus": job.gpus,
        "vram_mib": job.vram_mib,
        "node": job.only_node,
        "timeout_s": job.timeout_s,
        "attempts": job.attempts,
        "created_ms": job.created_ms,
        "ended_ms": job.ended_ms,
    }


def _attempt(one: Attempt) -> dict[str, Any]:
    return {
        "n": one.n,
        "node": one.node_id,
        "gpus": list(one.gpu_uuids),
        "outcome": None if one.outcome is None else str(one.outcome),
        "exit_code": one.exit_code,
        "leased_ms": one.leased_ms,
        "sent_ms": one.sent_ms,
        "ended_ms": one.ended_ms,
        "micro": one.micro,
    }
