"""`pocqueue pouw committee`, `alerts` and `evidence`: who certifies, what was noticed, and who was punished for what."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any

import typer

from pocqueue.cli.options import EnvFile, Json
from pocqueue.cli.output import columns, console, facts, percent, plain, print_json, seconds
from pocqueue.cli.pouw_client import HttpPort, ask
from pocqueue.words import counted


def committee(http_port: HttpPort = None, as_json: Json = False, env_file: EnvFile = None) -> None:
    """Show the supervisors in office, who of them this node has heard lately, and the making of the next key."""
    found = ask(http_port, "committee")
    if as_json:
        print_json(found)
        return
    view = console()
    if found["epoch"] is None:
        view.print("Nobody is in office yet: no slot is certified.")
    else:
        rows = [
            ("epoch", f"{found['epoch']}"),
            ("key", found["group_key"]),
            (
                "needed",
                f"{found['threshold']} of {counted(len(found['members']), 'member')} make a signature",
            ),
            ("away", _away(found)),
        ]
        view.print(facts(rows))
        table = columns("member", "name", "account", "heard", words=("name", "heard"))
        for one in found["members"]:
            name = one["name"] or "-"
            table.add_row(
                f"{one['place']}",
                f"{name} (this node)" if one["is_self"] else name,
                one["account"],
                _heard(one),
            )
        view.print(table)
    making = found["generation"]
    if making is not None:
        view.print(
            f"The key of epoch {making['epoch']} is in the making since height {making['height']}: "
            f"{making['phase']}, {counted(len(making['candidates']), 'candidate')}."
        )


def alerts(http_port: HttpPort = None, as_json: Json = False, env_file: EnvFile = None) -> None:
    """Show what this node has noticed about others since it was started, newest first."""
    found = ask(http_port, "alerts")
    if as_json:
        print_json(found)
        return
    view = console()
    if found["threat_level"] is None:
        view.print("This node watches over nothing: enable_security_monitoring is off.")
        return
    view.print(f"Threat level {found['threat_level']}")
    if not found["alerts"]:
        view.print("No alerts.")
        return
    table = columns("time", "type", "source", "detail", words=("detail",))
    for one in found["alerts"]:
        moment = datetime.fromisoformat(one["time"]).astimezone()
        table.add_row(
            f"{moment:%Y-%m-%d %H:%M:%S}",
            *plain(one["type"], one["source_peer"], one["detail"]),
        )
    view.print(table)


def evidence(
    identifier: Annotated[
        str,
        typer.Argument(
            metavar="ID",
            help="Of the transaction that has it, 64 hex digits, or the culprit's account, 66.",
        ),
    ],
    http_port: HttpPort = None,
    as_json: Json = False,
    env_file: EnvFile = None,
) -> None:
    """Show what somebody was shown to have done, whether that holds when it is checked again, and what it cost.

    Exit code: 0, or 2 where the chain has no such evidence.
    """
    from pocqueue.pouw.errors import ConfigError

    if not re.fullmatch("[0-9a-fA-F]{64}|0[23][0-9a-fA-F]{64}", identifier):
        raise ConfigError(
            "ID", identifier, "64 hex digits of a transaction, or 66 of an account's public key"
        )
    found = ask(http_port, f"evidence/{identifier.lower()}")
    if as_json:
        print_json(found)
        return
    for number, one in enumerate(found):
        if number:
            console().print()
        _print_evidence(one)


def _print_evidence(one: dict[str, Any]) -> None:
    view = console()
    rest = one["stake"] - one["bounty"]
    went = "nobody: these coins are no more" if one["task"] is None else f"task {one['task']}"
    holds = {True: "holds", False: "DOES NOT HOLD", None: "cannot be checked"}[one["holds"]]
    rows = [
        ("evidence", one["transaction"]),
        ("height", f"{one['height']}"),
        ("against", one["culprit"]),
        ("lost", f"{one['stake']:,.6f} PAI, {one['role']} ticket {one['ticket']}"),
        ("finder", f"{one['finder']} got {one['bounty']:,.6f} PAI"),
        ("rest", f"{rest:,.6f} PAI to {went}"),
        ("checked", f"{holds}: {one['checked']}"),
    ]
    view.print(facts(rows))
    for sentence in one["shows"]:
        view.print(sentence, markup=False)


def _away(found: dict[str, Any]) -> str:
    bad = sum(one["is_silent"] or one["is_faulty"] for one in found["members"])
    alarm = found["alarm_share"]
    said = "nobody" if not bad else f"{bad}, that is {percent(found['bad_share'])}"
    return said if alarm is None else f"{said}; alarm from {percent(alarm)}"


def _heard(one: dict[str, Any]) -> str:
    if one["is_faulty"]:
        return "FAULTY: it has contradicted itself"
    if one["is_silent"]:
        return "silent"
    if one["is_self"]:
        return "itself"
    return "not yet" if one["heard_s"] is None else f"{seconds(one['heard_s'])} ago"
