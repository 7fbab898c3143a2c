"""The rules of a block's proof: that a supervisor may found the chain, or that a miner has trained and drawn."""

from __future__ import annotations

from pocqueue.pouw.chain.difficulty import FOUNDING_GAP_MS
from pocqueue.pouw.chain.examination import Broken, Examination, short
from pocqueue.pouw.chain.mining import allowed_draws, lanes_of, spec_of
from pocqueue.pouw.chain.office import HANDOVER_BLOCKS, is_founder
from pocqueue.pouw.chain.records import SUPERVISOR, Office
from pocqueue.pouw.chain.signatures import verify
from pocqueue.pouw.chain.tickets import is_founding_allowed
from pocqueue.pouw.errors import SlotError
from pocqueue.pouw.slots.certificate import verify_signed
from pocqueue.pouw.slots.draws import base_nonce, is_allowed
from pocqueue.pouw.wire.blocks import Founding
from pocqueue.pouw.wire.hashes import ZERO, root_of_path
from pocqueue.pouw.wire.slots import Certificate, Membership


def founding(x: Examination) -> str:
    """A plain block is made only while nobody could make another one, and by its miner."""
    if not is_founding_allowed(x.genesis.parameters, x.state, x.header.time_ms):
        raise Broken("a committee is in office and miners are there; allowed: trained blocks.")
    gap_ms = x.header.time_ms - x.parent.time_ms
    if gap_ms < FOUNDING_GAP_MS:
        raise Broken(f"it comes {gap_ms} ms after its parent; allowed: {FOUNDING_GAP_MS} and more.")
    header = x.header
    if not is_founder(x.genesis, x.state, header.miner):
        raise Broken(f"{header.miner.hex()} is none of the supervisors that found this network.")
    blanks = (header.task, header.message, header.certificate, header.slot, header.lane)
    if blanks != (ZERO, ZERO, ZERO, 0, 0):
        raise Broken("it names a slot; allowed: zeros for task, slot, lane, message, certificate.")
    assert isinstance(x.block.proof, Founding)
    if not verify(header.miner, header.id, x.block.proof.signature):
        raise Broken(f"the signature is not that of its miner {header.miner.hex()}.")
    return "nobody can make a trained block yet; signed by its miner."


def certificates(x: Examination) -> str:
    """Two slots in a row, each certified by the committee of its epoch, the second one by the one in office."""
    office = x.state.office
    if office is None or office.ticket is None:
        raise Broken("no committee is in office; allowed: founding blocks.")
    for member in (x.proof.committed, x.proof.winner):
        certificate = member.signed.certificate
        committee = x.state.committee(certificate.epoch)
        if certificate.network != x.genesis.network:
            raise Broken(f"slot {certificate.slot} is of network {short(certificate.network)}.")
        if committee is None:
            raise Broken(
                f"slot {certificate.slot} is of epoch {certificate.epoch}, and {office.epoch} is on."
            )
        try:
            verify_signed(member.signed, committee)
        except SlotError as exc:
            raise Broken(f"slot {certificate.slot}: {exc}") from None
    before, now = (member.signed.certificate for member in (x.proof.committed, x.proof.winner))
    follows = (now.task, now.slot) == (before.task, before.slot + 1) and now.epoch >= before.epoch
    if now.previous != before.id or not follows:
        raise Broken(
            f"the certificate of slot {now.slot} does not follow on that of {before.slot}."
        )
    _check_term(x.header.height, before, now, office)
    if (x.header.certificate, x.header.task, x.header.slot) != (now.id, now.task, now.slot):
        raise Broken("the certificate is not the one that the header names.")
    return f"slots {before.slot} and {now.slot}, signed by the committee of epoch {now.epoch}."


def messages(x: Examination) -> str:
    """Both messages are in their certified slots, and the second is the one that the header names."""
    for member in (x.proof.committed, x.proof.winner):
        _check_member(member)
    if x.header.message != x.proof.winner.iteration.id:
        raise Broken("the winner's message is not the one that the header names.")
    count = x.proof.winner.signed.certificate.count
    return f"each under the Merkle root of its slot, the second one of {count}."


