"""What the checks of a running node look at, and what it has to be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pocqueue.deploy.facts.docker import Service
from pocqueue.deploy.facts.http import Answer
from pocqueue.deploy.facts.node import Inside
from pocqueue.deploy.facts.parts import UnexpectedAnswer
from pocqueue.deploy.preflight.checks import Check, check

#: That nobody but the server itself may reach.
INNER_PORTS = (5050, 8080, 9100, 9200, 26657)


@dataclass(frozen=True, slots=True)
class WantedNode:
    """What the conf and its profile make of a server.

    Attributes:
        address: of the participant; empty: it is not known yet.
        public_key: of it, base64.
        num_gpus: that its model runs on.
        model: that it serves.
        public_url: where the world reaches it.
    """

    address: str
    public_key: str
    num_gpus: int
    model: str
    public_url: str


@dataclass(frozen=True, slots=True)
class SeenNode:
    """All that was read.

    Attributes:
        names: of the services that the compose files have; None: the files cannot be read.
        services: that there are; None: they cannot be read.
        participant: what the seed says of the address.
        chain: what the chain's node says of itself.
        chain_later: the same some seconds later; empty: it was not asked again.
        answers: by URL, of the node's services to the server itself.
        inside: the containers; None: none has the GPUs.
        page: PUBLIC_URL/ from here.
        open_ports: of `INNER_PORTS`, those that let this machine in.
        certificate_days: for which PUBLIC_URL's certificate is good; None: none is trusted.
        skew_s: of the server's clock to ours.
        free_bytes: on the data disk.
        daily_bytes: by which that shrank since an earlier look; None: there was none.
    """

    names: tuple[str, ...] | None
    services: tuple[Service, ...] | None
    participant: Answer
    chain: str
    chain_later: str
    answers: Mapping[str, Answer]
    inside: Inside | None
    page: Answer
    open_ports: frozenset[int]
    certificate_days: float | None
    skew_s: float
    free_bytes: int
    daily_bytes: float | None = None


def judged(
    group: str, name: str, judge: Callable[[], tuple[bool, str]], wanted: str, remedy: str
) -> Check:
    """Return the line of a check that judges answers: one that is not understood is not good."""
    try:
        is_good, measured = judge()
    except UnexpectedAnswer as exc:
        is_good, measured = False, f"{exc.what}{f': {exc.text!r}' if exc.text else ''}"
    return check(group, name, is_good, measured, wanted, remedy, warn=group == "advisory")
