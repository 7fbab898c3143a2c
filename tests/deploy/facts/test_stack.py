"""pocqueue on a server by its own words: text in, value out."""

from __future__ import annotations

import pytest

from pocqueue.deploy.facts.parts import UnexpectedAnswer
from pocqueue.deploy.facts.stack import PoolEntry, UnitState, read_stack
from tests.deploy.facts.answers import answer

VERSION = "0.1.0-0123456789ab"
UNIT = "ActiveState=active\nUnitFileState=enabled\nMainPID=7\nstack=abc"


def stack(**parts: str | tuple[str, int]) -> str:
    """Return the answer of a server that has all of it."""
    usual: dict[str, str | tuple[str, int]] = {
        "account": "pocqueue:x:998:998::/var/lib/pocqueue:/usr/sbin/nologin",
        "pythons": "python3=3.10\npython3.12=3.12",
        "versions": f"{VERSION}=hash[hosts]",
        "links": f"current={VERSION}\nprevious=",
        "env": "hash=12ab\nmode=640",
        "files": "pocqueue.target=-",
        "unit:pocqueue-io.service": UNIT,
        "pool": '[{"queue": "a.gpu0", "pid": 7, "is_live": true, "draining": false}]',
    }
    return answer(**usual | parts)


def test_a_usual_server() -> None:
    """All that it says."""
    facts = read_stack(stack())
    assert (facts.has_account, facts.python, facts.current, facts.previous) == (
        *(True, "python3.12", VERSION),
        "",
    )
    assert (facts.env_hash, facts.env_mode) == ("12ab", 0o640)
    assert facts.versions == {VERSION: "hash[hosts]"}
    assert facts.units == {"pocqueue-io.service": UnitState("active", True, 7, "abc")}
    assert facts.pool == (PoolEntry("a.gpu0", 7, True),)
    assert [facts.is_in_pool("a.gpu0", pid) for pid in (7, 8, None)] == [True, False, True]


def test_a_bare_server() -> None:
    """Has none of it."""
    facts = read_stack(
        stack(
            account=("", 2),
            pythons="python3=3.10",
            versions="",
            links="current=\nprevious=",
            env="hash=-",
            pool=("", 1),
        )
    )
    assert (facts.has_account, facts.python, facts.pythons) == (False, "", "3.10")
    assert (facts.current, facts.env_hash, facts.pool) == ("", "-", None)
    assert not facts.is_in_pool("a.gpu0", None)
    assert read_stack(stack(pythons="")).pythons == "none with venv"


@pytest.mark.parametrize(
    "parts",
    [
        {"links": "current=../../etc"},
        {"pool": "No GPUs."},
        {"pool": '[{"queue": "a"}]'},
        {"unit:x": "Unit x not found"},
        {"pythons": "python3=new"},
    ],
)
def test_what_is_not_understood_is_an_error(parts: dict[str, str | tuple[str, int]]) -> None:
    """Nothing is made up."""
    with pytest.raises(UnexpectedAnswer):
        read_stack(stack(**parts))
