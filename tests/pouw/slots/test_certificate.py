"""What is no certificate of its committee is refused, by the name of the rule that it breaks."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from msgspec.structs import replace

from pocqueue.pouw.errors import SlotError
from pocqueue.pouw.slots import bls
from pocqueue.pouw.slots.certificate import (
    membership,
    verify_link,
    verify_signed,
)
from pocqueue.pouw.wire.hashes import merkle_root, root_of_path
from pocqueue.pouw.wire.slots import (
    Certificate,
    Iteration,
    SignedCertificate,
    SlotRecord,
    beacon_digest,
)
from tests.pouw.support import certify

_NETWORK, _TASK, _ANCHOR = b"n" * 32, b"t" * 32, b"a" * 32
_SECRET, _STRANGER = bls.SecretKey(1234567), bls.SecretKey(7654321)


@dataclass(frozen=True)
class _Committee:
    epoch: int
    group_key: bytes


_COMMITTEE = _Committee(2, _SECRET.public_key)


def _iteration(slot: int, previous: bytes, index: int) -> Iteration:
    hashes = (bytes(32), 5, bytes(32), 1, previous, bytes(32), bytes(64))
    return Iteration(1, _NETWORK, _TASK, slot, bytes([2]) + bytes(32), index, 1, *hashes)


def _certificate(parent: Certificate | None, ids: tuple[bytes, ...]) -> Certificate:
    slot, previous = (0, _TASK) if parent is None else (parent.slot + 1, parent.id)
    root = merkle_root(ids)
    fields = (previous, root, len(ids), bytes(32), _ANCHOR, 4, 1000 + slot)
    parent_id = bytes(32) if parent is None else parent.id
    return Certificate(_NETWORK, 2, slot, parent_id, _TASK, slot, 0, *fields)


_FIRST = _certificate(None, ())
_MESSAGES = tuple(_iteration(1, _FIRST.id, index) for index in range(5))
_IDS = tuple(message.id for message in _MESSAGES)
_SECOND = _certificate(_FIRST, _IDS)
_RECORD = SlotRecord(certify(_SECRET, _SECOND), _IDS)


def _changed(**fields: object) -> SlotRecord:
    """Return the record with a changed certificate that the committee itself signed."""
    return replace(_RECORD, signed=certify(_SECRET, replace(_SECOND, **fields)))


def test_a_good_history_passes() -> None:
    """From the first slot, which follows the task itself."""
    first = SlotRecord(certify(_SECRET, _FIRST), ())
    for record, parent in ((first, None), (_RECORD, _FIRST)):
        verify_link(record.signed.certificate, record.ids, _TASK, parent)
        verify_signed(record.signed, _COMMITTEE)


@pytest.mark.parametrize(
    ("rule", "signed"),
    [
        ("signature", certify(_STRANGER, _SECOND)),
        ("signature", replace(_RECORD.signed, signature=b"\xc0" + bytes(95))),
        ("signature", replace(_RECORD.signed, certificate=replace(_SECOND, theta=b"x" * 32))),
        ("signature", replace(_RECORD.signed, signature=_RECORD.signed.beacon)),
        ("beacon", replace(_RECORD.signed, beacon=_RECORD.signed.signature)),
        ("beacon", replace(_RECORD.signed, beacon=certify(_SECRET, _FIRST).beacon)),
        (
            "beacon",
            replace(
                _RECORD.signed, beacon=_SECRET.sign(beacon_digest(_NETWORK, 1, _TASK, _SECOND.slot))
            ),
        ),
        ("epoch", certify(_SECRET, replace(_SECOND, epoch=1))),
        ("epoch", certify(_SECRET, replace(_SECOND, epoch=3))),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_the_committee_did_not_sign_is_refused(rule: str, signed: SignedCertificate) -> None:
    """Forged, swapped, of another slot or of another epoch."""
    with pytest.raises(SlotError) as caught:
        verify_signed(signed, _COMMITTEE)
    assert caught.value.rule == rule


@pytest.mark.parametrize(
    ("rule", "fields"),
    [
        ("task", {"task": b"T" * 32}),
        ("slot", {"slot": 0}),
        ("slot", {"slot": 2}),
        ("previous", {"previous": _TASK}),
        ("previous", {"previous": replace(_FIRST, time_ms=999).id}),
        ("network", {"network": b"N" * 32}),
        ("epoch", {"epoch": 1}),
        ("root", {"root": merkle_root(_IDS[:4])}),
        ("root", {"count": 4}),
        ("anchor", {"anchor_height": 3}),
        ("anchor", {"anchor": b"A" * 32}),
        ("time", {"time_ms": 999}),
    ],
)
def test_a_certificate_that_does_not_follow_is_refused(
    rule: str, fields: dict[str, object]
) -> None:
    """Even if the committee signed it."""
    changed = _changed(**fields)
    with pytest.raises(SlotError) as caught:
        verify_link(changed.signed.certificate, changed.ids, _TASK, _FIRST)
    assert caught.value.rule == rule


def test_ids_in_another_order_are_other_messages() -> None:
    """As the root is of their order."""
    with pytest.raises(SlotError, match="root: slot 1's certificate is of other messages"):
        verify_link(_RECORD.signed.certificate, _IDS[::-1], _TASK, _FIRST)


def test_a_membership_leads_to_the_root() -> None:
    """From each message's own place."""
    for index, message in enumerate(_MESSAGES):
        proof = membership(message, _RECORD)
        assert (proof.iteration, proof.index, proof.signed) == (message, index, _RECORD.signed)
        assert root_of_path(message.id, index, 5, proof.path) == _SECOND.root


def test_each_ballot_is_signed_for_itself_and_leads_to_one_id() -> None:
    """Members that end a turn in different ballots go on from the same certificate; its signature is of one ballot."""
    again = replace(_SECOND, ballot=3)
    assert (again.id, again.word == _SECOND.word) == (_SECOND.id, False)
    signed = replace(certify(_SECRET, _SECOND), certificate=again)
    with pytest.raises(SlotError, match="signature"):
        verify_signed(signed, _COMMITTEE)
