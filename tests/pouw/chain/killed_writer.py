"""Writes a chain and is killed with -9 while it does, again and again; a program of its own, as it forks.

    python -m tests.pouw.chain.killed_writer FOLDER KILLS

After each kill the chain is opened: all that the writer had said is there, one block and one anchor more at most, and
the state is the one that an undisturbed chain has. Prints how many kills there were, and how many met a writer at work.
"""

from __future__ import annotations

import os
import random
import select
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

from pocqueue.pouw.chain.chain import Chain
from pocqueue.pouw.chain.store import ChainStore
from pocqueue.pouw.wire.blocks import Block
from tests.pouw.blocks import GENESIS, START_MS, founded, founding_block, paid, trained

_LENGTH = 40
#: A block is final when so many are on top of it.
_DEPTH = 2
_NOW_MS = START_MS + 10**9

_State = list[tuple[bytes, bytes]]


def main(folder: Path, kills: int) -> None:
    """Kill a writer so often, and look at what it leaves."""
    blocks, states = _made()
    run = at_work = height = anchor = 0
    for _ in range(kills):
        here = folder / str(run)
        said, was_at_work = _killed(here, blocks)
        at_work += was_at_work
        with ChainStore(here, GENESIS) as store:
            chain = Chain(GENESIS, store)
            tip, final = chain.tip, chain.anchor
            assert 0 <= tip.height - height - said.count(b"b") <= 1, (tip.height, height, said)
            assert 0 <= final.height - anchor - said.count(b"a") <= 1, (final.height, anchor, said)
            for position in (tip, final):
                assert (
                    position.id == ([GENESIS.header_id] + [b.id for b in blocks])[position.height]
                )
                assert position.state.scan(b"") == states[position.height]
        height, anchor = tip.height, final.height
        if anchor == len(blocks) - _DEPTH:
            run, height, anchor = run + 1, 0, 0
    sys.stdout.write(f"{kills} {at_work}\n")


def _made() -> tuple[list[Block], list[_State]]:
    """Return blocks from height 1 on, and the states by height from 0 on."""
    with ChainStore(None, GENESIS) as store:
        chain = founded(store)
        blocks, states = [founding_block()], [GENESIS.state.scan(b""), chain.tip.state.scan(b"")]
        for number in range(_LENGTH):
            blocks.append(trained(chain.tip, [paid(2 + number, "other", 1)], slot=9 + number))
            chain.add(blocks[-1], _NOW_MS)
            states.append(chain.tip.state.scan(b""))
        return blocks, states


def _killed(folder: Path, blocks: list[Block]) -> tuple[bytes, bool]:
    """Return what a writer said before it was killed, and whether it was still at work."""
    read_end, write_end = os.pipe()
    writer = os.fork()
    if writer == 0:
        _write(folder, blocks, write_end)
    os.close(write_end)
    select.select([read_end], [], [], 60)  # it has begun, or ended
    time.sleep(random.uniform(0, 0.03))  # noqa: S311  # no chance to meet what is to be met
    os.kill(writer, signal.SIGKILL)
    _, status = os.waitpid(writer, 0)
    with os.fdopen(read_end, "rb") as pipe:
        return pipe.read(), os.WIFSIGNALED(status)


def _write(folder: Path, blocks: list[Block], write_end: int) -> NoReturn:
    """Add what is missing, block by block and anchor by anchor; say each when it is done."""
    status = 1
    try:
        with ChainStore(folder, GENESIS) as store:
            chain = Chain(GENESIS, store)
            while chain.anchor.height < len(blocks) - _DEPTH:
                _anchor(chain, blocks, chain.tip.height - _DEPTH, write_end)
                if chain.tip.height < len(blocks):
                    chain.add(blocks[chain.tip.height], _NOW_MS)
                    os.write(write_end, b"b")
        status = 0
    finally:
        os._exit(status)


def _anchor(chain: Chain, blocks: list[Block], height: int, write_end: int) -> None:
    if height > chain.anchor.height:
        chain.set_anchor(blocks[height - 1].id)
        os.write(write_end, b"a")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
