"""The chain's node set up: lines edited, all else kept, a trusted block that two servers agree on, and a wait that ends."""

from __future__ import annotations

import json
import shutil
import stat
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from pocqueue.deploy.engine import NotYet
from pocqueue.deploy.errors import DeployError, StepFailed
from pocqueue.deploy.node_files import rpc_servers
from pocqueue.deploy.steps import chain
from pocqueue.deploy.steps.chain import ChainSettings, NodeRestarted, NodeSynced, look_at_node
from pocqueue.deploy.steps.services import ServicesRun
from pocqueue.deploy.words import Command
from tests.deploy.server import Fault
from tests.deploy.steps.on_disk import OnDisk, kinds, on_disk

SETTINGS = (ChainSettings("config.toml"), ChainSettings("app.toml"), NodeRestarted())
SYNC = NodeSynced(tries=4, every_s=0.01)
STEPS = (*SETTINGS, SYNC)
HASH, OTHER_HASH = "AB" * 32, "CD" * 32
STATUS = "http://172.18.0.2:26657/status"


def status_of(height: int, *, catching_up: bool = True) -> str:
    """Return what a node says of itself."""
    sync = {"latest_block_height": str(height), "catching_up": catching_up}
    node = {"id": "5f" * 20, "network": "gonka-mainnet"}
    return json.dumps({"jsonrpc": "2.0", "result": {"node_info": node, "sync_info": sync}})


def block(height: int, hash_hex: str = HASH) -> str:
    """Return what a server says of a block."""
    header = {"height": str(height)}
    return json.dumps({"result": {"block_id": {"hash": hash_hex}, "block": {"header": header}}})


async def runs(here: OnDisk) -> None:
    """Have tmkms and node run, and two servers of the chain that agree."""
    here.has_project()
    await here.run(ServicesRun())
    has_servers(here)


def has_servers(here: OnDisk) -> None:
    """Have two servers of the chain that agree on the block behind height 5000."""
    height = 5000
    first, second = rpc_servers(here.host.conf)
    here.fakes.answer(f"{first}status", status_of(height, catching_up=False))
    for url in (first, second):
        here.fakes.answer(f"{url}block?height={height - 1000}", block(height - 1000))


def text_of(here: OnDisk, name: str) -> str:
    """Return a settings file."""
    return (here.join / ".inference" / "config" / name).read_text()


def starts(here: OnDisk) -> int:
    """Return how often node was started."""
    return here.fakes.state("started").split().count("node")


async def test_a_node_is_set_up_once(tmp_path: Path) -> None:
    """Lines are edited, files of before kept, the node started anew; a second run changes nothing, and asks no server."""
    async with on_disk(tmp_path) as here:
        with pytest.raises(NotYet, match=r"docker-compose\.yml is there"):
            await STEPS[0].look(here.later().host)
        here.has_project()
        with pytest.raises(NotYet, match="until the node has made"):
            await STEPS[0].look(here.later().host)
        shutil.rmtree(here.disk / "gonka")
        await runs(here)
        before = {name: text_of(here, name) for name in ("config.toml", "app.toml")}
        plan = await here.plan(STEPS[0])
        assert '+trust_hash = "' + HASH in plan.diff
        here.fakes.answers(STATUS, *[status_of(0)] * 5, status_of(120, catching_up=False))
        lines = await here.run(*STEPS)
        assert lines[-1] == "[OK] sync of the chain: height 120, caught up"
        config, app = (text_of(here, name) for name in before)
        peers = ",".join(here.host.conf.persistent_peers)
        assert tomllib.loads(config) == {
            "moniker": "node",
            "p2p": {"seeds": "", "persistent_peers": peers},
            "statesync": {
                "enable": True,
                "rpc_servers": ",".join(rpc_servers(here.host.conf)),
                "trust_height": 4000,
                "trust_hash": HASH,
            },
        }
        assert "# of the network" in config
        assert app == (
            '# of the application\npruning = "custom"\npruning-keep-recent = "1000"\npruning-interval = "100"\n[api]\nenable = true\n'
        )
        folder = here.join / ".inference" / "config"
        assert stat.S_IMODE((folder / "app.toml").stat().st_mode) == 0o640
        for name, text in before.items():
            [kept] = folder.glob(f"{name}.pocqueue-*")
            assert kept.read_text() == text
        assert starts(here) == 2
        num_asked = len(here.fakes.calls("curl"))
        again = await here.later().run(*STEPS)
        assert kinds(again) == {"[INFO]", "[CHECK]", "[SKIP]"}
        asked = [call.words[-1] for call in here.fakes.calls("curl")[num_asked:]]
        assert set(asked) == {STATUS}
        assert starts(here) == 2


