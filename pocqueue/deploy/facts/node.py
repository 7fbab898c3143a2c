"""A node that runs, as its own services speak of it: what serves, what the API knows of its GPUs, and its report of itself."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from pocqueue.deploy.facts.http import Answer
from pocqueue.deploy.facts.parts import Part, UnexpectedAnswer, read_parts
from pocqueue.deploy.words import Command

#: Of the node's services, on the server itself (upstream's compose files).
HEALTH_URL = "http://127.0.0.1:8080/health"
MODELS_URL = "http://127.0.0.1:5050/v1/models"
NODES_URL = "http://127.0.0.1:9200/admin/v1/nodes"
SETUP_URL = "http://127.0.0.1:9200/admin/v1/setup/report"
#: Checks of the node's own report that only the grant brings, which the cold key gives after all of this.
GRANT_CHECKS = frozenset({"permissions_granted", "feegrant_allowance"})
#: Those that only the next epoch brings.
EPOCH_CHECKS = frozenset({"active_in_epoch", "validator_in_set"})
#: As `nvidia-smi -L` lists them.
_GPU = re.compile(r"^GPU \d+: (.+?)(?: \(UUID: [^)]*\))?\s*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class SetupCheck:
    """One check of the node's own report."""

    name: str
    status: str  #: ``PASS``, ``FAIL``, ``UNAVAILABLE``
    message: str


@dataclass(frozen=True, slots=True)
class GpuNode:
    """A node of GPUs that the API knows."""

    name: str
    status: str  #: ``INFERENCE``, ``POC``, ``STOPPED``, ``FAILED``, …
    reason: str = ""  #: of a failure


@dataclass(frozen=True, slots=True)
class Inside:
    """What was found within the containers.

    Attributes:
        gpus: names of those that `nvidia-smi` lists.
        gpus_said: its last line where it lists none.
        torch_gpus: how many torch computes on; None: it was not to be asked.
        torch_said: what it said.
        num_errors: lines of errors in the logs of all services; None: they cannot be read.
        last_errors: the last of them.
    """

    gpus: tuple[str, ...]
    gpus_said: str
    torch_gpus: int | None
    torch_said: str
    num_errors: int | None
    last_errors: tuple[str, ...] = ()


def served_models(answer: Answer) -> tuple[str, ...]:
    """Return the names of `GET /v1/models`.

    Raises:
        UnexpectedAnswer: it is no such answer.
    """
    found = answer.json("the models that are served")
    try:
        return tuple(str(model["id"]) for model in found["data"])
    except (KeyError, TypeError):
        raise UnexpectedAnswer("the models that are served", answer.text, "a list") from None


def gpu_nodes(answer: Answer) -> tuple[GpuNode, ...]:
    """Return the nodes of `GET /admin/v1/nodes`.

    Raises:
        UnexpectedAnswer: it is no such answer.
    """
    found = answer.json("the API's nodes")
    try:
        return tuple(
            GpuNode(
                str(each["node"]["id"]),
                str(each["state"]["current_status"]),
                str(each["state"].get("failure_reason") or ""),
            )
            for each in found
        )
    except (AttributeError, KeyError, TypeError):
        raise UnexpectedAnswer("the API's nodes", answer.text, "nodes with their state") from None


def setup_checks(answer: Answer) -> tuple[SetupCheck, ...]:
    """Return the checks of `GET /admin/v1/setup/report`.

    Raises:
        UnexpectedAnswer: it is no such answer, or has no check at all.
    """
    what = "the node's report of its setup"
    found = answer.json(what)
    try:
        checks = tuple(
            SetupCheck(str(each["id"]), str(each["status"]), str(each.get("message") or ""))
            for each in found["checks"]
        )
    except (AttributeError, KeyError, TypeError):
        checks = ()
    if not checks:
        raise UnexpectedAnswer(what, answer.text, "a list of checks")
    return checks


def inside_facts(folder: str, service: str, files: Iterable[str]) -> Command:
    """Return the command that looks into the containers.

    Args:
        folder: of the compose files.
        service: that has the GPUs.
        files: names of the compose files, in their order.
    """
    return Command((folder, service, *files), script="inside_facts", sudo=True, timeout_s=240)


def read_inside(text: str) -> Inside:
    """Return what the command said.

    Raises:
        UnexpectedAnswer: something of it is not understood.
    """
    parts = read_parts(text, "gpus", "torch", "errors")
    gpus, torch, errors = parts["gpus"], parts["torch"], parts["errors"]
    torch_said = re.search(r"(?m)^(True|False) (\d+)\s*$", torch.text)
    num_gpus = int(torch_said[2]) if torch_said and torch_said[1] == "True" else 0
    count = errors.lines[0].strip() if errors.lines else ""
    names = tuple(_GPU.findall(gpus.text)) if gpus.exit_code == 0 else ()
    return Inside(
        gpus=names,
        gpus_said="" if names else _last(gpus),
        torch_gpus=num_gpus if torch.exit_code == 0 and torch_said else None,
        torch_said=_last(torch),
        num_errors=int(count) if errors.exit_code == 0 and count.isdecimal() else None,
        last_errors=tuple(errors.lines[1:]),
    )


def _last(part: Part) -> str:
    return part.lines[-1].strip() if part.lines else f"exit code {part.exit_code}"
