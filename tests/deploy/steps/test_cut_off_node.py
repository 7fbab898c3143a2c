"""Phases 4 and 5 with a connection that breaks anywhere: they end as undisturbed ones do; one key, one registration."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Literal

from hypothesis import given, settings, strategies as st

from pocqueue.deploy.engine import Step
from pocqueue.deploy.steps.chain import ChainSettings, NodeRestarted, NodeSynced
from pocqueue.deploy.steps.keys_backup import KeysBackup
from pocqueue.deploy.steps.registration import Registration, RegistrationFile
from pocqueue.deploy.steps.services import ServicesRun
from pocqueue.deploy.steps.wallet import WarmAddressFile, WarmKeyFile, WarmWallet
from tests.deploy.server import Fault
from tests.deploy.steps.on_disk import MNEMONIC, OnDisk, kinds, on_disk
from tests.deploy.steps.test_chain import has_servers
from tests.deploy.steps.test_registration import is_new, sent

STEPS: tuple[Step, ...] = (
    *(KeysBackup(4), ServicesRun(), WarmWallet(), WarmKeyFile(), WarmAddressFile()),
    *(Registration(tries=2, every_s=0.01), RegistrationFile(), KeysBackup(5)),
    *(ChainSettings("config.toml"), ChainSettings("app.toml"), NodeRestarted()),
    NodeSynced(tries=2, every_s=0.01),
)
#: Commands of an undisturbed run, at least.
NUM_COMMANDS = 26


async def broken_run(folder: Path, faults: list[Fault]) -> None:
    """Run both phases with a connection that breaks, and look at what came of it."""
    async with on_disk(folder) as here:
        is_new(here)
        has_servers(here)
        here.server.faults += faults
        await here.run_on(*STEPS)
        assert not [fault for fault in faults if fault.times]
        is_as_undisturbed(here)
        assert kinds(await here.later().run(*STEPS)) <= {"[INFO]", "[CHECK]", "[SKIP]", "[WARN]"}


def is_as_undisturbed(here: OnDisk) -> None:
    """Look at what is to be there once, and whole."""
    assert here.fakes.state("keys-added") == "quick-newton\n"
    assert len(sent(here)) == 1
    assert here.fakes.state("started").split().count("tmkms") == 1
    folder = here.host.conf.folder
    assert MNEMONIC in (folder / "warm_key.txt").read_text()
    assert (folder / "warm_address.txt").read_text().startswith("gonka1")
    assert "successful" in (folder / "registration.txt").read_text()
    there = here.server.root / "state"
    assert not [path for path in (there / "wallet").rglob("answer*") if path.stat().st_size]
    assert len(list((there / "backups").iterdir())) == 1
    config = (here.join / ".inference" / "config" / "config.toml").read_text()
    assert "trust_height = 4000" in config
    assert here.host.conf.persistent_peers[0] in config


@settings(max_examples=3, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, NUM_COMMANDS - 1), st.sampled_from(["before", "during", "after"])),
        min_size=1,
        max_size=2,
    )
)
def test_a_connection_that_breaks_anywhere(
    cuts: list[tuple[int, Literal["before", "during", "after"]]],
) -> None:
    """Once or twice."""
    faults = [Fault(".", after=after, drop=drop) for after, drop in cuts]
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(broken_run(Path(folder), faults))