async def test_servers_that_do_not_agree(tmp_path: Path) -> None:
    """No block is trusted then; nor where one of them is silent. None is built in."""
    async with on_disk(tmp_path) as here:
        await runs(here)
        here.fakes.answer(STATUS, status_of(0))
        before = text_of(here, "config.toml")
        _, second = rpc_servers(here.host.conf)
        here.fakes.answer(f"{second}block?height=4000", block(4000, OTHER_HASH))
        with pytest.raises(DeployError, match="the second RPC server"):
            await here.run(*STEPS)
        here.fakes.answer(f"{second}block?height=4000", "", status=500)
        with pytest.raises(StepFailed, match="two servers of the chain agree"):
            await here.run(*STEPS)
        assert text_of(here, "config.toml") == before
        assert starts(here) == 1
        later = here.later(state_sync="off")
        await later.run(*SETTINGS)
        assert "enable = false" in text_of(here, "config.toml")


async def test_a_block_that_the_node_has_chosen_itself(tmp_path: Path) -> None:
    """Its own start-up may write another one: that stays if both servers have it, and stops the run if they do not."""
    async with on_disk(tmp_path) as here:
        await runs(here)
        here.fakes.answer(STATUS, status_of(0))
        here.fakes.set("trust", f"3000 {OTHER_HASH}\n")
        with pytest.raises(StepFailed, match=f"begins from block 3000 {OTHER_HASH}, but http"):
            await here.run(*STEPS)
        for url in rpc_servers(here.host.conf):
            here.fakes.answer(f"{url}block?height=3000", block(3000, OTHER_HASH))
        here.fakes.answers(STATUS, *[status_of(0)] * 5, status_of(7, catching_up=False))
        await here.later().run(*STEPS)
        assert "trust_height = 3000" in text_of(here, "config.toml")


async def test_a_node_with_blocks_keeps_its_beginning(tmp_path: Path) -> None:
    """Only its peers and its pruning are set: it begins from no snapshot any more."""
    async with on_disk(tmp_path) as here:
        await runs(here)
        here.fakes.answer(STATUS, status_of(77, catching_up=False))
        await here.run(*STEPS)
        config = tomllib.loads(text_of(here, "config.toml"))
        assert config["statesync"]["enable"] is False
        assert config["p2p"]["persistent_peers"]


async def test_a_node_that_does_not_answer_may_have_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked a while, and nothing is edited or started anew; one without a store for blocks has none."""
    monkeypatch.setattr(chain, "_ASK_EVERY_S", 0.01)
    async with on_disk(tmp_path) as here:
        await runs(here)
        store = here.join / ".inference" / "data" / "blockstore.db"
        store.touch()
        before = text_of(here, "config.toml")
        for step in (SETTINGS[0], SYNC):
            with pytest.raises(StepFailed, match="does not answer at /status"):
                await here.later().run(step)
        assert (text_of(here, "config.toml"), starts(here)) == (before, 1)
        store.unlink()
        assert "trust_hash" in (await here.later().plan(SETTINGS[0])).what


async def test_another_nodes_answer_is_not_this_ones(tmp_path: Path) -> None:
    """At loopback, where docker does not say that it is the container's; what it publishes is asked at that port."""
    async with on_disk(tmp_path) as here:
        await runs(here)
        here.fakes.answer("http://127.0.0.1:26657/status", status_of(99))
        here.fakes.answer("http://127.0.0.1:36657/status", status_of(7))
        for port, height in (("", 0), ("[::]:26657", 0), ("0.0.0.0:36657\n[::]:36657", 7)):
            here.fakes.set("port", port)
            assert (await look_at_node(here.later().host, "node")).height == height


