"""What keeps a node from starting is one sentence and code 2."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.pouw.acceptance.processes import NodeProcess
from tests.pouw.flow.nodes import quick_genesis
from tests.support.small_disk import fill, small_disk

_Made = Callable[..., NodeProcess]


@pytest.fixture
def made(tmp_path: Path) -> Iterator[_Made]:
    """Give what starts supervisors; those that run are ended after the test."""
    nodes: list[NodeProcess] = []

    def make(name: str, network: str, folder: str, options: str = "") -> NodeProcess:
        node = NodeProcess(
            tmp_path / folder, "supervisor", network, name=name, options=f"--no-mine {options}"
        )
        nodes.append(node)
        node.start()
        return node

    yield make
    for one in nodes:
        one.stop()


def _sentence(one: NodeProcess) -> str:
    """Return what a node said last, which ended by itself with code 2."""
    assert one.ended() == 2, one.log.read_text()
    said = one.log.read_text()
    assert "Traceback" not in said
    assert said.count("pocqueue: ") == 1, said
    return " ".join(said[said.index("pocqueue: ") :].split())


def test_folder_and_ports_are_one_node_s(tmp_path: Path, made: _Made) -> None:
    """A second node in it is refused, and so are a taken port and another network; Ctrl-C ends the first one with 0."""
    network = quick_genesis(tmp_path)
    first = made("first", network, "folder")
    first.until_past("blockchain_height", 0)

    assert "is in use by another node" in _sentence(made("second", network, "folder"))
    third = made("third", network, "other", options=f"--port {first.port}")
    assert f"port {first.port} of 127.0.0.1 is taken: give another one" in _sentence(third)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = _sentence(made("fourth", network, "other", f"--http-port {port}"))
    assert f"POCQUEUE_POUW_HTTP_PORT is {port} on 127.0.0.1, which cannot be listened on" in said
    assert said.endswith("or choose another with --http-port.")

    first.signal(signal.SIGINT)
    assert first.ended() == 0
    stranger = _sentence(made("stranger", "dev", "folder"))
    assert "is of network" in stranger
    assert "give each network a folder of its own, by POCQUEUE_POUW_DIR" in stranger


def test_a_full_disk_is_told_at_the_start(tmp_path: Path, made: _Made) -> None:
    """A new node's and one's with a past: what cannot be written is named; with room the same node starts."""
    network = quick_genesis(tmp_path)
    with small_disk(tmp_path / "disk"):
        full = fill(tmp_path / "disk")
        said = _sentence(made("full", network, "disk"))
        assert str(tmp_path / "disk") in said
        full.unlink()
        node = made("node", network, "disk")
        node.until_past("blockchain_height", 0)
        node.stop()
        full = fill(tmp_path / "disk")
        assert str(tmp_path / "disk" / "chain.sqlite3") in _sentence(made("past", network, "disk"))
        full.unlink()
        made("again", network, "disk").until_past("blockchain_height", 0)
