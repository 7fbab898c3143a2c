"""The table of checks of a running node: a good one passes, and each trouble has its own line."""

from __future__ import annotations

import dataclasses
import re

import pytest

from pocqueue.deploy.facts.docker import Service
from pocqueue.deploy.facts.http import Answer
from pocqueue.deploy.facts.node import HEALTH_URL, MODELS_URL, NODES_URL, SETUP_URL, Inside
from pocqueue.deploy.preflight import Verdict
from pocqueue.deploy.verification import SeenNode, WantedNode, verification
from tests.deploy.running_node import models, nodes, setup, status

MODEL = "Qwen/Qwen3-32B-FP8"
KEY = "AgABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"
WANTED = WantedNode("gonka1x", KEY, 1, MODEL, "https://node.example")
NAMES = ("tmkms", "node", "api", "mlnode-308")


def service(name: str, **changes: object) -> Service:
    """Return a service that runs."""
    running = Service(name, "image", "running", "", 0, 60)
    return dataclasses.replace(running, **changes)  # type: ignore[arg-type]


SERVICES = tuple(map(service, NAMES))
INSIDE = Inside(("NVIDIA H100 80GB HBM3",), "", 1, "True 1", 0)
ANSWERS = {
    HEALTH_URL: Answer(200, '{"status": "ok"}'),
    MODELS_URL: Answer(200, models(MODEL)),
    NODES_URL: Answer(200, nodes("INFERENCE")),
    SETUP_URL: Answer(
        200,
        setup(
            **dict.fromkeys(("permissions_granted", "feegrant_allowance"), "PASS"),
            **dict.fromkeys(("active_in_epoch", "validator_in_set"), "PASS"),
        ),
    ),
}
GOOD = SeenNode(
    names=NAMES,
    services=SERVICES,
    participant=Answer(200, f'{{"pubkey": "{KEY}"}}'),
    chain=status(),
    chain_later="",
    answers=ANSWERS,
    inside=INSIDE,
    page=Answer(200, "<html>"),
    open_ports=frozenset(),
    certificate_days=60.0,
    skew_s=0.4,
    free_bytes=18 * 10**11,
    daily_bytes=10**10,
)


def node(**changes: object) -> SeenNode:
    """Return a good node but for something."""
    return dataclasses.replace(GOOD, **changes)  # type: ignore[arg-type]


def inside(**changes: object) -> SeenNode:
    """Return a good node but for what is in its containers."""
    return node(inside=dataclasses.replace(INSIDE, **changes))  # type: ignore[arg-type]


def answers(url: str, text: str, code: int = 200) -> SeenNode:
    """Return a good node but for one answer."""
    return node(answers=ANSWERS | {url: Answer(code, text)})


def troubles(seen: SeenNode, verdict: Verdict = Verdict.FAIL) -> set[str]:
    """Return the names of checks with a verdict."""
    return {check.name for check in verification(seen, WANTED) if check.verdict is verdict}


def test_a_good_node_passes_everything() -> None:
    """With no remedy; every line has the form that verification.txt has."""
    checks = verification(GOOD, WANTED)
    assert [str(check) for check in checks if check.verdict is not Verdict.PASS] == []
    assert len({check.name for check in checks}) == len(checks)
    form = r"(PASS|WARN|FAIL) [a-z0-9-]+: .+ \(wanted: .+\)"
    assert all(re.fullmatch(form, check.line) for check in checks)
    assert not any(check.remedy for check in checks)


