"""Checks without which a node is not verified."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from pocqueue.deploy.facts.chain import read_status
from pocqueue.deploy.facts.keys import read_participant
from pocqueue.deploy.facts.node import (
    EPOCH_CHECKS,
    GRANT_CHECKS,
    HEALTH_URL,
    MODELS_URL,
    NODES_URL,
    SETUP_URL,
    gpu_nodes,
    served_models,
    setup_checks,
)
from pocqueue.deploy.preflight.checks import Check
from pocqueue.deploy.verification.seen import SeenNode, WantedNode, judged
from pocqueue.words import counted

_required = partial(judged, "required")


def required_checks(seen: SeenNode, wanted: WantedNode) -> Iterator[Check]:
    """Return the table."""

    def services() -> tuple[bool, str]:
        if seen.names is None or seen.services is None:
            return False, "cannot be read"
        have = {service.name: service for service in seen.services}
        bad = [have[n].shown if n in have else f"{n}: none" for n in seen.names if not _is_up(n)]
        return bool(seen.names) and not bad, ", ".join(bad) or f"{len(seen.names)} run"

    def _is_up(name: str) -> bool:
        return any(each.name == name and each.is_settled for each in seen.services or ())

    yield _required(
        "services",
        services,
        "all services of the compose files run",
        "`docker compose logs` of that service says why.",
    )

    def participant() -> tuple[bool, str]:
        if not wanted.address:
            return False, "no address"
        key = read_participant(seen.participant.status, seen.participant.text)
        return key == wanted.public_key, f"{wanted.address}: {key or seen.participant.shown}"

    yield _required(
        "participant",
        participant,
        f"registered with {wanted.public_key}",
        "Run phase 4 again: `pocqueue deploy run CONF --from 4`.",
    )

    def node_status() -> tuple[bool, str]:
        status = read_status(seen.chain)
        return True, f"height {status.height:,} of {status.network}"

    yield _required(
        "node-status",
        node_status,
        "the chain's node answers",
        "`docker compose logs node` says why not.",
    )

    def chain_synced() -> tuple[bool, str]:
        first = read_status(seen.chain)
        if not first.is_catching_up:
            return first.height > 0, f"at height {first.height:,}"
        if not seen.chain_later:
            return False, f"catching up, at height {first.height:,}"
        later = read_status(seen.chain_later)
        is_good = later.height > first.height or not later.is_catching_up
        return is_good, f"catching up, from {first.height:,} to {later.height:,}"

    yield _required(
        "chain-synced",
        chain_synced,
        "in step with the chain, or getting there",
        "See phase 5; `pocqueue deploy repair CONF --reset-chain-data` is the last resort.",
    )
    yield _required(
        "public-url",
        lambda: (seen.page.status == 200, seen.page.shown),
        f"HTTP 200 of {wanted.public_url}/ here",
        "Open port 8000 in the provider's firewall.",
    )

    def gpus() -> tuple[bool, str]:
        if seen.inside is None:
            return False, "no service has an mlnode image"
        found = seen.inside.gpus
        names = ", ".join(dict.fromkeys(found))
        shown = f"{counted(len(found), 'GPU')} ({names})" if found else seen.inside.gpus_said
        return len(found) >= wanted.num_gpus, shown or "none"

    yield _required(
        "gpus",
        gpus,
        f"nvidia-smi in the mlnode lists {wanted.num_gpus}",
        "See nvidia-runtime of `pocqueue deploy check`.",
    )

    def torch() -> tuple[bool, str]:
        if seen.inside is None or seen.inside.torch_gpus is None:
            return (
                False,
                seen.inside.torch_said if seen.inside else "no service has an mlnode image",
            )
        num = seen.inside.torch_gpus
        return num >= wanted.num_gpus, counted(num, "GPU")

    yield _required(
        "torch-cuda",
        torch,
        f"torch in the mlnode computes on {wanted.num_gpus}",
        "The driver is too old for the image, or see the check gpus.",
    )
    health = seen.answers[HEALTH_URL]
    yield _required(
        "mlnode-health",
        lambda: (health.is_well, health.shown),
        "HTTP 200, and no ERROR in it",
        "`docker compose logs` of the mlnode says why.",
    )

    def mlnodes() -> tuple[bool, str]:
        found = gpu_nodes(seen.answers[NODES_URL])
        shown = ", ".join(
            f"{n.name} {n.status}{f' ({n.reason})' if n.reason else ''}" for n in found
        )
        return bool(found) and all(n.status == "INFERENCE" for n in found), shown or "none"

    yield _required(
        "mlnodes",
        mlnodes,
        "the API has a node, and each is at INFERENCE",
        "While a proof runs it is POC: verify again some minutes later. Else see the logs of api.",
    )

    def model() -> tuple[bool, str]:
        found = served_models(seen.answers[MODELS_URL])
        return wanted.model in found, ", ".join(found) or "none"

    yield _required(
        "model",
        model,
        f"{wanted.model} is served",
        "The model may still load; the mlnode's logs tell.",
    )

    def setup() -> tuple[bool, str]:
        found = setup_checks(seen.answers[SETUP_URL])
        mine = [each for each in found if each.name not in GRANT_CHECKS | EPOCH_CHECKS]
        bad = [
            f"{each.name} {each.status}: {each.message}" for each in mine if each.status != "PASS"
        ]
        return bool(mine) and not bad, "; ".join(bad) or f"{len(mine)} of {len(mine)} PASS"

    yield _required(
        "setup-report",
        setup,
        "PASS of all that needs neither the grant nor an epoch",
        "The node says of itself what is wrong.",
    )
