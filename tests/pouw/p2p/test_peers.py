"""The table of addresses: what is taken in, what is given out, what is forgotten."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, strategies as st

from pocqueue.pouw.p2p.messages import MAX_ADDRESSES, Address
from pocqueue.pouw.p2p.peers import (
    MAX_FAILURES,
    MAX_HINTS_OF_SOURCE,
    MAX_OF_HOST,
    MAX_TABLE,
    AddressTable,
)


def _rng(seed: int) -> Random:
    return Random(seed)  # noqa: S311 - the same in each run


FAR, NEAR, HERE = "8.8.8.8", "192.168.1.1", "127.0.0.1"


@pytest.mark.parametrize(
    ("host", "source", "is_taken"),
    [
        ("1.1.1.1", FAR, True),
        ("1.1.1.1", HERE, True),
        ("10.0.0.1", FAR, False),
        ("10.0.0.1", NEAR, True),
        (HERE, FAR, False),
        (HERE, NEAR, False),
        (HERE, HERE, True),
        ("::1", FAR, False),
        ("::ffff:127.0.0.1", FAR, False),
        ("10.0.0.1", "", True),
        ("0.0.0.0", HERE, False),  # noqa: S104
        ("224.0.0.1", FAR, False),
        ("169.254.169.254", HERE, False),
        ("localhost", HERE, False),
        ("a name", "", False),
    ],
)
def test_nobody_outside_has_us_dial_what_is_near(host: str, source: str, is_taken: bool) -> None:
    """What is near is told by who is as near; a name by nobody."""
    table = AddressTable()
    assert table.hint(Address(host, 80), source) is is_taken
    assert len(table) == is_taken


def test_one_address_has_few_places() -> None:
    """But for this machine, where all nodes of a test network are."""
    table = AddressTable()
    for port in range(1, 20):
        table.hint(Address("1.1.1.1", port), FAR)
        table.hint(Address(HERE, port), HERE)
    assert len(table) == MAX_OF_HOST + 19


def test_one_source_has_few_places_until_its_word_is_tried() -> None:
    """So that nobody fills the table alone."""
    table = AddressTable()
    addresses = [Address(f"1.1.{i // 250}.{i % 250 + 1}", 80) for i in range(500)]
    assert sum(table.hint(each, FAR) for each in addresses) == MAX_HINTS_OF_SOURCE
    table.seen(addresses[0], 1000)
    assert sum(table.hint(each, FAR) for each in addresses[100:200]) == 1
    assert sum(table.hint(each, "9.9.9.9") for each in addresses[200:300]) == MAX_HINTS_OF_SOURCE


def test_who_was_met_keeps_the_place() -> None:
    """A full table drops what was only told, and takes nothing if there is no such."""
    table = AddressTable()
    for i in range(MAX_TABLE - 1):
        table.seen(Address(f"2.{i // 62_500}.{i // 250 % 250}.{i % 250 + 1}", 80), 1000)
    assert table.hint(Address("1.1.1.1", 80), FAR)
    assert table.hint(Address("1.1.1.2", 80), FAR)
    assert len(table) == MAX_TABLE
    assert Address("1.1.1.1", 80) not in table
    table.seen(Address("1.1.1.2", 80), 1000)
    assert not table.hint(Address("1.1.1.3", 80), FAR)
    assert len(table) == MAX_TABLE


def test_what_never_answers_is_forgotten() -> None:
    """After some dials in a row; one that works counts them anew, and who failed less is tried first."""
    table, address = AddressTable(), Address("1.1.1.1", 80)
    table.hint(address, FAR)
    for _ in range(MAX_FAILURES - 1):
        table.failed(address)
    table.seen(address, 1000)
    for _ in range(MAX_FAILURES - 1):
        table.failed(address)
    table.hint(Address("1.1.1.2", 80), FAR)
    assert table.shuffled(_rng(1)) == [Address("1.1.1.2", 80), address]
    table.failed(address)
    assert address not in table


def test_only_where_somebody_was_seen_is_told() -> None:
    """A random few, and near ones to who is as near alone."""
    table = AddressTable()
    for i in range(40):
        table.seen(Address(f"1.1.1.{i + 1}", 80), 1000)
    table.hint(Address("3.3.3.3", 80), FAR)
    table.seen(Address(HERE, 80), 1000)
    first, second = table.sample(FAR, _rng(1)), table.sample(FAR, _rng(2))
    assert len(first) == len(set(first)) == MAX_ADDRESSES
    assert first != second
    told = {address.host for seed in range(100) for address in table.sample(HERE, _rng(seed))}
    assert told == {HERE} | {f"1.1.1.{i + 1}" for i in range(40)}
    told = {address.host for seed in range(100) for address in table.sample(FAR, _rng(seed))}
    assert HERE not in told


def test_the_table_comes_back_from_its_file() -> None:
    """With what was met."""
    table = AddressTable()
    table.seen(Address("1.1.1.1", 80), 1000)
    table.seen(Address("2001:4860:4860::8888", 80), 2000)
    table.hint(Address("3.3.3.3", 80), FAR)
    again = AddressTable.from_bytes(table.to_bytes())
    assert again.to_bytes() == table.to_bytes()
    assert len(again) == 2


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b"[1]", b'[["1.1.1.1"]]', b'[["x", 1, 1]]', b'[["1.1.1.1", "a", 1]]', b"\xff"],
)
def test_a_damaged_file_is_none(data: bytes) -> None:
    """Whatever is wrong with it."""
    with pytest.raises(ValueError, match=r"."):
        AddressTable.from_bytes(data)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_table_or_none(data: bytes) -> None:
    """Nothing else comes of them."""
    try:
        AddressTable.from_bytes(data)
    except ValueError:
        return
