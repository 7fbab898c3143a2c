"""What `pocqueue pouw committee`, `alerts` and `evidence` print of what a node says."""

from __future__ import annotations

from typing import Any

import pytest

from pocqueue.cli import pouw_security
from pocqueue.pouw.errors import ConfigError

_ACCOUNTS = [f"02{number:064x}" for number in range(4)]


def _says(monkeypatch: pytest.MonkeyPatch, answer: Any) -> list[str]:
    """Have a node answer so; return where it is asked."""
    asked: list[str] = []

    def ask(_port: int | None, path: str) -> Any:
        asked.append(path)
        return answer

    monkeypatch.setattr(pouw_security, "ask", ask)
    monkeypatch.setenv("COLUMNS", "160")
    return asked


def _member(place: int, **changed: Any) -> dict[str, Any]:
    return {
        "place": place,
        "account": _ACCOUNTS[place],
        "name": f"supervisor_{place}",
        "is_self": False,
        "heard_s": 0.25,
        "is_silent": False,
        "is_faulty": False,
        **changed,
    }


def _committee(**changed: Any) -> dict[str, Any]:
    return {
        "epoch": 3,
        "threshold": 3,
        "group_key": "aa" * 48,
        "members": [
            _member(0, is_self=True),
            _member(1, name=None),
            _member(2, is_silent=True),
            _member(3, is_faulty=True),
        ],
        "bad_share": 0.5,
        "alarm_share": 1 / 3,
        "generation": None,
        **changed,
    }


def test_a_committee_with_its_members(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who is heard, who is not, who lies; and what the next one waits for."""
    making = {
        **{"epoch": 4, "height": 120, "phase": "complaints", "threshold": 4},
        "candidates": [*_ACCOUNTS, "02ff"],
    }
    _says(monkeypatch, _committee(generation=making))
    pouw_security.committee()
    said = capsys.readouterr().out
    assert "3 of 4 members make a signature" in said
    assert "2, that is 50.00 %; alarm from 33.33 %" in said
    rows = [line.split() for line in said.splitlines() if line[:1].isdigit()]
    assert [row[1] for row in rows] == ["supervisor_0", "-", "supervisor_2", "supervisor_3"]
    assert [row[-1] for row in rows] == ["itself", "ago", "silent", "itself"]
    assert "FAULTY" in said.splitlines()[-2]
    assert "The key of epoch 4 is in the making since height 120: complaints, 5 candidates." in said


def test_nobody_in_office(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A chain that has just begun."""
    nobody = _committee(epoch=None, threshold=None, group_key=None, members=[], bad_share=0.0)
    _says(monkeypatch, nobody)
    pouw_security.committee()
    assert "Nobody is in office yet" in capsys.readouterr().out


def test_alerts_in_a_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With time, type, source and what it is about; none is said too, and that nobody looks."""
    alert = {
        **{"type": "invalid_block", "source_peer": _ACCOUNTS[1], "detail": "block ab: target"},
        **{"height": 3, "slot": 9, "time": "2026-11-30T05:00:00+00:00", "evidence": ""},
    }
    for answer, expected in (
        (
            {"threat_level": "MEDIUM", "alerts": [alert]},
            ("MEDIUM", "invalid_block", "020000000000", "block ab: target", "2026-11-30"),
        ),
        ({"threat_level": "LOW", "alerts": []}, ("LOW", "No alerts.")),
        ({"threat_level": None, "alerts": []}, ("enable_security_monitoring is off",)),
    ):
        _says(monkeypatch, answer)
        pouw_security.alerts()
        said = capsys.readouterr().out
        assert all(word in said for word in expected), said


_EVIDENCE = {
    **{"transaction": "ab" * 32, "height": 7, "culprit": _ACCOUNTS[0], "kind": "Fault"},
    **{"shows": ["It lied.", "All saw it."], "holds": True, "checked": "All is signed."},
    **{"ticket": "cd" * 32, "role": "miner", "stake": 100.0, "finder": _ACCOUNTS[1]},
    **{"bounty": 20.0, "task": None, "to_task": 0.0, "burnt": 80.0},
}


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, ("80.000000 PAI to nobody", "holds: All is signed.", "It lied.\nAll saw it.")),
        ({"task": "ef" * 32}, (f"80.000000 PAI to task {'ef' * 32}",)),
        ({"holds": False, "checked": "no."}, ("DOES NOT HOLD: no.",)),
        ({"holds": None, "checked": "ask again."}, ("cannot be checked: ask again.",)),
    ],
)
def test_evidence_in_lines(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    changed: dict[str, Any],
    expected: tuple[str, ...],
) -> None:
    """What was lost, who was paid, and what it shows in sentences."""
    asked = _says(monkeypatch, [{**_EVIDENCE, **changed}])
    pouw_security.evidence("AB" * 32)
    assert asked == [f"evidence/{'ab' * 32}"]
    said = capsys.readouterr().out
    lost = f"100.000000 PAI, miner ticket {'cd' * 32}"
    paid = f"{_ACCOUNTS[1]} got 20.000000 PAI"
    for words in (*expected, lost, paid):
        assert words in said


def test_what_is_no_id_is_refused_before_anybody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says what one is."""
    asked = _says(monkeypatch, [])
    with pytest.raises(ConfigError, match="64 hex digits"):
        pouw_security.evidence("miner_1")
    assert not asked
