"""The chain's node: whether it runs with its settings, was waited for, and has caught up."""

from __future__ import annotations

import base64

import pytest

from pocqueue.deploy.facts.chain import ChainStatus
from pocqueue.deploy.facts.chain_node import NodeFacts, read_node
from pocqueue.deploy.facts.parts import UnexpectedAnswer


def facts(
    started: float | None = None,
    edited: float | None = None,
    waited: float | None = None,
    status: ChainStatus | None = None,
) -> NodeFacts:
    """Return what is so of a node."""
    return NodeFacts({}, {}, status, started, edited, waited)


def test_settings_count_when_it_was_started_after_them() -> None:
    """None were edited, or it was; not where it does not run."""
    assert facts(started=5).has_settings
    assert facts(started=5, edited=5).has_settings
    assert not facts(started=5, edited=5.1).has_settings
    assert not facts(edited=5).has_settings


def test_it_is_waited_for_once_a_start() -> None:
    """A later start is waited for again."""
    assert facts(started=5, waited=6).was_waited_for
    assert not facts(started=7, waited=6).was_waited_for
    assert not facts(waited=6).was_waited_for


def test_it_has_caught_up_by_its_own_words() -> None:
    """With a block; silence is none."""
    assert facts(status=ChainStatus("a", "b", 7, False)).is_synced
    assert not facts(status=ChainStatus("a", "b", 7, True)).is_synced
    assert not facts(status=ChainStatus("a", "b", 0, False)).is_synced
    assert not facts().is_synced


def test_an_answer() -> None:
    """Files whole, times with their parts; what is no text or no time is an error."""
    text = base64.b64encode('é = "x"\n'.encode()).decode()
    rest = "@status\n=1\n@store\n blockstore.db\n=0\n@started\n 1764438021.123456789\n=0\n@edited\n=0\n@waited\n=0\n"
    head = "@config.toml.kind\n kind=regular file\n=0\n@config.toml\n {}\n=0\n@app.toml.kind\n kind=directory\n=0\n"
    found = read_node(head.format(text) + rest)
    assert found.texts == {"config.toml": 'é = "x"\n'}
    assert found.kinds == {"app.toml": "directory"}
    assert (found.status, found.started_s, found.edited_s) == (None, 1764438021.123456789, None)
    assert (found.has_store, found.has_blocks) == (True, None)
    for wrong in (head.format("/w==") + rest, head.format(text) + rest.replace("1764438021", "x")):
        with pytest.raises(UnexpectedAnswer):
            read_node(wrong)
