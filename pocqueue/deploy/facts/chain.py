"""The chain's node: how far it is, and its two settings files, which are edited with every other line kept."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pocqueue.deploy.facts.parts import UnexpectedAnswer, read_json

#: A setting: its table, empty for the top, and its name.
Setting = tuple[str, str]
Value = str | int | bool

_TABLE = re.compile(r"\s*\[\s*([A-Za-z0-9_.-]+)\s*\]\s*(?:#.*)?")


@dataclass(frozen=True, slots=True)
class ChainStatus:
    """What a node says of itself at `/status`."""

    node_id: str
    network: str
    height: int
    is_catching_up: bool


@dataclass(frozen=True, slots=True)
class BlockId:
    """A block of the chain."""

    height: int
    hash_hex: str  #: 64 digits, capitals


def read_status(text: str) -> ChainStatus:
    """Return what a node says of itself, with JSON-RPC's envelope or without.

    Raises:
        UnexpectedAnswer: it is no such answer.

    >>> read_status('{"node_info": {"id": "ab", "network": "gonka-mainnet"},'
    ...             ' "sync_info": {"latest_block_height": "7", "catching_up": false}}').height
    7
    """
    result = _result("the chain node's /status", text)
    try:
        node, sync = result["node_info"], result["sync_info"]
        if not isinstance(sync["catching_up"], bool):
            raise TypeError
        return ChainStatus(
            str(node["id"]),
            str(node["network"]),
            int(sync["latest_block_height"]),
            sync["catching_up"],
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UnexpectedAnswer(
            "the chain node's /status", text, "a node's height and whether it catches up"
        ) from None


def read_block(text: str) -> BlockId:
    """Return the block of `/block?height=N`.

    Raises:
        UnexpectedAnswer: it is no such answer.
    """
    result = _result("the chain's /block", text)
    try:
        block = BlockId(
            int(result["block"]["header"]["height"]), str(result["block_id"]["hash"]).upper()
        )
        if not re.fullmatch(r"[0-9A-F]{64}", block.hash_hex):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise UnexpectedAnswer("the chain's /block", text, "a block with its hash") from None
    return block


def _result(what: str, text: str) -> Any:
    said = read_json(what, text)
    if not isinstance(said, dict):
        raise UnexpectedAnswer(what, text, "an object")
    return said.get("result", said)


def trusted_block(first: BlockId, second: BlockId) -> BlockId:
    """Return the block that state sync starts from, if two servers agree on it.

    Raises:
        UnexpectedAnswer: they do not.
    """
    if first != second:
        raise UnexpectedAnswer(
            "the second RPC server",
            f"block {second.height} {second.hash_hex}",
            f"the block {first.height} {first.hash_hex} of the first; one of them is wrong, or on another chain",
        )
    return first


def differences(text: str, wanted: Mapping[Setting, Value]) -> dict[Setting, tuple[object, Value]]:
    """Return the settings that are not as wanted, each with what it is (None: not there) and what it should be.

    Raises:
        UnexpectedAnswer: the file is no TOML.
    """
    settings = _toml(text)
    return {
        (table, name): (found, value)
        for (table, name), value in wanted.items()
        if not _is_same(found := _table(settings, table).get(name), value)
    }


def edited(text: str, wanted: Mapping[Setting, Value]) -> str:
    """Return a settings file in which these have their values, and every other line is as it was.

    Comments stay, behind the values too. A setting that is not there is added at the end of its table.

    Raises:
        UnexpectedAnswer: the file is no TOML, has no such table, or has the value in a form that a line cannot hold.
    """
    todo = {setting: value for setting, (_, value) in differences(text, wanted).items()}
    if not todo:
        return text
    before = _toml(text)
    lines = text.split("\n")
    tables = list(_tables(lines))
    for (table, name), value in todo.items():
        assignment = re.compile(rf"(\s*(?:{re.escape(name)}|\"{re.escape(name)}\")\s*=\s*)(.*)")
        places = [
            at for at, of in enumerate(tables) if of == table and assignment.fullmatch(lines[at])
        ]
        if len(places) == 1:
            [at] = places
            match = assignment.fullmatch(lines[at])
            assert match is not None
            lines[at] = f"{match[1]}{_written(value)}{_comment(match[2])}"
        elif places or table not in {"", *tables}:
            raise UnexpectedAnswer(
                "the settings file", text, f"one with a table [{table}] and one line {name}"
            )
        else:
            at = max((at for at, of in enumerate(tables) if of == table), default=-1) + 1
            while at > 0 and not lines[at - 1].strip():
                at -= 1
            lines.insert(at, f"{name} = {_written(value)}")
            tables.insert(at, table)
    result = "\n".join(lines)
    _check(before, result, todo)
    return result


def _check(before: dict[str, Any], result: str, todo: Mapping[Setting, Value]) -> None:
    """Raise unless a parser sees the wanted values, and else what was there before."""
    after = _toml(result)
    for (table, name), value in todo.items():
        place = _table(after, table)
        if not _is_same(place.get(name), value):
            raise UnexpectedAnswer(
                "the settings file", result, f"one in which {name} can be edited by its line"
            )
        old = _table(before, table)
        if name in old:
            place[name] = old[name]
        else:
            place.pop(name)
    if after != before:
        raise UnexpectedAnswer(
            "the settings file", result, "one whose other settings stay as they are"
        )


def _tables(lines: list[str]) -> Iterator[str]:
    """Return for each line the table that it is in; lines within long strings count for none."""
    table, within = "", ""
    for line in lines:
        if within:
            yield "\0"
            within = "" if within in line else within
            continue
        if match := _TABLE.fullmatch(line):
            table = match[1]
        yield table
        if not line.lstrip().startswith("#"):
            for quotes in ('"""', "'''"):
                if line.count(quotes) % 2:
                    within = quotes


def _comment(rest: str) -> str:
    """Return the comment behind a value, with the blanks before it."""
    value = re.match(r"""(?:"(?:[^"\\]|\\.)*"|'[^']*'|\[[^\]]*\]|[^#\s]*)""", rest)
    behind = rest[value.end() :] if value else ""
    return behind if behind.strip().startswith("#") else ""


def _written(value: Value) -> str:
    # A JSON string is a TOML string, as far as our values go.
    return json.dumps(value, ensure_ascii=False)


def _is_same(found: object, value: Value) -> bool:
    return type(found) is type(value) and found == value


def _toml(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise UnexpectedAnswer("the settings file", text, "TOML") from None


def _table(settings: dict[str, Any], table: str) -> dict[str, Any]:
    for name in filter(None, table.split(".")):
        found = settings.get(name)
        settings = found if isinstance(found, dict) else {}
    return settings
