"""Genesis: the same file is the same network, another one is another, and a wrong one is named."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import msgspec
import pytest

from pocqueue.pouw.chain import genesis
from pocqueue.pouw.chain.genesis import Genesis
from pocqueue.pouw.chain.signatures import account_of
from pocqueue.pouw.errors import NodeDataError
from pocqueue.pouw.wire.codec import decode, encode
from tests.pouw.support import coins, key

DEV = files("pocqueue.pouw.chain").joinpath("dev.toml").read_text("utf-8")


def test_dev_is_the_same_network_everywhere() -> None:
    """Frozen: whoever changes it makes another network of it."""
    dev = Genesis.dev()
    assert dev.network.hex() == "6420507f48a34844ca520d2fb34edda67d823670870607a6aefa60325901a7d9"
    assert dev.header_id.hex() == "db9602ca10c58402d6d137ecc728144d8d77633b189d74dfae87b8d36dc9ca57"
    assert decode(encode(dev), Genesis) == dev


def test_its_layout_does_not_matter(tmp_path: Path) -> None:
    """Comments and spaces are no part of a network."""
    path = tmp_path / "same.toml"
    path.write_text("# mine\n\n" + DEV.replace(" = ", "="))
    assert Genesis.load(path).network == Genesis.dev().network


def test_accounts_own_what_it_says(tmp_path: Path) -> None:
    """And these are all coins of the network."""
    account = account_of(key("rich"))
    path = tmp_path / "own.toml"
    path.write_text(DEV + f"{account.hex()} = 12.5\n")
    state = Genesis.load(path).state
    assert state.account(account).balance == coins(state) == state.supply.issued == 12_500_000


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('name = "dev"', "", "name is missing"),
        ("block_ms = 10_000", "", "block_ms is missing"),
        ("block_ms = 10_000", "block_ms = 0", "block_ms is 0: .*>= 1"),
        ("block_ms = 10_000", "blocks_ms = 1\nblock_ms = 1", "'blocks_ms' is not known"),
        ("subsidy = 50", "subsidy = 0.0000001", "at most 6 decimals"),
        ("first_target_bits = 247", "first_target_bits = 256", "1 to 255"),
        ("T00:00:00Z", "", "with its zone"),
        ('data = "digits"', 'data = "mnist"', "filler_data is 'mnist'"),
        ("[slots]", "slots = 3", "slots is missing"),
        ("[accounts]", "[accounts]\n0203 = 5", "33"),
        ("[accounts]", "[more]\n[accounts]", "'more' is not known"),
        ("[blocks]", "[[blocks]]", "blocks is .* a table"),
        ("[blocks]", "[blocks", "line"),
        ("hidden = [128, 64]", "hidden = [128, 0]", "hidden is"),
        ("hidden = [128, 64]", "hidden = [4096, 4096]", "weights; allowed"),
        ('architecture = "MLP"', 'architecture = "BAG"', "BAG trains on words"),
        ("fee = 0.0001 ", "fee = 0.00000001 ", "at most 6 decimals"),
        ("lap_fee", "lap_price", "lap_fee is missing"),
        ("subsidy = 50", "subsidy = []", "subsidy is"),
    ],
)
def test_what_is_wrong_is_said(old: str, new: str, reason: str) -> None:
    """In one sentence, with the name of the file."""
    assert old in DEV
    with pytest.raises(NodeDataError, match=rf"The genesis my\.toml does not .*({reason})"):
        genesis.parse(DEV.replace(old, new, 1), "my.toml")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """As any other file that cannot be read."""
    with pytest.raises(NodeDataError, match=r"none\.toml cannot be read"):
        Genesis.load(tmp_path / "none.toml")


def test_fillers_are_all_different_and_known_as_such() -> None:
    """One task for each generation, by its id alone; another network's are none."""
    dev = Genesis.dev()
    other = msgspec.structs.replace(dev, name="other")
    fillers = [dev.filler_task(generation) for generation in (*range(9), 2**63)]
    assert len(set(fillers)) == 10
    assert all(map(dev.is_filler, fillers))
    assert not any(map(other.is_filler, fillers))
    assert not dev.is_filler(bytes(32))
    assert not dev.is_filler(fillers[0][:-1] + b"\x00")
    assert not dev.is_filler(fillers[0] + b"\x00")
    assert (dev.task_name(fillers[3]), dev.task_name(b"\xab" * 32)) == ("filler 3", "ab" * 6)