async def test_a_node_that_stands_still_is_started_anew_once(tmp_path: Path) -> None:
    """At the third equal look; after the last look there is a warning, and the run goes on. Nothing is removed."""
    async with on_disk(tmp_path) as here:
        await runs(here)
        here.fakes.answer(STATUS, status_of(0))
        data = here.join / ".inference" / "data" / "blocks"
        data.write_text("blocks")
        await here.run(*SETTINGS)
        sync = NodeSynced(tries=8, every_s=0.01)
        lines = await here.run(sync)
        assert lines.count("[OUTPUT] it stands still: node is started anew, once") == 1
        assert (starts(here), data.read_text()) == (3, "blocks")
        assert lines[-2].startswith("[OK] sync of the chain: height 0, catching up")
        assert lines[-1].startswith("[WARN] sync of the chain: the node still catches up")
        # It is not waited for again before it is started again.
        again = await here.later().run(sync)
        assert kinds(again) == {"[INFO]", "[CHECK]", "[SKIP]", "[WARN]"}
        words = {call.words[1] for call in here.fakes.calls("docker") if call.words[0] == "compose"}
        assert not words & {"down", "rm", "kill"}


async def test_a_snapshot_that_comes_in_parts_moves(tmp_path: Path) -> None:
    """Without a height: its parts are counted."""
    async with on_disk(tmp_path) as here:
        await runs(here)
        here.fakes.answer(STATUS, status_of(0))
        await here.run(*SETTINGS)
        here.fakes.set("chunks")
        lines = await here.run(NodeSynced(tries=6, every_s=0.01))
        assert not [line for line in lines if "stands still" in line]
        assert starts(here) == 2


async def test_a_cut_between_edit_and_restart(tmp_path: Path) -> None:
    """The node has still to be started anew, though its files are as wanted."""
    async with on_disk(tmp_path) as here:
        await runs(here)
        here.fakes.answer(STATUS, status_of(0))
        await here.run(*SETTINGS[:2])
        assert starts(here) == 1
        await here.later().run(*SETTINGS)
        assert starts(here) == 2


@pytest.mark.parametrize(
    ("pattern", "drop"),
    [
        *[(r"settings_file .*config\.toml", drop) for drop in ("during", "after")],
        (r"settings_file .*app\.toml", "before"),
        *[(r"compose .*restart", drop) for drop in ("before", "after")],
        (r"job_start .*5-sync", "after"),
    ],
)
async def test_a_connection_that_breaks(pattern: str, drop: str, tmp_path: Path) -> None:
    """The files are whole, and the node runs with them."""
    async with on_disk(tmp_path) as here:
        await runs(here)
        here.fakes.answer(STATUS, status_of(0))
        fault = here.server.fault(Fault(pattern, drop=drop))  # type: ignore[arg-type]
        await here.run_on(*STEPS)
        assert fault.times == 0
        assert starts(here) >= 2
        for name, setting in (
            ("config.toml", "persistent_peers"),
            ("app.toml", 'pruning = "custom"'),
        ):
            assert setting in text_of(here, name)
        assert not list((here.join / ".inference" / "config").glob("*.pocqueue-tmp*"))
        assert "[SKIP]" in kinds(await here.later().run(*STEPS))


async def test_a_file_is_never_half_written(tmp_path: Path) -> None:
    """What did not arrive whole, was changed meanwhile, or has no space changes nothing."""
    async with on_disk(tmp_path) as here:
        await runs(here)
        here.fakes.answer(STATUS, status_of(0))
        before = text_of(here, "app.toml")
        [command] = (await here.plan(SETTINGS[1])).actions
        folder = here.join / ".inference" / "config"
        assert isinstance(command, Command)
        said = await here.host.connection.run(replace(command, stdin=("pruning = ",)))
        assert (said.exit_code, text_of(here, "app.toml")) == (65, before)
        (folder / "app.toml").write_text(f"{before}# mine\n")
        said = await here.host.connection.run(command)
        assert (said.exit_code, text_of(here, "app.toml")) == (66, f"{before}# mine\n")
        assert not list(folder.glob("*.pocqueue-*"))
        (folder / "app.toml").unlink()
        (folder / "app.toml").symlink_to(tmp_path / "target")
        assert (await here.host.connection.run(command)).exit_code == 66
        with pytest.raises(StepFailed, match="is a symbolic link"):
            await here.later().plan(SETTINGS[1])
