"""What docker and compose say: which services run, for how long, and which ports the world reaches."""

from __future__ import annotations

import json

import pytest

from pocqueue.deploy.facts.docker import (
    numbers,
    open_ports,
    read_docker,
    read_published,
    read_services,
    up_seconds,
)
from pocqueue.deploy.facts.parts import UnexpectedAnswer
from tests.deploy.facts.answers import answer


def row(service: str, **changes: object) -> dict[str, object]:
    """Return a container as compose lists it."""
    usual = {
        "Service": service,
        "Name": service,
        "Image": f"ghcr.io/product-science/{service}:0.2.12",
        "State": "running",
        "Health": "",
        "ExitCode": 0,
        "Status": "Up 17 seconds",
        "Publishers": [],
    }
    return usual | changes


RUNNING = row(
    "api",
    Status="Up 2 minutes (healthy)",
    Health="healthy",
    Publishers=[
        {"URL": "0.0.0.0", "TargetPort": 9100, "PublishedPort": 9100, "Protocol": "tcp"},  # noqa: S104
        {"URL": "127.0.0.1", "TargetPort": 9200, "PublishedPort": 9200, "Protocol": "tcp"},
        {"URL": "", "TargetPort": 9000, "PublishedPort": 0, "Protocol": "tcp"},
    ],
)


@pytest.mark.parametrize("form", ["lines", "list"])
def test_services_of_new_and_old_versions(form: str) -> None:
    """An object a line, or one list."""
    rows = [
        RUNNING,
        row("node", State="restarting", Status="Restarting (1) 3 seconds ago", ExitCode=1),
    ]
    text = json.dumps(rows) if form == "list" else "\n".join(map(json.dumps, rows))
    api, node = read_services(text)
    assert (api.name, api.state, api.up_s, api.health) == ("api", "running", 120, "healthy")
    assert api.is_settled
    assert [(port.port, port.is_open) for port in api.ports] == [(9100, True), (9200, False)]
    assert (node.state, node.up_s, node.is_settled) == ("restarting", None, False)
    assert node.shown == "node: restarting"


@pytest.mark.parametrize(
    "changes",
    [
        {"Status": "Up 3 seconds"},
        {"Status": "Up Less than a second"},
        {"Health": "unhealthy", "Status": "Up 2 hours (unhealthy)"},
        {"Health": "starting", "Status": "Up 20 seconds (health: starting)"},
        {"State": "exited", "Status": "Exited (137) 2 minutes ago", "ExitCode": 137},
        {"State": "created", "Status": "Created"},
        {"State": "paused", "Status": "Up 2 hours (Paused)"},
    ],
)
def test_a_service_that_is_not_settled(changes: dict[str, object]) -> None:
    """Just started, as after each round of a restart loop, sick, or ended."""
    [service] = read_services(json.dumps(row("node", **changes)))
    assert not service.is_settled


def test_no_service_at_all() -> None:
    """A project that was never started says nothing."""
    assert read_services("\n") == ()
    assert read_services("[]") == ()


@pytest.mark.parametrize(
    ("status", "seconds"),
    [
        ("Up 1 second", 1),
        ("Up About a minute", 60),
        ("Up 59 minutes (healthy)", 3540),
        ("Up About an hour", 3600),
        ("Up 3 days", 259200),
        ("Up 2 weeks", 1209600),
        ("Exited (0) 5 hours ago", None),
        ("", None),
    ],
)
def test_how_long_a_container_runs(status: str, seconds: int | None) -> None:
    """In docker's words."""
    assert up_seconds(status) == seconds


@pytest.mark.parametrize(
    "text",
    ["{", "no such service", '{"Service": "x"}', '["x"]', json.dumps(row("x", Status="Up ever"))],
)
def test_what_is_no_service_is_an_error(text: str) -> None:
    """And shows what it was."""
    with pytest.raises(UnexpectedAnswer, match="docker compose ps"):
        read_services(text)


CONFIG = {
    "services": {
        "node": {
            "ports": [{"target": 26656, "published": "5000", "protocol": "tcp", "mode": "ingress"}]
        },
        "mlnode-308": {
            "ports": [
                {"target": 8080, "published": "8080", "protocol": "tcp"},
                {"target": 5000, "published": "5050", "host_ip": "127.0.0.1"},
                {"target": 1, "published": "7000-7001", "host_ip": "::"},
                {"target": 2},
            ]
        },
        "tmkms": {},
        "bridge": {"ports": None},
    }
}


def test_ports_that_the_world_reaches() -> None:
    """All but the three public ones are named; one that docker chooses is one, too."""
    published = read_published(json.dumps(CONFIG))
    assert [(port.service, port.port) for port in open_ports(published)] == [
        ("mlnode-308", 8080),
        ("mlnode-308", 7000),
        ("mlnode-308", 7001),
        ("mlnode-308", 0),
    ]
    with pytest.raises(UnexpectedAnswer, match="docker compose config"):
        read_published('{"name": "join"}')


def test_all_of_it() -> None:
    """An engine with a project; services by their image where names change."""
    facts = read_docker(
        answer(
            engine='"27.3.1"',
            compose="v2.29.7",
            runtimes='{"nvidia":{"path":"nvidia-container-runtime"},"runc":{"path":"runc"}}',
            services=json.dumps(row("mlnode-308", Image="ghcr.io/product-science/mlnode:3.0.12")),
            config=json.dumps(CONFIG),
        )
    )
    assert (facts.engine, facts.compose, facts.has_nvidia) == ("27.3.1", "2.29.7", True)
    assert [service.name for service in facts.by_image("mlnode")] == ["mlnode-308"]
    assert facts.by_image("product-science") == ()
    assert facts.service("api") is None


def test_a_server_without_docker() -> None:
    """Nothing is there, which is no error."""
    facts = read_docker(
        answer(
            engine=("", 127),
            compose=("docker: 'compose' is not a docker command", 1),
            runtimes=("", 1),
        )
    )
    assert (facts.engine, facts.compose, facts.has_nvidia, facts.services, facts.published) == (
        "",
        "",
        False,
        None,
        None,
    )


def test_versions() -> None:
    """Compared by their numbers."""
    assert numbers("compose", "2.24.4") < numbers("compose", "v2.24.10-desktop.1")
    with pytest.raises(UnexpectedAnswer):
        numbers("compose", "unknown")
