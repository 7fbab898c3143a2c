"""A node that runs and does what a verified node does, as fakes answer for it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from pocqueue.deploy.conf import Conf
from pocqueue.deploy.facts.http import Answer
from pocqueue.deploy.facts.node import HEALTH_URL, MODELS_URL, NODES_URL, SETUP_URL
from pocqueue.deploy.steps.registration import participant_url
from tests.deploy.fake_programs import Fakes
from tests.deploy.server import Fault

STATUS_URL = "http://127.0.0.1:26657/status"
#: The node's own report as it is before the grant: the first four need neither that nor an epoch.
SETUP = {
    "warm_key_in_keyring": "PASS",
    "consensus_key_match": "PASS",
    "mlnode_node1": "PASS",
    "block_sync": "PASS",
    "permissions_granted": "FAIL",
    "feegrant_allowance": "FAIL",
    "active_in_epoch": "FAIL",
    "validator_in_set": "FAIL",
}


def status(height: int = 4_711, *, catching_up: bool = False) -> str:
    """Return what the chain's node says of itself."""
    sync = {"latest_block_height": str(height), "catching_up": catching_up}
    said = {"node_info": {"id": "ab", "network": "gonka-mainnet"}, "sync_info": sync}
    return json.dumps({"result": said})


def models(*names: str) -> str:
    """Return what an mlnode serves."""
    return json.dumps({"object": "list", "data": [{"id": name} for name in names]})


def nodes(*statuses: str) -> str:
    """Return what the API knows of its nodes."""
    return json.dumps(
        [
            {
                "node": {"id": f"node{n + 1}"},
                "state": {"current_status": said, "failure_reason": ""},
            }
            for n, said in enumerate(statuses)
        ]
    )


def setup(**changes: str) -> str:
    """Return the node's report of itself."""
    checks = [
        {"id": name, "status": said, "message": f"{name} is {said}"}
        for name, said in (SETUP | changes).items()
    ]
    return json.dumps({"overall_status": "FAIL", "checks": checks})


def runs_well(fakes: Fakes, conf: Conf, *, is_loaded: bool = True) -> None:
    """Have a server's programs answer as for a verified node.

    Args:
        fakes: of the server.
        conf: of the node.
        is_loaded: its model is served; else from the second look on.
    """
    fakes.answer(HEALTH_URL, '{"status": "ok"}')
    if is_loaded:
        fakes.answer(MODELS_URL, models(conf.model_name))
    else:
        fakes.answers(MODELS_URL, models(), models(conf.model_name))
    fakes.answer(NODES_URL, nodes("INFERENCE"))
    fakes.answer(SETUP_URL, setup())
    fakes.answer(STATUS_URL, status())
    url = participant_url(conf.seed_api_url, conf.account_pubkey)
    fakes.answer(url, json.dumps({"pubkey": conf.account_pubkey}))
    fakes.set("exec-mlnode-308", "True 1")


@dataclass
class World:
    """What is seen of a server from elsewhere.

    Attributes:
        page: of every URL.
        open: ports that let anybody in.
        days: that the certificate is good for.
    """

    page: Answer = field(default_factory=lambda: Answer(200, "<html>"))
    open: set[int] = field(default_factory=set)
    days: float | None = 60.0

    async def get(self, _url: str) -> Answer:
        return self.page

    async def is_open(self, _host: str, port: int) -> bool:
        return port in self.open

    async def certificate_days(self, _url: str) -> float | None:
        return self.days


def broken(script: str) -> Fault:
    """Return a fault: a script of ours that cannot run any more."""
    return Fault(script, times=99, instead=1)
