"""The noise of private tasks between a miner and the committee.

A message's noise follows from one BLS signature that its miner's ticket key makes over the message's place. Who has
that can take the noise off again, so it is sealed for each member of the committee, who can then execute the message
again; all others rely on what the committee makes final.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from pocqueue.node.keys import SigningKey
from pocqueue.pouw.chain.signatures import account_of, sign, verify
from pocqueue.pouw.committee.dealing import Dealer
from pocqueue.pouw.committee.sealing import SealKey
from pocqueue.pouw.errors import SlotError
from pocqueue.pouw.slots import bls
from pocqueue.pouw.wire.hashes import tagged
from pocqueue.pouw.wire.noise import SEALED_NOISE_BYTES, SealedNoise
from pocqueue.pouw.wire.slots import noise_digest


def seal_noise(
    key: SigningKey,
    secret: bls.SecretKey,
    place: tuple[bytes, bytes, int, int],
    epoch: int,
    seal_keys: Sequence[bytes | None],
) -> SealedNoise:
    """Return the signature of a message's noise, sealed; the same bytes each time.

    Args:
        key: of the miner's account.
        secret: BLS key of its ticket.
        place: of the message: network, task, slot and lane.
        epoch: of the committee.
        seal_keys: of its members, by their places; None: that one has none, and gets nothing.
    """
    network, task, slot, lane = place
    signature = secret.sign(noise_digest(*place))
    own = SealKey(tagged("noise-seal", signature))
    sealed = tuple(
        bytes(SEALED_NOISE_BYTES)
        if other is None
        else own.seal(signature, other, _context(place, member))
        for member, other in enumerate(seal_keys)
    )
    blank = SealedNoise(
        network=network,
        task=task,
        slot=slot,
        miner=account_of(key),
        lane=lane,
        epoch=epoch,
        seal_key=own.public_key,
        sealed=sealed,
        signature=bytes(64),
    )
    return replace(blank, signature=sign(key, blank.id))


def check_sealed(sealed: SealedNoise) -> None:
    """Return if a miner has signed this.

    Raises:
        SlotError: ``signature``: it has not.
    """
    if not verify(sealed.miner, sealed.id, sealed.signature):
        raise SlotError("signature", f"sealed noise is not by {sealed.miner.hex()}.")


def open_noise(sealed: SealedNoise, member: int, dealer: Dealer, group_key: bytes) -> bytes | None:
    """Return the signature of a message's noise; None: there is none for this member, or it is a wrong one.

    Args:
        sealed: by its miner.
        member: this account's place in the committee.
        dealer: of this account.
        group_key: BLS key of the miner's ticket.
    """
    place = (sealed.network, sealed.task, sealed.slot, sealed.lane)
    if member >= len(sealed.sealed):
        return None
    try:
        found = dealer.open(sealed.sealed[member], sealed.seal_key, _context(place, member))
    except ValueError:  # a key that gives everybody the same secret
        return None
    if found is None or not bls.verify(group_key, noise_digest(*place), found):
        return None
    return found


def _context(place: tuple[bytes, bytes, int, int], member: int) -> bytes:
    return tagged("noise-for", noise_digest(*place), bytes([member]))
