"""The chain of `pocqueue.pouw`: transactions and blocks as bytes, and a block's way to the disk.

    python -m benchmarks.pouw_chain

Signatures are not checked here: 0.2 to 0.3 ms each, once for a transaction, in a thread. A block is written into a
folder of the system's temporary ones, on whatever disk that is.
"""

from __future__ import annotations

import os
import tempfile
import time
import timeit
from collections.abc import Callable
from pathlib import Path

import msgspec

from benchmarks.effort import FULL, Effort
from benchmarks.stats import Figure, Sample
from pocqueue.pouw.chain.genesis import Genesis
from pocqueue.pouw.chain.records import AccountRecord, account_key
from pocqueue.pouw.chain.store import ChainStore, Stored
from pocqueue.pouw.wire.blocks import Block, Founding
from pocqueue.pouw.wire.codec import decode, encode
from pocqueue.pouw.wire.transactions import Transaction, Transfer

_NUM_TRANSACTIONS = 1000
_NUM_TURNS = 200
#: Calls of a turn that are measured together.
_CALLS = 1000
#: Of a block that is written: 20 kB, and the accounts that it changes.
_WRITTEN, _ACCOUNTS = 120, 100


def pouw_chain(effort: Effort = FULL) -> list[Figure]:
    """Measure encoding, decoding, the canonical check of a block and its write; some seconds."""
    return [*_codec(effort), *_block_check(effort), _write(effort)]


def _codec(effort: Effort) -> list[Figure]:
    transaction = _transaction(0)
    data = encode(transaction)
    steps: tuple[tuple[str, Callable[[], object]], ...] = (
        ("encoded", lambda: encode(transaction)),
        ("decoded and found canonical", lambda: decode(data, Transaction)),
    )
    found = []
    for what, step in steps:
        times = [_per_call(step) * 1e6 for _ in range(effort.runs(_NUM_TURNS))]
        found.append(_figure(f"a transaction of {len(data)} bytes {what}", times, "µs", 1))
    return found


def _block_check(effort: Effort) -> list[Figure]:
    """What is looked at before signatures and state: one spelling, then the ids and their Merkle root."""
    data = encode(_block(_NUM_TRANSACTIONS))
    spelling, root = [], []
    for _ in range(effort.runs(_NUM_TURNS)):
        began = time.perf_counter()
        block = decode(data, Block)
        middle = time.perf_counter()
        assert block.computed_tx_root() == block.header.tx_root
        spelling.append((middle - began) * 1000)
        root.append((time.perf_counter() - middle) * 1000)
    what = f"a block of {_NUM_TRANSACTIONS:,} transactions ({len(data) // 1000} kB)"
    return [
        _figure(f"{what} decoded and found canonical", spelling, "ms", 2),
        _figure(f"{what}: ids and Merkle root", root, "ms", 5),
    ]


def _write(effort: Effort) -> Figure:
    """A block in the store, on the disk on return; against as many bytes in a file with fsync."""
    genesis, ours, bare, size = Genesis.dev(), [], [], 0
    with tempfile.TemporaryDirectory(prefix="pocqueue-bench-") as name:
        folder = Path(name)
        with ChainStore(folder, genesis) as store, (folder / "bare").open("wb") as file:
            for number in range(effort.runs(_NUM_TURNS)):
                block = _block(_WRITTEN, number)
                record = encode(AccountRecord(balance=number))
                diff = {account_key(_account(index)): record for index in range(_ACCOUNTS)}
                began = time.perf_counter()
                store.add(Stored(block, {**diff}))
                middle = time.perf_counter()
                size = file.write(encode(block))
                file.flush()
                os.fsync(file.fileno())
                ours.append((middle - began) * 1000)
                bare.append((time.perf_counter() - middle) * 1000)
    title = f"a block of {size // 1000} kB and {_ACCOUNTS} accounts written"
    return _figure(title, ours, "ms", 10, Sample(bare, "ms"), "a file with fsync")


def _figure(
    name: str,
    times: list[float],
    unit: str,
    asked: float,
    against: Sample | None = None,
    against_name: str = "",
) -> Figure:
    measured = Sample(times, unit)
    value = measured.median
    return Figure(
        name, measured, against, against_name, value, f"at most {asked} {unit}", value <= asked
    )


def _per_call(step: Callable[[], object]) -> float:
    """Return the seconds of one of many calls."""
    return timeit.timeit(step, number=_CALLS) / _CALLS


def _account(number: int) -> bytes:
    return b"\x02" + number.to_bytes(32, "big")


def _transaction(number: int) -> Transaction:
    body = Transfer(_account(number + 1), 1_000_000)
    network = Genesis.dev().network
    return Transaction(1, network, _account(number), number, 1000, body, b"s" * 64)


def _block(num_transactions: int, number: int = 0) -> Block:
    transactions = tuple(map(_transaction, range(num_transactions)))
    block = Block(Genesis.dev().header, transactions, Founding(b"s" * 64))
    header = msgspec.structs.replace(
        block.header,
        tx_root=block.computed_tx_root(),
        height=1 + number,
        nonce=number.to_bytes(8, "little"),
    )
    return Block(header, transactions, block.proof)


if __name__ == "__main__":
    for figure in pouw_chain():
        print(figure.name)
        print(f"    measured   {figure.measured}")
        if figure.against is not None:
            print(f"    against    {figure.against}   {figure.against_name}")
        print(f"    asked for  {figure.target}: {'reached' if figure.reached else 'MISSED'}")
