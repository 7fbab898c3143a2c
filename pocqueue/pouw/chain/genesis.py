"""What a network is: its name, parameters and first accounts, in one TOML file.

The file becomes a `Genesis`; its canonical bytes are hashed to the network's id, which is in everything
that is signed. The same file is the same network, however it is laid out.
"""

from __future__ import annotations

import datetime
import tomllib
from decimal import Decimal
from functools import cache, cached_property
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

import msgspec

from pocqueue.pouw.chain.amounts import MAX_AMOUNT, micro
from pocqueue.pouw.chain.records import (
    CLOCK,
    SUPPLY,
    AccountRecord,
    Clock,
    Supply,
    account_key,
)
from pocqueue.pouw.chain.state import Draft, MemoryTable, State
from pocqueue.pouw.chain.tasks import TaskModel
from pocqueue.pouw.errors import NodeDataError
from pocqueue.pouw.wire.blocks import Header
from pocqueue.pouw.wire.codec import Account, Count, Hash, Message, encode
from pocqueue.pouw.wire.hashes import ZERO, tagged
from pocqueue.pouw.wire.transactions import MAX_MEMBERS, ROLES

_T = TypeVar("_T", bound=Message)
_Positive = Annotated[int, msgspec.Meta(ge=1, le=2**40)]
#: Draws that a byte or a weight is worth, in units of 2^-32.
_Draws = Annotated[int, msgspec.Meta(ge=0, le=2**32)]
_GENERATION_BYTES = 8
_SECTIONS = ("blocks", "fees", "slots", "stakes", "tasks", "committee", "filler", "accounts")


class Parameters(Message, frozen=True):
    """The numbers of a network. Amounts are µPAI."""

    block_ms: _Positive  #: T, from block to block on average
    halflife_ms: _Positive  #: of the difficulty
    first_target: Hash  #: of trained blocks
    subsidy: Count  #: of a trained block
    halving_blocks: _Positive
    slot_ms: Annotated[int, msgspec.Meta(ge=0, le=3_600_000)]  #: a slot is not shorter
    lead_slots: Literal[1]  #: k
    lap_slots: Literal[8]  #: R
    draws_per_sample_byte: _Draws  #: WB
    draws_per_weight: _Draws  #: WM
    #: Smallest stake of each role, in the order of `wire.transactions.ROLES`.
    minimum_stakes: tuple[Count, Count, Count, Count]
    faucet: Count  #: 0: there is none
    fee: Count  #: of a transaction, at least ...
    fee_per_kib: Count  #: ... and as much for a KiB of it
    lap_fee: Count  #: of a task's training, at least: for a lap, and again for each 2^20 of a part's work
    longest_ms: _Positive  #: a task's deadline is not further ahead
    unbonding_blocks: _Positive
    check_laps: _Positive  #: from one look at a task's accuracy to the next
    grace_ms: Count  #: after its deadline a task may still be settled
    filler_slots: _Positive
    epoch_blocks: _Positive  #: from one choice of the committee to the next
    reveal_blocks: _Positive  #: a client has to show its test part, once its task is closed
    result_blocks: _Positive  #: evaluators have to say what they find, after that


class Genesis(Message, frozen=True, dict=True):
    """A network. Made by `dev` or `load`."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=32)]
    time_ms: Count  #: since 1970
    parameters: Parameters
    filler: TaskModel  #: trained whenever nothing else is
    filler_data: Literal["digits", "words"]
    accounts: tuple[tuple[Account, Count], ...]  #: ascending; what each owns at first, µPAI
    #: The first committee: none, and whoever comes first is in office alone; or four and more, who found the network.
    supervisors: tuple[Account, ...]

    @staticmethod
    @cache
    def dev() -> Genesis:
        """Return the built-in network `dev`."""
        return parse(files(__package__).joinpath("dev.toml").read_text("utf-8"), "dev.toml")

    @staticmethod
    def load(path: Path) -> Genesis:
        """Read a network from its TOML file; the built-in one is `dev.toml` beside this module.

        Raises:
            NodeDataError: the file cannot be read, or does not describe a network; says where.
        """
        try:
            return parse(path.read_text("utf-8"), str(path))
        except (OSError, UnicodeDecodeError) as exc:
            raise NodeDataError(f"The genesis {path} cannot be read: {exc}.") from None

    @cached_property
    def network(self) -> bytes:
        """Return the network's id: H("genesis", its canonical bytes)."""
        return tagged("genesis", encode(self))

    @cached_property
    def state(self) -> State:
        """Return the state at height 0, over an empty table."""
        draft = Draft(State(MemoryTable(), ZERO))
        for account, balance in self.accounts:
            draft.put(account_key(account), AccountRecord(balance=balance))
        draft.put(SUPPLY, Supply(issued=sum(balance for _, balance in self.accounts)))
        draft.put(CLOCK, Clock(height=0, time_ms=self.time_ms))
        return draft.seal()

    @cached_property
    def header(self) -> Header:
        """Return the header of block 0, which nobody mined and which travels nowhere."""
        return Header(
            version=1,
            network=self.network,
            height=0,
            parent=ZERO,
            tx_root=ZERO,
            state=self.state.digest,
            time_ms=self.time_ms,
            target=self.parameters.first_target,
            miner=bytes(33),
            lane=0,
            task=ZERO,
            slot=0,
            message=ZERO,
            certificate=ZERO,
            nonce=bytes(8),
        )

    @property
    def header_id(self) -> bytes:
        """Return the id of block 0."""
        return self.header.id

    def filler_task(self, generation: int) -> bytes:
        """Return the id of the filler task after so many others of its kind.

        It says so itself: 8 bytes of that number, then 24 of H("filler", network). So whoever meets it knows what it
        trains, at whatever state of the chain.
        """
        return generation.to_bytes(_GENERATION_BYTES, "big") + self._filler_mark

    def is_filler(self, task: bytes) -> bool:
        """Say whether this is the id of a filler task."""
        return len(task) == 32 and task[_GENERATION_BYTES:] == self._filler_mark

    def generation(self, task: bytes) -> int | None:
        """Return the number of a filler task; None: this is the id of none."""
        return int.from_bytes(task[:_GENERATION_BYTES], "big") if self.is_filler(task) else None

    def task_name(self, task: bytes) -> str:
        """Return a task's name for people: the beginning of its id, or ``filler`` and its number."""
        generation = self.generation(task)
        return task.hex()[:12] if generation is None else f"filler {generation}"

    @cached_property
    def _filler_mark(self) -> bytes:
        return tagged("filler", self.network)[_GENERATION_BYTES:]


