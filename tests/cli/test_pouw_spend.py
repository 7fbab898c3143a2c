"""What `pocqueue pouw send` says where no block has the transaction in time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer

from pocqueue.cli import pouw_spend
from pocqueue.cli.output import EXIT_FAILED
from pocqueue.pouw.chain.signatures import account_of
from pocqueue.pouw.errors import NoAnswer, PouwError
from pocqueue.pouw.files import NODE_KEY, account_key
from pocqueue.pouw.wire.codec import decode
from pocqueue.pouw.wire.transactions import Transaction
from pocqueue.settings import PouwSettings
from tests.pouw.support import account

_TO = account("somebody").hex()


class _Node:
    """A node that answers; a block has what is sent after so many looks."""

    def __init__(self, account: str, *, looks: int, refuses: PouwError | None = None) -> None:
        self.account, self.looks, self.refuses = account, looks, refuses
        self.num_sent = 0
        self.height: int | None = 7

    def ask(self, _port: int | None, path: str, *, post: bool = False) -> Any:
        """As `pouw_client.ask`; every other look at the account finds nobody."""
        if post:
            self.num_sent += 1
            self.sent = path.removeprefix("transactions/")
            if self.refuses:
                raise self.refuses
            return {"num_bytes": 200}
        if path.startswith("transactions/"):
            transaction = decode(bytes.fromhex(self.sent), Transaction)
            assert path == f"transactions/{transaction.id.hex()}"
            return {"id": transaction.id.hex(), "height": self.height, "reason": None}
        if path == "status":
            return {"public_key": self.account}
        self.looks -= self.num_sent
        if self.num_sent and self.looks % 2:
            raise NoAnswer("No node answers.")
        sequence = 1 if self.looks < 0 else 0
        return {"next_sequence": 0, "usual_fee": 1000, "sequence": sequence, "balance": 3.5}


@pytest.fixture
def begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Have a node there, in whose folder the key is; no time is waited."""
    monkeypatch.setenv("POCQUEUE_POUW_DIR", str(tmp_path))
    own = account_of(account_key(PouwSettings.load(), tmp_path, NODE_KEY)).hex()

    def begin(**given: Any) -> _Node:
        made = _Node(own, **given)
        monkeypatch.setattr(pouw_spend, "ask", made.ask)
        return made

    monkeypatch.setattr(pouw_spend, "_LOOK_S", 0.0)
    monkeypatch.setattr(pouw_spend, "_PATIENCE_S", 0.2)
    return begin


@pytest.mark.parametrize("refuses", [None, NoAnswer("No node answers.")])
def test_a_node_that_is_away_for_a_moment_does_no_harm(
    begun: Any, capsys: pytest.CaptureFixture[str], refuses: PouwError | None
) -> None:
    """What was sent is waited for, also if nobody said that it came."""
    node = begun(looks=4, refuses=refuses)
    pouw_spend.send(_TO, "1.5")
    assert node.num_sent == 1
    assert capsys.readouterr().out == f"1.5 PAI to {_TO}; 3.500000 PAI are left.\n"


def test_that_another_one_took_its_place_is_no_success(
    begun: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its number is used up, and no block has it."""
    begun(looks=4).height = None
    with pytest.raises(typer.Exit) as left:
        pouw_spend.send(_TO, "1.5")
    assert left.value.exit_code == EXIT_FAILED
    said = capsys.readouterr()
    assert said.out == ""
    assert "it was not done" in said.err
    assert "another one of this key has its number" in said.err


def test_what_no_block_has_in_time_is_not_called_a_failure(
    begun: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Code 1, its id, and the warning that a second one would pay twice."""
    begun(looks=10**9)
    with pytest.raises(typer.Exit) as left:
        pouw_spend.send(_TO, "1.5")
    assert left.value.exit_code == EXIT_FAILED
    said = capsys.readouterr().err
    assert "as transaction " in said
    assert "may still be taken: do not send it again" in said


def test_what_the_node_refuses_is_refused(begun: Any) -> None:
    """At once, with its sentence."""
    begun(looks=4, refuses=PouwError("balance: its sender cannot pay for it."))
    with pytest.raises(PouwError, match="balance: its sender cannot pay"):
        pouw_spend.send(_TO, "1.5")
