"""Certificates: the committee's word on which messages are a slot, and the slot's beacon.

A certificate names the one before it, so one hash names a task's whole history. Its signature and its beacon
are signatures of the committee's group key: whoever knows the key can check them, and no other committee,
epoch or slot has the same beacon. The beacon does not depend on what the slot holds, so it must not be made
before the certificate is.
"""

from __future__ import annotations

from typing import Protocol

from pocqueue.pouw.errors import SlotError
from pocqueue.pouw.slots import bls
from pocqueue.pouw.wire.hashes import ZERO, merkle_path, merkle_root
from pocqueue.pouw.wire.slots import (
    Certificate,
    Iteration,
    Membership,
    SignedCertificate,
    SlotRecord,
    beacon_digest,
)


class Committee(Protocol):
    """What is asked of a committee here; the chain's state has them."""

    @property
    def epoch(self) -> int:
        """Which committee it is, from 0 on."""

    @property
    def group_key(self) -> bytes:
        """BLS key that it signs with, 48 bytes."""


def verify_signed(signed: SignedCertificate, committee: Committee) -> None:
    """Return if signature and beacon are the committee's.

    Which network and task the certificate is of is the caller's to compare.

    Raises:
        SlotError: ``epoch``, ``signature`` or ``beacon``, whichever is wrong first.
    """
    certificate = signed.certificate
    if certificate.epoch != committee.epoch:
        raise SlotError(
            "epoch",
            f"a certificate of slot {certificate.slot} is of epoch {certificate.epoch}; due: {committee.epoch}.",
        )
    word = (certificate.word, signed.signature)
    place = (certificate.network, certificate.epoch, certificate.task, certificate.slot)
    beacon = (beacon_digest(*place), signed.beacon)
    if bls.verify_all(committee.group_key, (word, beacon)):
        return
    if not bls.verify(committee.group_key, *word):
        raise SlotError(
            "signature", f"that of slot {certificate.slot}'s certificate is not its committee's."
        )
    raise SlotError("beacon", f"that of slot {certificate.slot} is not its committee's.")


def verify_link(
    certificate: Certificate, ids: tuple[bytes, ...], task: bytes, parent: Certificate | None
) -> None:
    """Return if a certificate is of the slot after its parent's, and of these messages.

    Args:
        certificate: of any slot.
        ids: of its messages.
        task: the task's id.
        parent: certificate of the slot before; None: it has to be of slot 0.

    Raises:
        SlotError: ``task``, ``slot``, ``previous``, ``network``, ``root``, ``anchor`` or ``time``.
    """
    slot = 0 if parent is None else parent.slot + 1
    if certificate.task != task:
        raise SlotError(
            "task", f"the certificate is of {certificate.task.hex()}; due: {task.hex()}."
        )
    if certificate.slot != slot:
        raise SlotError("slot", f"the certificate is of slot {certificate.slot}; due: {slot}.")
    previous = task if parent is None else parent.id
    if certificate.previous != previous:
        raise SlotError(
            "previous",
            f"slot {slot}'s certificate follows {certificate.previous.hex()}; due: {previous.hex()}.",
        )
    if certificate.count != len(ids) or certificate.root != merkle_root(ids):
        raise SlotError("root", f"slot {slot}'s certificate is of other messages than are named.")
    if parent is not None:
        verify_progress(certificate, parent)


def verify_turn(certificate: Certificate, newest: Certificate | None) -> None:
    """Return if a certificate may stand beside the newest one of all tasks, as far as that can be said.

    Args:
        certificate: of any turn.
        newest: None: there is none yet.

    Raises:
        SlotError: ``turn``: another one of the same turn is here; ``parent``, ``epoch``, ``anchor`` or ``time``: it is
            of the turn after the newest one's, and does not follow on that.
    """
    turn = certificate.turn
    if turn == 0 and certificate.parent != ZERO:
        raise SlotError("parent", "the certificate of turn 0 follows on another one.")
    if newest is None or turn < newest.turn or turn > newest.turn + 1:
        return
    if turn == newest.turn:
        if certificate.id != newest.id:
            raise SlotError("turn", f"another certificate of turn {turn} is here.")
        return
    if certificate.parent != newest.id:
        raise SlotError("parent", f"that of turn {turn} does not follow on that of {newest.turn}.")
    verify_progress(certificate, newest)


def membership(iteration: Iteration, record: SlotRecord) -> Membership:
    """Return the proof that a message is one of a record's; it has to be."""
    index = record.ids.index(iteration.id)
    return Membership(iteration, index, merkle_path(record.ids, index), record.signed)


def verify_progress(certificate: Certificate, parent: Certificate) -> None:
    """Return if epoch, anchor and time of a certificate go on from those of an earlier one, of whichever task.

    Raises:
        SlotError: ``network``, ``epoch``, ``anchor`` or ``time``.
    """
    slot = certificate.slot
    if certificate.network != parent.network:
        raise SlotError("network", f"slot {slot}'s certificate is of another network.")
    if certificate.epoch < parent.epoch:
        raise SlotError("epoch", f"slot {slot} is of an epoch before its predecessor's.")
    same_height = certificate.anchor_height == parent.anchor_height
    if certificate.anchor_height < parent.anchor_height or (
        same_height and certificate.anchor != parent.anchor
    ):
        raise SlotError("anchor", f"slot {slot}'s does not build on its predecessor's.")
    if certificate.time_ms < parent.time_ms:
        raise SlotError("time", f"slot {slot} is earlier than its predecessor.")
