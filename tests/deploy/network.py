"""What fakes are to answer so that a bare server becomes a verified node: the model's hub, the chain, and a seed that does not know it yet."""

from __future__ import annotations

from pocqueue.deploy.conf import Conf
from pocqueue.deploy.facts.account import account_address
from pocqueue.deploy.steps.registration import participant_url
from tests.deploy.confs import PASSWORD
from tests.deploy.fake_programs import Fakes
from tests.deploy.hub import has_listing
from tests.deploy.running_node import runs_well


def has_network(fakes: Fakes, conf: Conf) -> None:
    """Have them answer; the password is a secret that none of them is to see."""
    fakes.secret(PASSWORD)
    for url in (conf.seed_api_url, "https://huggingface.co", "https://ghcr.io"):
        fakes.answer(url, "")
    has_listing(fakes)
    runs_well(fakes, conf)
    fakes.set("participant", account_address(conf.account_pubkey))
    url = participant_url(conf.seed_api_url, conf.account_pubkey)
    unknown = '{"error":"rpc error: code = NotFound desc = account not found"}'
    fakes.answer(url, unknown, status=500)
