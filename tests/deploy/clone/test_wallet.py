"""The warm wallet with a real sshd and a real sudo, which end while its key is made."""

from __future__ import annotations

import asyncio
import io
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from pocqueue.deploy.connection import Connection
from pocqueue.deploy.engine import Host, run_steps
from pocqueue.deploy.journal import Journal
from pocqueue.deploy.log import Log
from pocqueue.deploy.session import log_in
from pocqueue.deploy.steps.wallet import WarmAddressFile, WarmKeyFile, WarmWallet
from pocqueue.deploy.words import Redactor
from tests.deploy.clone.machine import Clone, Sshd
from tests.deploy.confs import conf
from tests.deploy.fake_programs import Fakes, hash_of
from tests.deploy.steps.on_disk import MNEMONIC
from tests.support.waiting import until

PASSWORD = 'y "c$d`e#f;g & é'
WALLET = "/var/lib/pocqueue-deploy/wallet/quick-newton"
URL = "https://github.com/gonka-ai/gonka.git"


@pytest.mark.parametrize("breaks", [False, True])
async def test_words_arrive_though_sshd_ends(
    breaks: bool, clone: Clone, sshd: Sshd, fakes: Fakes, tmp_path: Path
) -> None:
    """The key is made once; its words lie with root alone until they are here, for their owner alone."""
    clone.run("mount", "-t", "tmpfs", "none", "/mnt/other")
    programs = (f"PATH={clone.programs}:/usr/bin:/bin", f"FAKES={clone.fakes}")
    clone.run("env", *programs, "git", "clone", "-q", URL, "/mnt/other/gonka")
    fakes.secret(PASSWORD)
    fakes.set("keys", "late")
    fakes.set("see")
    node = conf(tmp_path, KEYRING_PASSWORD=f"'{PASSWORD}'")
    node = replace(node, volume_mount="/mnt/other", gonka_path="/mnt/other/gonka")
    node.folder.mkdir()
    console, keys = io.StringIO(), sshd.host_keys(tmp_path)
    async with Connection(sshd.target, keys, retry_delays_s=(0.0, 0.1, 0.3, 1.0, 3.0)) as there:
        await there.connect()
        await log_in(there, None)
        journal = Journal.read(node.folder / "state.json", node.server_ip)
        host = Host(node, there, Log(Redactor(node.secrets), console=console), journal)
        steps = (WarmWallet(), WarmKeyFile(), WarmAddressFile())
        running = asyncio.create_task(run_steps(host, steps, now=lambda: "2026-01-02 03:04:05"))
        await until(lambda: fakes.state("keys-added") or running.done())
        private = clone.run("stat", "-c", "%U %a", WALLET, f"{WALLET}/answer.new")
        assert private == "root 700\nroot 600\n"
        if breaks:
            sshd.kill()
            sshd.start()
        fakes.set("keys-go")
        await running
    words = node.folder / "warm_key.txt"
    assert MNEMONIC in words.read_text()
    assert stat.S_IMODE(words.stat().st_mode) == 0o600
    assert fakes.state("keys-added") == "quick-newton\n"
    assert fakes.calls("inferenced")[0].stdin_hash == hash_of(f"{PASSWORD}\n{PASSWORD}\n")
    assert clone.run("ls", WALLET) == "lock\nno-log.yml\n"
    assert "keys add quick-newton" in fakes.state("seen")
    for text in (console.getvalue(), fakes.state("seen"), (node.folder / "state.json").read_text()):
        assert PASSWORD not in text
        assert MNEMONIC not in text