def parse(text: str, source: str) -> Genesis:
    """Return the network that a TOML text describes.

    Raises:
        NodeDataError: it describes none; says where and why.
    """
    try:
        return _genesis(tomllib.loads(text, parse_float=Decimal))
    except KeyError as exc:
        reason = f"{exc.args[0]} is missing"
    except ValueError as exc:
        reason = str(exc).rstrip(".")
    raise NodeDataError(f"The genesis {source} does not describe a network: {reason}.")


def _genesis(document: dict[str, Any]) -> Genesis:
    time = document.pop("time")
    if not isinstance(time, datetime.datetime) or time.tzinfo is None:
        raise ValueError(f"time is {time!r}; allowed: a date and time with its zone")
    sections = [document.pop(name) for name in _SECTIONS]
    for name, section in zip(_SECTIONS, sections, strict=True):
        if not isinstance(section, dict):
            raise ValueError(f"{name} is {section!r}; allowed: a table")
    blocks, fees, slots, stakes, tasks, committee, filler, accounts = sections
    supervisors = sorted(bytes.fromhex(key) for key in committee.pop("supervisors"))
    if (
        len(supervisors) in (1, 2, 3)
        or len(supervisors) > MAX_MEMBERS
        or len({*supervisors}) != len(supervisors)
    ):
        raise ValueError(
            f"supervisors has {len(supervisors)} accounts; allowed: none, or 4 to {MAX_MEMBERS}, each once"
        )
    bits = blocks.pop("first_target_bits")
    if not isinstance(bits, int) or not 1 <= bits <= 255:
        raise ValueError(f"first_target_bits is {bits!r}; allowed: 1 to 255")
    owned = sorted((bytes.fromhex(key), micro(value, key)) for key, value in accounts.items())
    if sum(balance for _, balance in owned) > MAX_AMOUNT // 2:
        raise ValueError("the accounts own more coins than half of what can be counted")
    amounts = {
        "subsidy": micro(blocks.pop("subsidy"), "subsidy"),
        **{name: micro(fees.pop(name), name) for name in ("fee", "fee_per_kib", "lap_fee")},
        "faucet": micro(stakes.pop("faucet"), "faucet"),
        "minimum_stakes": tuple(micro(stakes.pop(role), role) for role in ROLES[:-1]),
    }
    numbers = {
        **amounts,
        **blocks,
        **fees,
        **slots,
        **stakes,
        **tasks,
        **committee,
        "first_target": _power(bits),
    }
    document |= {
        "time_ms": int(time.timestamp() * 1000),
        "filler_data": filler.pop("data"),
        "filler": _made({**filler, "test_hash": None, "privacy": None}, TaskModel),
        "parameters": _made(numbers, Parameters),
        "accounts": owned,
        "supervisors": tuple(supervisors),
    }
    genesis = _made(document, Genesis)
    genesis.filler.spec(bytes(32), genesis.filler_data)  # raises if there is no such model
    return genesis


def _made(values: dict[str, Any], kind: type[_T]) -> _T:
    """Return a message of these values; raise if one is missing, left over or out of its bounds."""
    found = []
    for name, hint in get_type_hints(kind, include_extras=True).items():
        value = values.pop(name)
        try:
            found.append(msgspec.convert(value, hint))
        except msgspec.ValidationError as exc:
            raise ValueError(f"{name} is {value!r}: {exc}") from None
    if values:
        raise ValueError(f"{', '.join(map(repr, values))} is not known")
    return kind(*found)


def _power(bits: int) -> bytes:
    return (1 << bits).to_bytes(32, "big")
