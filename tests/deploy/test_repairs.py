"""The chain's data moved aside: after the name was typed, with the keys kept, and with nothing removed."""

from __future__ import annotations

import io
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest_asyncio

from pocqueue.deploy.begin import Options
from pocqueue.deploy.conf import Conf
from pocqueue.deploy.host_key import fingerprint_of
from pocqueue.deploy.repairs import ChainDataAside, repair
from pocqueue.deploy.runner import run_all
from pocqueue.deploy.steps.repository import Repository
from pocqueue.deploy.steps.services import ServicesRun
from tests.deploy.server import FAKES, Fault
from tests.deploy.steps.on_disk import OnDisk, on_disk
from tests.deploy.steps_of_tests import tree

DATA = {
    "priv_validator_state.json": '{"height": "4711"}',
    "upgrade-info.json": "{}",
    "blockstore.db": "b" * 999,
}


@dataclass
class Node:
    """A node that runs, and what was asked."""

    disk: OnDisk
    conf: Conf
    questions: list[str] = field(default_factory=list)
    text: str = ""

    @property
    def chain(self) -> Path:
        """Its folder of the chain."""
        return self.disk.disk / "gonka" / "deploy" / "join" / ".inference"

    async def repair(self, answer: str | None) -> int:
        async def ask(question: str, *, is_hidden: bool = False) -> str:
            assert not is_hidden
            assert answer is not None
            self.questions.append(question)
            return answer

        console = io.StringIO()
        options = Options(
            console=console,
            ask=None if answer is None else ask,
            is_confirmed=True,
            state_dir=self.disk.host.state_dir,
            retry_delays_s=(0, 0.05, 0.2),
        )
        code = await run_all([self.conf], options, repair)
        self.text = console.getvalue()
        return code


@pytest_asyncio.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    """A node with data of the chain, and keys."""
    async with on_disk(tmp_path) as disk:
        await disk.run(Repository(), ServicesRun())
        bin_dir = tmp_path / "bin"
        bin_dir.mkdir()
        (bin_dir / "sudo").write_text('#!/bin/sh\nshift\nexec "$@"\n')
        (bin_dir / "sudo").chmod(0o755)
        disk.server.env["PATH"] = f"{FAKES}:{bin_dir}:{os.environ['PATH']}"
        where: dict[str, Any] = {
            "server_ip": "127.0.0.1",
            "ssh_port": disk.server.port,
            "ssh_key": disk.server.key,
            "ssh_host_key": fingerprint_of(disk.server.host_key),
        }
        one = replace(disk.host.conf, **where)
        (one.folder / "state.json").unlink(missing_ok=True)
        node = Node(disk, one)
        for name, content in DATA.items():
            (node.chain / "data").mkdir(parents=True, exist_ok=True)
            (node.chain / "data" / name).write_text(content)
        (node.chain / "keyring-file").mkdir()
        (node.chain / "keyring-file" / "keyhash").write_text("x")
        yield node


async def test_data_are_moved_and_not_removed(node: Node) -> None:
    """What was signed last stays in place, all of it lies aside, the keys are in an archive, and the node runs."""
    assert await node.repair("quick-newton") == 0
    assert "type KEY_NAME" in node.questions[0]
    assert "data go to data.pocqueue-" in node.text
    [aside] = node.chain.glob("data.pocqueue-*")
    assert {path.name: path.read_text() for path in aside.iterdir()} == DATA
    there = {path.name: path.read_text() for path in (node.chain / "data").iterdir()}
    assert there == {
        name: DATA[name] for name in ("priv_validator_state.json", "upgrade-info.json")
    }
    assert list((Path(node.disk.host.state_dir) / "backups").glob("quick-newton-*.tar"))
    assert "[OK] chain data aside: " in node.text
    assert "--from 5" in node.text
    words = [str(call) for call in node.disk.fakes.calls("docker")]
    assert "docker compose -f docker-compose.yml stop node" in words
    assert "docker compose -f docker-compose.yml up -d --no-deps node" in words


async def test_another_name_moves_nothing(node: Node) -> None:
    """Nor does a run without a terminal, whatever is confirmed."""
    before = tree(node.disk.disk)
    for answer in ("quick-Newton", "yes", ""):
        assert await node.repair(answer) == 0
        assert "nothing was done" in node.text
    assert await node.repair(None) == 2
    assert tree(node.disk.disk) == before
    assert "[EXEC]" not in node.text


async def test_one_that_was_cut_is_ended(node: Node) -> None:
    """After the data were moved, and before there is a new folder."""
    step = ChainDataAside("data.pocqueue-1")
    (node.chain / "data").rename(node.chain / "data.pocqueue-1")
    assert not (await step.look(node.disk.host)).is_aside
    await node.disk.run(step)
    assert (node.chain / "data" / "priv_validator_state.json").exists()
    assert (node.chain / "data.pocqueue-1" / "blockstore.db").exists()


async def test_a_node_that_does_not_stop_keeps_its_data(node: Node) -> None:
    """They are moved below no program that writes them."""
    node.disk.server.fault(Fault("stop node", instead=1, prints=b"cannot stop it\n"))
    assert await node.repair("quick-newton") == 1
    assert not list(node.chain.glob("data.pocqueue-*"))
    assert "cannot stop it" in node.text


async def test_a_link_is_not_followed(node: Node) -> None:
    """Data that lie elsewhere are not ours to move."""
    (node.chain / "data").rename(node.chain / "elsewhere")
    (node.chain / "data").symlink_to("elsewhere")
    assert await node.repair("quick-newton") == 1
    assert (node.chain / "elsewhere" / "blockstore.db").exists()
    assert (node.chain / "data").is_symlink()


async def test_a_full_disk_leaves_the_data_in_place(node: Node) -> None:
    """The new folder is made first; older files in one of a run before are not taken for what was signed last."""
    (node.chain / "data.pocqueue-new").mkdir()
    (node.chain / "data.pocqueue-new" / "priv_validator_state.json").write_text("older")
    cp = node.disk.server.root.parent / "bin" / "cp"
    cp.write_text("#!/bin/sh\necho 'No space left on device' >&2\nexit 1\n")
    cp.chmod(0o755)
    node.disk.server.env["PATH"] = f"{cp.parent}:{node.disk.server.env['PATH']}"
    assert await node.repair("quick-newton") == 1
    assert {path.name: path.read_text() for path in (node.chain / "data").iterdir()} == DATA
    assert not list(node.chain.glob("data.pocqueue-[0-9]*"))
    assert "No space left on device" in node.text
    assert f"the data stay in {node.chain}/data, and node is stopped" in node.text
    cp.unlink()
    assert await node.repair("quick-newton") == 0
    assert (node.chain / "data" / "priv_validator_state.json").read_text() == '{"height": "4711"}'


async def test_a_later_run_ends_what_was_cut(node: Node) -> None:
    """By the name that the data have, and not by the time of that run."""
    (node.chain / "data.pocqueue-20250101-000000").mkdir()
    (node.chain / "data").rename(node.chain / "data.pocqueue-20260101-000000")
    assert await node.repair("quick-newton") == 0
    assert "has moved them to data.pocqueue-20260101-000000" in node.text
    there = {path.name: path.read_text() for path in (node.chain / "data").iterdir()}
    assert there == {
        name: DATA[name] for name in ("priv_validator_state.json", "upgrade-info.json")
    }
    assert (node.chain / "data.pocqueue-20260101-000000" / "blockstore.db").exists()
    assert len(list(node.chain.glob("data.pocqueue-*"))) == 2
