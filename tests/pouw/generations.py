"""Supervisors that make the key of a committee, block by block, honestly or not; only nobody mines the blocks."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import msgspec

from pocqueue.pouw.chain.amounts import PAI
from pocqueue.pouw.chain.apply import apply_transaction, begin_block, end_block
from pocqueue.pouw.chain.genesis import Genesis
from pocqueue.pouw.chain.records import SUPERVISOR, Committee, KeyGeneration
from pocqueue.pouw.chain.signatures import sign_transaction
from pocqueue.pouw.chain.state import State
from pocqueue.pouw.committee.dealing import Dealer
from pocqueue.pouw.slots import bls
from pocqueue.pouw.wire.transactions import (
    Answer,
    Body,
    Complaint,
    Confirm,
    Deal,
    Release,
    TakeTicket,
)
from tests.pouw.support import GENESIS as FREE, account, group_key, key

#: What is said in a block: by whom, and what.
Said = tuple[str, Body]
#: Ascending by account, so that a name's place among the candidates is its place here.
NAMES = tuple(sorted((f"s{number}" for number in range(16)), key=account))


@functools.cache
def founded_by(num: int) -> Genesis:
    """Return a network like `dev` without fees that this many names found; all sixteen have coins."""
    return msgspec.structs.replace(
        FREE,
        name=f"founded by {num}",
        supervisors=tuple(account(name) for name in NAMES[:num]),
        accounts=tuple((account(name), 10_000 * PAI) for name in NAMES),
    )


class Town:
    """A network's state, block after block.

    Args:
        genesis: the network.
        state: to go on from; None: the genesis'.
    """

    def __init__(self, genesis: Genesis, state: State | None = None) -> None:
        self.genesis = genesis
        self.state = state or genesis.state

    @property
    def generation(self) -> KeyGeneration:
        """Return the committee in the making."""
        found = self.state.generation
        assert found is not None
        return found

    @property
    def committee(self) -> Committee:
        """Return the committee in office."""
        found = self.state.committee_in_office
        assert found is not None
        return found

    @property
    def height(self) -> int:
        """Return the height of the newest block."""
        return self.state.clock.height

    def fork(self) -> Town:
        """Return another branch from here."""
        return Town(self.genesis, self.state)

    def block(self, *said: Said) -> None:
        """Add a block in which this is said; each transaction is free and has its sender's next number.

        Raises:
            InvalidTransaction: one of them is refused; there is no block then.
        """
        genesis, draft = self.genesis, self.state.child()
        begin_block(genesis, draft, self.state.clock.time_ms + 1000, is_founding=True)
        for name, body in said:
            sequence = draft.account(account(name)).sequence
            one = sign_transaction(key(name), genesis.network, sequence, 0, body)
            apply_transaction(genesis, draft, one)
        end_block(genesis, draft, account(NAMES[0]), [], is_founding=True)
        self.state = draft.seal()

    def blocks(self, num: int) -> None:
        """Add so many blocks in which nothing is said."""
        for _ in range(num):
            self.block()

    def until(self, height: int) -> None:
        """Add blocks in which nothing is said, up to a height."""
        self.blocks(height - self.height)

    def dealer(self, name: str) -> Dealer:
        """Return what a name deals with, as if it was started again."""
        return Dealer(key(name), self.genesis.network)

    def ticket(self, name: str, stake: int = 100 * PAI) -> Said:
        """Return that a name becomes a supervisor."""
        secret = group_key(name)
        possession = secret.prove_possession(account(name))
        seal = self.dealer(name).seal_key
        return name, TakeTicket(SUPERVISOR, stake, b"{}", "", secret.public_key, possession, seal)

    def release(self, name: str) -> Said:
        """Return that a name is a supervisor no more."""
        ticket = self.state.live_ticket(account(name), SUPERVISOR)
        assert ticket is not None
        return name, Release(ticket)

    def deal(self, name: str) -> Said:
        """Return what a name deals honestly."""
        return name, self.dealer(name).deal(self.generation)

    def deals(self, *names: str) -> list[Said]:
        """Return what names deal honestly."""
        return [self.deal(name) for name in names]

    def wrong_deal(self, name: str, *victims: str) -> Said:
        """Return what a name deals that seals something else to its victims than it commits itself to."""
        _, deal = self.deal(name)
        assert isinstance(deal, Deal)
        places = [self.place(victim) for victim in victims]
        shares = [
            bytes(48) if place in places else sealed for place, sealed in enumerate(deal.shares)
        ]
        return name, msgspec.structs.replace(deal, shares=tuple(shares))

    def complaint(self, name: str, dealer: str) -> Said:
        """Return that a name says a dealer's share is wrong."""
        return name, Complaint(self.generation.id, self.place(dealer))

    def answer(self, name: str, candidate: str) -> Said:
        """Return that a dealer shows a candidate's share."""
        return name, self.dealer(name).answer(self.generation, self.place(candidate))

    def wrong_answer(self, name: str, candidate: str) -> Said:
        """Return that a dealer shows something else."""
        answer = self.answer(name, candidate)[1]
        assert isinstance(answer, Answer)
        return name, msgspec.structs.replace(answer, share=(7).to_bytes(32))

    def confirms(self, *names: str) -> list[Said]:
        """Return that names have good shares."""
        return [(name, Confirm(self.generation.id)) for name in names]

    def confirmed(self) -> None:
        """Add blocks up to the last one of a key generation; in it all candidates say that they have good shares."""
        self.until(self.generation.height + 7)
        accounts = {candidate.account for candidate in self.generation.candidates}
        self.block(*self.confirms(*(name for name in NAMES if account(name) in accounts)))

    def place(self, name: str) -> int:
        """Return a name's place among the candidates."""
        place = self.generation.place(account(name))
        assert place is not None
        return place

    def make_committee(self, *names: str) -> Committee:
        """Let all candidates, these names, deal well; return the committee in office then."""
        begun = self.generation.height
        self.block(*self.deals(*names))
        self.confirmed()
        self.until(begun + 10)
        return self.committee

    def share(self, name: str) -> bls.SecretKey | None:
        """Return a name's share of the key of the committee in office, from the chain and its account's key alone."""
        epoch = self.committee.epoch
        generation = self.state.generation_of(epoch)
        assert generation is not None
        return self.dealer(name).share(
            generation, self.state.deals(epoch), self.state.complaints(epoch)
        )

    def signed_by(self, names: Sequence[str], digest: bytes) -> bytes:
        """Return the signature that shares of these members make."""
        shares = {}
        for name in names:
            share = self.share(name)
            assert share is not None
            place = self.committee.members.index(account(name))
            assert share.public_key == self.committee.shares[place]
            shares[self.committee.numbers[place]] = share.sign(digest)
        return bls.combine(shares)


def begun(num: int) -> Town:
    """Return a network of so many founders in which their key generation has begun, in block 1."""
    town = Town(founded_by(num))
    town.block(*(town.ticket(name) for name in NAMES[:num]))
    return town


def in_office(num: int) -> Town:
    """Return a network of so many founders that are in office."""
    town = begun(num)
    town.make_committee(*NAMES[:num])
    return town
