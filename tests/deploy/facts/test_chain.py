"""The chain's node: its status, and settings files that are edited with all other lines kept."""

from __future__ import annotations

import json
import tomllib
from typing import Any

import pytest
from hypothesis import given, strategies as st

from pocqueue.deploy.facts.chain import (
    BlockId,
    Setting,
    Value,
    differences,
    edited,
    read_block,
    read_status,
    trusted_block,
)
from pocqueue.deploy.facts.parts import UnexpectedAnswer

STATUS: dict[str, Any] = {
    "node_info": {"id": "5f" * 20, "network": "gonka-mainnet", "version": "0.38.17"},
    "sync_info": {
        "latest_block_height": "1201345",
        "latest_block_time": "2026-11-28T14:30:15.123Z",
        "catching_up": True,
    },
}

CONFIG = """\
# This is a TOML config file.
proxy_app = "tcp://127.0.0.1:26658"   # of the application
moniker = "node"

#######################################################
###           P2P Configuration Options             ###
#######################################################
[p2p]

# Comma separated list of nodes to keep persistent connections to
persistent_peers = "" # none yet
  laddr = "tcp://0.0.0.0:26656"
max_num_inbound_peers = 40

[statesync]
enable = false
rpc_servers = ""
trust_height = 0
trust_hash = ""

[tx_index]
indexer = "kv"
note = '''
[p2p]
persistent_peers = "not this one"
'''
"""
APP = """\
minimum-gas-prices = ""
pruning = "default"
pruning-keep-recent = "0"
[api]
enable = true
pruning = "another one"
"""
PEERS = f"{'ab' * 20}@node2.gonka.ai:5000,{'cd' * 20}@[::1]:26656"


def test_status() -> None:
    """With JSON-RPC's envelope, or without."""
    status = read_status(json.dumps({"jsonrpc": "2.0", "id": -1, "result": STATUS}))
    assert status == read_status(json.dumps(STATUS))
    assert (status.height, status.is_catching_up, status.network) == (
        1201345,
        True,
        "gonka-mainnet",
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "404 page not found",
        "[]",
        '{"error": {"code": -32603}}',
        json.dumps(STATUS | {"sync_info": {"latest_block_height": "x", "catching_up": False}}),
        json.dumps(STATUS | {"sync_info": {"latest_block_height": "1", "catching_up": "false"}}),
        json.dumps({"result": None}),
    ],
)
def test_what_is_no_status_is_an_error(text: str) -> None:
    """Least of all a node that has caught up."""
    with pytest.raises(UnexpectedAnswer, match="/status"):
        read_status(text)


def test_two_servers_have_to_agree_on_a_block() -> None:
    """Height and hash."""
    block = read_block(
        json.dumps(
            {"result": {"block_id": {"hash": "ab" * 32}, "block": {"header": {"height": "7"}}}}
        )
    )
    assert block == BlockId(7, "AB" * 32)
    assert trusted_block(block, BlockId(7, "AB" * 32)) == block
    for other in (BlockId(7, "CD" * 32), BlockId(8, "AB" * 32)):
        with pytest.raises(UnexpectedAnswer, match="the second RPC server"):
            trusted_block(block, other)
    with pytest.raises(UnexpectedAnswer):
        read_block('{"result": {"block_id": {"hash": ""}, "block": {"header": {"height": "7"}}}}')


def test_a_value_is_edited_and_all_else_kept() -> None:
    """Comments, blanks, and lines within a long string that look alike."""
    wanted: dict[Setting, Value] = {
        ("p2p", "persistent_peers"): PEERS,
        ("statesync", "enable"): True,
        ("statesync", "trust_height"): 1200345,
    }
    assert set(differences(CONFIG, wanted)) == set(wanted)
    result = edited(CONFIG, wanted)
    before, after = CONFIG.split("\n"), result.split("\n")
    assert [(a, b) for a, b in zip(before, after, strict=True) if a != b] == [
        ('persistent_peers = "" # none yet', f'persistent_peers = "{PEERS}" # none yet'),
        ("enable = false", "enable = true"),
        ("trust_height = 0", "trust_height = 1200345"),
    ]
    assert differences(result, wanted) == {}
    assert edited(result, wanted) == result


def test_settings_at_the_top_and_of_the_same_name_elsewhere() -> None:
    """The one of the table is meant."""
    result = edited(APP, {("", "pruning"): "custom", ("", "pruning-keep-recent"): "1000"})
    assert result == APP.replace('"default"', '"custom"').replace('"0"', '"1000"')


def test_a_setting_that_is_not_there_is_added_to_its_table() -> None:
    """At its end, before the blank lines."""
    result = edited(CONFIG, {("p2p", "seed_mode"): True})
    assert result == CONFIG.replace(
        "max_num_inbound_peers = 40\n", "max_num_inbound_peers = 40\nseed_mode = true\n"
    )
    top = edited(APP, {("", "pruning-interval"): "100"})
    assert top == APP.replace("[api]", 'pruning-interval = "100"\n[api]')


@pytest.mark.parametrize(
    ("text", "setting"),
    [
        ("[p2p\n", ("p2p", "seeds")),
        ("", ("p2p", "seeds")),
        ('[p2p]\nseeds = """\na\n"""\n', ("p2p", "seeds")),
        ('[p2p]\nseeds = [\n"a",\n]\n', ("p2p", "seeds")),
        ('p2p = { seeds = "" }\n', ("p2p", "seeds")),
        ('[p2p]\nseeds.a = "x"\n', ("p2p", "seeds")),
    ],
)
def test_what_a_line_cannot_hold_is_an_error(text: str, setting: Setting) -> None:
    """No file is written that a parser sees otherwise."""
    with pytest.raises(UnexpectedAnswer, match="the settings file"):
        edited(text, {setting: "x"})


@given(
    value=st.one_of(
        st.integers(0, 1 << 60),
        st.booleans(),
        st.text(st.characters(codec="utf-8", exclude_characters="\x7f")),
    ),
    comment=st.sampled_from(["", " # was it", "  #"]),
    old=st.sampled_from(['""', "'a # b'", '"a \\" # b"', "1", "true", "[1, 2]"]),
)
def test_any_value_comes_back(value: Value, comment: str, old: str) -> None:
    """Quotes, backslashes, and what looks like a comment."""
    text = f"[a]\nx = 1\n[p2p]\nseeds = {old}{comment}\n[b]\nseeds = 2\n"
    result = edited(text, {("p2p", "seeds"): value})
    assert tomllib.loads(result) == {"a": {"x": 1}, "p2p": {"seeds": value}, "b": {"seeds": 2}}
    assert result.split("\n")[3].endswith(comment)