def miner(x: Examination) -> str:
    """Both messages are of the header's miner and lane, which has a live ticket for it."""
    header = x.header
    for member in (x.proof.committed, x.proof.winner):
        if member.iteration.order != (header.miner, header.lane):
            raise Broken("a message is of another miner or lane than the header's.")
    lanes = lanes_of(x.state, header.miner)
    if lanes == 0:
        raise Broken(f"{header.miner.hex()} has no live ticket of a miner or supervisor.")
    if header.lane >= lanes:
        raise Broken(f"lane {header.lane} of {lanes} that the stake of its miner allows.")
    return f"{header.miner.hex()}, lane {header.lane} of {lanes}."


def task(x: Examination) -> str:
    """It is one of the network's own tasks, or a client's that is not over."""
    if x.genesis.is_filler(x.header.task):
        return "the network's own."
    record = x.state.task(x.header.task)
    if record is None:
        raise Broken(f"{short(x.header.task)} is neither a client's nor one of the network's own.")
    if (end := record.closing or record.outcome) is not None:
        raise Broken(f"{short(x.header.task)} was over at height {end.height}.")
    return f"{record.name!r} of a client."


def commitment(x: Examination) -> str:
    """The message of the slot before has the hash of this header, from before anybody knew its draws."""
    committed = x.proof.committed.iteration.commitment
    if committed != x.header.zero_nonce_hash:
        raise Broken(f"its miner committed itself to another header, {short(committed)}.")
    return f"made in slot {x.proof.committed.iteration.slot}, before its beacon was known."


def draw(x: Examination) -> str:
    """The nonce is one of those that this iteration may draw."""
    winner = x.proof.winner
    iteration, spec = winner.iteration, spec_of(x.genesis, x.state, x.header.task)
    count = allowed_draws(x.genesis, spec, iteration.parts, iteration.entries)
    base = base_nonce(iteration.weights_end, iteration.map_hash, winner.signed.beacon)
    if not is_allowed(x.header.nonce, base, count):
        raise Broken(f"nonce {x.header.nonce.hex()} is none of the {count} that it may draw.")
    return f"one of the {count} nonces that its work allows."


def supervisor(x: Examination) -> str:
    """Whoever makes a founding block is a supervisor, at the latest by this block."""
    if x.after.live_ticket(x.header.miner, SUPERVISOR) is None:
        raise Broken(f"{x.header.miner.hex()} has no live ticket of a supervisor.")
    return f"{x.header.miner.hex()} has a ticket of a supervisor."


def _check_term(height: int, before: Certificate, now: Certificate, office: Office) -> None:
    """A committee certifies while it is in office, by the block that is final: its last slot is the one that says of its
    successor's first block that it is. What it has certified is heard a little longer."""
    slot, epoch = now.slot, now.epoch
    if epoch == office.epoch and now.anchor_height < office.height:
        raise Broken(
            f"slot {slot} says that block {now.anchor_height} is final; allowed in epoch {epoch}: "
            f"{office.height} and above."
        )
    if epoch < office.epoch and before.anchor_height >= office.height:
        raise Broken(
            f"slot {slot} is of epoch {epoch}, which was over when slot {before.slot} had said that block "
            f"{before.anchor_height} is final; {office.epoch} is on since block {office.height}."
        )
    last = office.height + HANDOVER_BLOCKS
    if epoch < office.epoch and (epoch < office.epoch - 1 or height > last):
        raise Broken(f"slot {slot} is of epoch {epoch}, which was heard up to block {last}.")


def _check_member(member: Membership) -> None:
    iteration, certificate = member.iteration, member.signed.certificate
    own = (iteration.network, iteration.task, iteration.slot, iteration.previous)
    if own != (certificate.network, certificate.task, certificate.slot, certificate.previous):
        raise Broken(f"a message of slot {iteration.slot} stands with another slot's certificate.")
    root = root_of_path(iteration.id, member.index, certificate.count, member.path)
    if root != certificate.root:
        raise Broken(
            f"message {short(iteration.id)} is none of slot {certificate.slot}'s {certificate.count}."
        )
    # Its id is certified; but with any signature in it the block would have as many spellings.
    if not verify(iteration.miner, iteration.id, iteration.signature):
        raise Broken(f"the signature of message {short(iteration.id)} is not its miner's.")
