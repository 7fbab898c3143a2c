"""One spelling for each message; everything else is refused."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, strategies as st

from pocqueue.pouw.errors import BadEncoding
from pocqueue.pouw.wire.blocks import Block, Founding, Header
from pocqueue.pouw.wire.codec import decode, encode
from pocqueue.pouw.wire.data import MAX_CHUNKS, MAX_DATA_BYTES, Manifest
from pocqueue.pouw.wire.requests import Chunk, ChunkRequest
from pocqueue.pouw.wire.slots import Iteration, SlotRecord
from pocqueue.pouw.wire.transactions import OrderTask, Transaction, Transfer

_TRANSACTION = Transaction(1, bytes(32), bytes(33), 3, 5, Transfer(bytes(33), 7), bytes(64))
_HEADER = Header(
    1,
    *(bytes(32), 1, bytes(32), bytes(32), bytes(32), 5, bytes(32), bytes(33)),
    *(0, bytes(32), 1, bytes(32), bytes(32), bytes(8)),
)
_BLOCK = Block(_HEADER, (_TRANSACTION, _TRANSACTION), Founding(bytes(64)))


def test_what_is_encoded_is_decoded() -> None:
    """To the same value, with the same id."""
    assert decode(encode(_BLOCK), Block) == _BLOCK
    assert decode(encode(_TRANSACTION), Transaction).id == _TRANSACTION.id


def test_an_id_is_of_everything_but_the_signature() -> None:
    """A changed field changes it; another signature does not."""
    assert msgspec.structs.replace(_TRANSACTION, fee=6).id != _TRANSACTION.id
    assert msgspec.structs.replace(_TRANSACTION, signature=b"1" * 64).id == _TRANSACTION.id


def test_the_commitment_is_to_what_is_known_a_slot_ahead() -> None:
    """Message, certificate and nonce do not change it; what the block holds does."""
    replace = msgspec.structs.replace
    later = replace(_HEADER, message=b"m" * 32, certificate=b"c" * 32, nonce=b"n" * 8)
    assert later.zero_nonce_hash == _HEADER.zero_nonce_hash
    assert replace(_HEADER, tx_root=b"t" * 32).zero_nonce_hash != _HEADER.zero_nonce_hash


def _spelled(**changed: object) -> bytes:
    fields: dict[str, object] = {
        name: getattr(_TRANSACTION, name) for name in _TRANSACTION.__struct_fields__
    }
    return msgspec.msgpack.encode(list((fields | changed).values()))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        encode(_TRANSACTION)[:-1],
        encode(_TRANSACTION) + b"\x00",
        b"\x91" * 100_000,
        encode(_TRANSACTION).replace(b"\x97", b"\xdc\x00\x07", 1),  # a longer head of the array
        encode(_TRANSACTION).replace(b"\x97\x01", b"\x97\xcc\x01", 1),  # a longer number
        _spelled(sequence=-1),
        _spelled(sequence=3.0),
        _spelled(sequence=True),
        _spelled(sequence=2**63),
        _spelled(sender=bytes(32)),
        _spelled(version=2),
        _spelled(body=[99, bytes(33), 7]),
        _spelled(body=[1, bytes(33), 7, 0]),
        _spelled(more=1),
    ],
)
def test_another_spelling_is_refused(data: bytes) -> None:
    """With one error for all of them."""
    with pytest.raises(BadEncoding):
        decode(data, Transaction)


@given(
    st.binary(max_size=400),
    st.sampled_from([Transaction, Block, Iteration, SlotRecord, Manifest, ChunkRequest, Chunk]),
)
def test_any_bytes_are_a_message_or_refused(data: bytes, kind: type) -> None:
    """And if they are one, its encoding is these bytes."""
    try:
        value: object = decode(data, kind)
    except BadEncoding:
        return
    assert encode(value) == data


@given(st.integers(0, len(encode(_BLOCK)) - 1), st.integers(0, 255))
def test_a_changed_byte_is_another_message_or_refused(place: int, byte: int) -> None:
    """Never the same block."""
    data = bytearray(encode(_BLOCK))
    data[place] = byte
    try:
        value = decode(bytes(data), Block)
    except BadEncoding:
        return
    assert encode(value) == data


def test_a_manifest_of_more_than_64_mib_is_refused() -> None:
    """As are one of nothing, and a request for a chunk that no file has."""
    assert decode(encode(Manifest(MAX_DATA_BYTES, (bytes(32),) * MAX_CHUNKS)), Manifest).is_whole
    for size, num_chunks in ((MAX_DATA_BYTES + 2**20, 256), (1, MAX_CHUNKS + 1), (0, 0)):
        with pytest.raises(BadEncoding):
            decode(encode((size, (bytes(32),) * num_chunks)), Manifest)
    for index in (MAX_CHUNKS, -1, True):
        with pytest.raises(BadEncoding):
            decode(encode((bytes(32), index)), ChunkRequest)


@pytest.mark.parametrize(
    ("name", "is_good"),
    [
        ("mine [2] ~", True),
        ("a" * 64, True),
        ("", False),
        ("a" * 65, False),
        ("mine\n", False),
        ("\x1b[2J", False),
        ("Äpfel", False),
        ("a\u202eb", False),
    ],
)
def test_a_task_has_a_name_that_any_terminal_may_show(name: str, is_good: bool) -> None:
    """ASCII from the space on: nothing that moves a cursor, ends a line or turns the writing round."""
    order = OrderTask(name, "image_classification", "digits", b"", 1, 0, 1)
    if is_good:
        assert decode(encode(order), OrderTask) == order
    else:
        with pytest.raises(BadEncoding):
            decode(encode(order), OrderTask)
