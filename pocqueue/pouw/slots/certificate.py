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
from pocqueue.pouw.wire.hashes import merkle_path, merkle_root
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


def certify(secret: bls.SecretKey, certificate: Certificate) -> SignedCertificate:
    """Return a certificate with its signature and its slot's beacon, by a group key of one member."""
    return SignedCertificate(
        certificate, secret.sign(certificate.word), secret.sign(_beacon_digest(certificate))
    )


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
    beacon = (_beacon_digest(certificate), signed.beacon)
    if bls.verify_all(committee.group_key, (word, beacon)):
        return
    if not bls.verify(committee.group_key, *word):
        raise SlotError(
            "signature", f"that of slot {certificate.slot}'s certificate is not its committee's."
        )
    raise SlotError("beacon", f"that of slot {certificate.slot} is not its committee's.")


def verify_link(record: SlotRecord, task: bytes, parent: Certificate | None) -> None:
    """Return if a record is of the slot after its parent's, and its ids are those of its certificate.

    Args:
        record: of any slot.
        task: the task's id.
        parent: certificate of the slot before; None: the record has to be of slot 0.

    Raises:
        SlotError: ``task``, ``slot``, ``previous``, ``network``, ``root``, ``anchor`` or ``time``.
    """
    certificate = record.signed.certificate
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
    if certificate.count != len(record.ids) or certificate.root != merkle_root(record.ids):
        raise SlotError(
            "root", f"slot {slot}'s certificate is of other messages than the record names."
        )
    if parent is not None:
        _verify_progress(certificate, parent)


def age(certificate: Certificate) -> tuple[int, int, int]:
    """Return what no later certificate of a network, of whichever task, has less of."""
    return certificate.epoch, certificate.anchor_height, certificate.time_ms


def membership(iteration: Iteration, record: SlotRecord) -> Membership:
    """Return the proof that a message is one of a record's; it has to be."""
    index = record.ids.index(iteration.id)
    return Membership(iteration, index, merkle_path(record.ids, index), record.signed)


def _verify_progress(certificate: Certificate, parent: Certificate) -> None:
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


def _beacon_digest(certificate: Certificate) -> bytes:
    return beacon_digest(certificate.network, certificate.epoch, certificate.task, certificate.slot)