@pytest.mark.parametrize(
    ("seen", "name"),
    [
        (node(names=None), "services"),
        (node(services=None), "services"),
        (node(names=()), "services"),
        (node(services=SERVICES[1:]), "services"),
        (node(services=(*SERVICES[1:], service("tmkms", state="restarting"))), "services"),
        (node(services=(*SERVICES[1:], service("tmkms", up_s=3))), "services"),
        (node(services=(*SERVICES[1:], service("tmkms", health="unhealthy"))), "services"),
        (node(participant=Answer(404, "{}")), "participant"),
        (node(participant=Answer(0)), "participant"),
        (node(participant=Answer(200, '{"pubkey": ""}')), "participant"),
        (node(participant=Answer(200, f'{{"pubkey": "A{KEY[1:][::-1]}"}}')), "participant"),
        (node(page=Answer(502, "ERROR")), "public-url"),
        (node(page=Answer(0)), "public-url"),
        (inside(gpus=(), gpus_said="No devices were found"), "gpus"),
        (inside(torch_gpus=0), "torch-cuda"),
        (inside(torch_gpus=None, torch_said="No module named 'torch'"), "torch-cuda"),
        (answers(HEALTH_URL, "", 0), "mlnode-health"),
        (answers(HEALTH_URL, "ok", 503), "mlnode-health"),
        (answers(HEALTH_URL, "2026 ERROR: CUDA out of memory"), "mlnode-health"),
        (answers(HEALTH_URL, '{"status": "unhealthy"}'), "mlnode-health"),
        (answers(NODES_URL, "[]"), "mlnodes"),
        (answers(NODES_URL, nodes("INFERENCE", "FAILED")), "mlnodes"),
        (answers(NODES_URL, nodes("POC")), "mlnodes"),
        (answers(NODES_URL, nodes("INFERENCE"), 500), "mlnodes"),
        (answers(NODES_URL, "<html>"), "mlnodes"),
        (answers(NODES_URL, '[{"node": 1}]'), "mlnodes"),
        (answers(MODELS_URL, models("Qwen/Qwen3-32B")), "model"),
        (answers(MODELS_URL, models()), "model"),
        (answers(MODELS_URL, models(MODEL), 503), "model"),
        (answers(MODELS_URL, '{"data": 5}'), "model"),
        (answers(SETUP_URL, setup(block_sync="FAIL")), "setup-report"),
        (answers(SETUP_URL, setup(mlnode_node1="UNAVAILABLE")), "setup-report"),
        (answers(SETUP_URL, '{"overall_status": "PASS", "checks": []}'), "setup-report"),
        (answers(SETUP_URL, '{"overall_status": "PASS"}'), "setup-report"),
        (answers(SETUP_URL, "", 404), "setup-report"),
    ],
)
def test_each_required_check_fails_by_itself(seen: SeenNode, name: str) -> None:
    """And no other one does."""
    assert troubles(seen) == {name}


def test_a_chain_that_says_nothing_is_not_in_step() -> None:
    """Two lines of one trouble."""
    assert troubles(node(chain="")) == {"node-status", "chain-synced"}
    assert troubles(node(chain="ERROR")) == {"node-status", "chain-synced"}
    assert troubles(node(inside=None)) == {"gpus", "torch-cuda"}


@pytest.mark.parametrize(
    ("later", "is_good"),
    [
        (status(4_712, catching_up=True), True),
        (status(4_711), True),
        (status(4_711, catching_up=True), False),
        (status(4_000, catching_up=True), False),
        ("", False),
    ],
)
def test_a_chain_that_catches_up_has_to_grow(later: str, is_good: bool) -> None:
    """From one look to the next."""
    seen = node(chain=status(catching_up=True), chain_later=later)
    assert troubles(seen) == (set() if is_good else {"chain-synced"})


@pytest.mark.parametrize(
    ("seen", "name"),
    [
        (answers(SETUP_URL, setup(active_in_epoch="PASS", validator_in_set="PASS")), "grant"),
        (
            answers(SETUP_URL, setup(permissions_granted="PASS", feegrant_allowance="PASS")),
            "epoch",
        ),
        (inside(num_errors=3, last_errors=("node | level=error x",)), "log-errors"),
        (inside(num_errors=None), "log-errors"),
        *(
            (node(open_ports=frozenset({p})), f"closed-{p}")
            for p in (5050, 8080, 9100, 9200, 26657)
        ),
        (node(certificate_days=None), "certificate"),
        (node(certificate_days=13.0), "certificate"),
        (node(skew_s=-90.0), "clock"),
        (node(free_bytes=99 * 10**9, daily_bytes=None), "disk-forecast"),
        (node(daily_bytes=10**11), "disk-forecast"),
    ],
)
def test_what_is_advised_warns(seen: SeenNode, name: str) -> None:
    """And fails nothing."""
    assert troubles(seen, Verdict.WARN) == {name}
    assert not troubles(seen)


def test_a_node_before_its_grant_is_verified() -> None:
    """Its report of itself says FAIL as a whole until the cold key, which comes after all of this, has spoken."""
    seen = answers(SETUP_URL, setup())
    assert not troubles(seen)
    assert troubles(seen, Verdict.WARN) == {"grant", "epoch"}


def test_what_a_server_says_makes_no_lines() -> None:
    """A message with a line of its own stays on the line of its check."""
    text = setup(block_sync="FAIL").replace("block_sync is", "x\\n[OK] all is well\\u001b[2J")
    [line] = [
        c.line for c in verification(answers(SETUP_URL, text), WANTED) if c.name == "setup-report"
    ]
    assert "\n" not in line
    assert "\x1b" not in line
