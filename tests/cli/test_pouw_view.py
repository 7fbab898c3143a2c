"""What the table of `pocqueue pouw testnet` shows, and what it says at the end."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from pocqueue.cli import pouw
from pocqueue.cli.pouw_view import line, table, verdict


def _node(name: str, *, height: int, final: int, branch: str = "a", **other: Any) -> dict[str, Any]:
    """A node that follows one of two chains."""
    return {
        "node_id": name,
        "role": name.partition("_")[0],
        "port": 40000,
        "is_running": True,
        "public_key": f"02{name.encode().hex():>064}",
        "blockchain_height": height,
        "anchor_height": final,
        "slot": 1234,
        "peer_count": 3,
        "turn": 2345,
        "epoch": 3,
        "accuracy": 0.953125 if name == "supervisor_001" else None,
        "economics": {"stake_amount": 100.0, "balance": 1234.5},
        "blocks": [
            {
                "height": number,
                "id": f"{branch}{number:063x}",
                "state": f"{branch}{number:063x}",
                "miner": f"02{b'miner_001'.hex():>064}",
                "slot": 40 * number,
                "time": "2026-11-29T12:00:00.000+00:00",
                "proof": "trained: slot 40" if number > 1 else "founding: plain hashes",
                "is_final": number <= final,
            }
            for number in range(height, max(0, height - 5), -1)
        ],
        "slots": [
            {"turn": turn, "certificate": f"{branch}{turn:063x}", "theta": f"{turn:064x}"}
            for turn in range(10 * height, 10 * height - 5, -1)
        ],
        **other,
    }


def _silent(name: str) -> dict[str, Any]:
    return {"node_id": name, "role": "miner", "port": 40001, "is_running": False}


_UP = [_node("supervisor_001", height=4, final=2), _node("miner_001", height=4, final=2)]


def test_a_link_without_a_pong_yet_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its ping is not known."""
    peer = {
        **{"node_id": "young", "role": "miner", "host": "127.0.0.1", "port": 1},
        **{"account": "02ab", "rtt_s": None, "age_s": 1.0},
    }
    monkeypatch.setattr(pouw, "ask", lambda *_: [peer])
    pouw.peers()
    assert "young" in capsys.readouterr().out


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits(width: int) -> None:
    """No line is broken or cut in a narrow or a wide terminal; all that a node says of itself is there."""
    view = Console(width=width, record=True, force_terminal=True, highlight=False)
    happened = ["kill -9 miner_002, started again after 6 s: not over yet"]
    view.print(table([*_UP, _silent("miner_002")], happened, width=width, up_s=75.0))
    said = view.export_text().splitlines()
    assert said[0].rstrip() == "Height 4, slot 1,234, accuracy 95.31 %, up 75 s"
    [row] = [text.split() for text in said if text.startswith("miner_001")]
    assert row[-4:] == ["3", "3", "100", "1,234.50"]
    assert ("2,345" in row) == (width == 120)
    assert happened[0] in map(str.rstrip, said)
    assert any(text.split()[:4] == ["2", "final", "miner_001", "slot"] for text in said)
    assert any("founding" in text for text in said)
    assert max(map(len, said)) <= width
    assert not any("…" in text for text in said)


def test_before_any_node_answers() -> None:
    """The table and the line say so."""
    view = Console(width=80, record=True, force_terminal=True)
    view.print(table([_silent("miner_001")], width=80, up_s=2.0))
    assert "Nodes start, up 2.0 s" in view.export_text()
    assert line([_silent("miner_001")]) == "no node answers yet"
    assert line(_UP) == "2 nodes, height 4, slot 1,234, accuracy 95.31 %"


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (
            _UP,
            "2 nodes agree on one chain of 4 blocks, on the weights after turn 40 and on all balances at height 2.",
        ),
        (
            [*_UP, _node("miner_002", height=4, final=2, slots=[])],
            "miner_002 did not follow: others have final blocks up to 2.",
        ),
        (
            [*_UP, _node("miner_002", height=4, final=0, branch="b")],
            "Nodes have different slots of turn 36.",
        ),
        ([*_UP, _silent("miner_002")], "miner_002 did not answer at the end."),
        (
            [*_UP, _node("miner_002", height=3, final=2, branch="b")],
            "Nodes have different final blocks at height 1.",
        ),
        (
            [_node("supervisor_001", height=40, final=38), _node("miner_001", height=6, final=4)],
            "miner_001 did not follow: others have final blocks up to 38.",
        ),
    ],
)
def test_whether_they_agree(found: list[dict[str, Any]], sentence: str) -> None:
    """Nodes that are silent, elsewhere or far behind do not, and are named."""
    said = verdict(found)
    assert said["sentence"] == sentence
    assert said["agree"] == (found is _UP)


def test_what_they_agree_on_is_said() -> None:
    """Block, balances and weights that all have; of before the first slot there is only the chain."""
    said = verdict(_UP)
    assert (said["anchor_height"], said["anchor"], said["turn"]) == (2, f"a{2:063x}", 40)
    assert (said["state"], said["theta"]) == (f"a{2:063x}", f"{40:064x}")
    young = verdict([{**one, "slots": []} for one in _UP])
    assert young["sentence"] == "2 nodes agree on one chain of 4 blocks."
    assert (young["agree"], young["theta"]) == (True, None)


def test_who_cheats_is_not_asked() -> None:
    """It may say what it likes, or nothing."""
    liar = _node("miner_002", height=4, final=2, branch="b")
    assert not verdict([*_UP, liar])["agree"]
    assert verdict([*_UP, liar, _silent("miner_003")], {"miner_002", "miner_003"})["agree"]
