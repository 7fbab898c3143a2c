"""The state in layers: each block sees what was before it on its own branch, and nothing else."""

from __future__ import annotations

from hypothesis import given, settings, strategies as st

from pocqueue.pouw.chain.state import MemoryTable, State
from pocqueue.pouw.wire.hashes import ZERO

KEYS = st.binary(min_size=1, max_size=2)
DIFFS = st.lists(st.dictionaries(KEYS, st.none() | st.binary(max_size=2), max_size=6), max_size=5)


def _over(state: State, diff: dict[bytes, bytes | None]) -> State:
    draft = state.child()
    for key, value in diff.items():
        draft.put(key, value)
    return draft.seal()


@settings(max_examples=40)
@given(st.dictionaries(KEYS, st.binary(max_size=2)), DIFFS, KEYS)
def test_layers_read_like_one_table(
    table: dict[bytes, bytes], diffs: list[dict[bytes, bytes | None]], prefix: bytes
) -> None:
    """Whatever was put and taken away in them."""
    state, plain = State(MemoryTable(table), ZERO), dict(table)
    for diff in diffs:
        state = _over(state, diff)
        plain |= {key: value for key, value in diff.items() if value is not None}
        for key in [key for key, value in diff.items() if value is None]:
            plain.pop(key, None)
    assert all(state.get(key) == value for key, value in plain.items())
    assert state.scan(prefix) == sorted(
        item for item in plain.items() if item[0].startswith(prefix)
    )


def test_branches_do_not_see_each_other() -> None:
    """Two blocks on one parent, and the parent as it was."""
    base = State(MemoryTable({b"a": b"1"}), ZERO)
    left, right = _over(base, {b"a": b"2"}), _over(base, {b"a": None, b"b": b"3"})
    assert (left.get(b"a"), right.get(b"a"), base.get(b"a")) == (b"2", None, b"1")
    assert left.get(b"b") is None
    assert len({left.digest, right.digest, base.digest}) == 3


def test_the_digest_is_of_the_changes_alone() -> None:
    """Not of their order, nor of what was put as it was."""
    base = State(MemoryTable({b"a": b"1", b"b": b"1"}), ZERO)
    one = _over(base, {b"a": b"2", b"c": b"3", b"b": b"1", b"z": None})
    other = _over(base, {b"c": b"3", b"a": b"2"})
    assert one.digest == other.digest == State(base, other.digest, one.diff).digest
    assert list(one.diff) == [b"a", b"c"]
    assert one.child().digest != one.digest


def test_a_layer_may_stand_on_the_database_instead() -> None:
    """Once all that was below it is written there."""
    table = MemoryTable({b"a": b"1"})
    top = _over(_over(State(table, ZERO), {b"b": b"2"}), {b"c": b"3"})
    folded = MemoryTable({b"a": b"1", b"b": b"2", b"c": b"3"})
    top.rebase(folded)
    assert top.scan(b"") == sorted(folded.items())


def test_many_layers_are_no_trouble() -> None:
    """Before a first anchor there may be more than Python recurses into."""
    state = State(MemoryTable({b"a": b"1"}), ZERO)
    for number in range(3000):
        state = State(state, ZERO, {b"n": number.to_bytes(2, "big")})
    assert state.get(b"a") == b"1"
    assert state.scan(b"n") == [(b"n", (2999).to_bytes(2, "big"))]
