"""Wallets and tokens: what is proven, what is used once, and how many there may be."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import select, text

from pocqueue.hosts.errors import (
    TokenRefused,
    TooManyTokens,
    UnknownNode,
    WalletProofError,
    WalletRefused,
)
from pocqueue.hosts.store import HostStore
from pocqueue.hosts.store.owners import CHALLENGE_MS, MAX_TOKENS, SESSION_MS
from pocqueue.hosts.tables import (
    challenge,
    node as node_table,
    token as token_table,
    wallet as wallet_table,
    wallet_session,
)
from tests.hosts.parts import Wallet, facts, gpus, joined, new_wallet
from tests.support.node_key import NodeKey
from tests.support.waiting import Clock

URL = "https://hosts.example.com"


def sign_in(store: HostStore, wallet: Wallet) -> None:
    """Ask for a text, sign it, hand it in."""
    asked = store.owners.challenge(wallet.address, URL)
    store.owners.prove(wallet.address, asked.nonce, wallet.sign(asked.text))


def test_a_token_lets_one_node_in_and_is_kept_as_a_digest(store: HostStore) -> None:
    """UUID v4, good for an hour; nobody can read it out of the database."""
    wallet = new_wallet()
    token = store.owners.issue_token(wallet, proven=True, from_address="192.0.2.7")
    assert token.token.count("-") == 4
    assert token.token[14] == "4"
    assert token.expires_ms == store.now_ms() + 3_600_000
    with store.database.read() as connection:
        [row] = connection.execute(select(token_table)).all()
        assert token.token not in str(row)
    node = store.nodes.register(token.token, facts(), address="192.0.2.1")
    assert (node.wallet, node.proven, node.state) == (wallet, True, "active")
    with pytest.raises(TokenRefused, match=r"^Token already used$"):
        store.nodes.register(token.token, facts(), address="192.0.2.1")


def test_tokens_that_are_none(store: HostStore, clock: Clock) -> None:
    """In the words that agents know."""
    with pytest.raises(TokenRefused, match=r"^Invalid token$"):
        store.nodes.register("6d3f5c4b-0b29-4ac1-a1e8-4e02f39c1e9f", facts(), address="")
    for odd in ("", "\0", "\ud800", "x" * 100_000, "' OR 1=1 --"):
        with pytest.raises(TokenRefused, match=r"^Invalid token$"):
            store.nodes.register(odd, facts(), address="")
    late = store.owners.issue_token(new_wallet(), proven=False).token
    clock.now_s += 3601
    with pytest.raises(TokenRefused, match=r"^Token expired$"):
        store.nodes.register(late, facts(), address="")
    store.owners.forget()
    with pytest.raises(TokenRefused, match=r"^Token expired$"):
        store.nodes.register(late, facts(), address="")


def test_sixteen_threads_race_for_twenty_tokens(store: HostStore) -> None:
    """Each token has one winner, and whoever loses hears why: on both databases."""
    tokens = [store.owners.issue_token(new_wallet(), proven=True).token for _ in range(20)]
    start = threading.Barrier(16)
    lost: set[str] = set()

    def race(_: int) -> list[str]:
        start.wait()
        won = []
        for token in tokens:
            try:
                won.append(store.nodes.register(token, facts(gpus=()), address="").id)
            except TokenRefused as error:
                lost.add(str(error))
        return won

    with ThreadPoolExecutor(16) as threads:
        won = [node_id for found in threads.map(race, range(16)) for node_id in found]
    assert len(won) == len(set(won)) == 20
    assert lost == {"Token already used"}
    with store.database.read() as connection:
        assert set(connection.execute(select(node_table.c.id)).scalars()) == set(won)


def test_five_tokens_may_wait_and_strangers_use_up_their_own(
    store: HostStore, clock: Clock
) -> None:
    """The next one is told when to come again; the wallet's owner has his five whatever others ask for."""
    wallet = new_wallet()
    for _ in range(MAX_TOKENS):
        store.owners.issue_token(wallet, proven=False)
        clock.now_s += 10
    with pytest.raises(TooManyTokens, match="has 5 unused tokens") as caught:
        store.owners.issue_token(wallet, proven=False)
    assert caught.value.retry_after_s == pytest.approx(3550)
    own = store.owners.issue_token(wallet, proven=True)
    store.nodes.register(own.token, facts(), address="")
    clock.now_s += 3551
    store.owners.issue_token(wallet, proven=False)


def test_tokens_that_are_asked_for_at_once_are_counted(store: HostStore) -> None:
    """Sixteen requests at a time get five."""
    wallet = new_wallet()
    start = threading.Barrier(16)

    def ask(_: int) -> bool:
        start.wait()
        try:
            store.owners.issue_token(wallet, proven=False)
        except TooManyTokens:
            return False
        return True

    with ThreadPoolExecutor(16) as threads:
        assert sum(threads.map(ask, range(16))) == MAX_TOKENS


def test_whoever_has_the_key_of_a_used_token_is_let_in_again(store: HostStore) -> None:
    """The answer may have been lost; another key, or none, is refused."""
    token = store.owners.issue_token(new_wallet(), proven=True).token
    key, other = NodeKey.generate().public_hex, NodeKey.generate().public_hex
    node = store.nodes.register(token, facts(), address="", key=key)
    renamed = facts(hostname="renamed", gpus=gpus(2))
    # By two steps: what it says of itself is not written before no other connection has it.
    again = store.nodes.register(token, renamed, address="", key=key)
    back = store.nodes.resume(again.id, renamed, address="", key=key, relay="one", socket="a")
    assert back is not None
    assert (again, back.node.id, back.node.hostname) == (node, node.id, "renamed")
    assert len(store.nodes.get(node.id).gpus) == 2
    for key_of_another in (other, None):
        with pytest.raises(TokenRefused, match=r"^Token already used$"):
            store.nodes.register(token, facts(), address="", key=key_of_another)
    store.nodes.set_state(node.id, "revoked", actor="admin")
    with pytest.raises(UnknownNode):
        store.nodes.register(token, facts(), address="", key=key)


def test_signing_in_once_makes_held_pay_ones_own(store: HostStore) -> None:
    """What a pasted address has earned is held until its owner shows up; later strangers' nodes stay held."""
    wallet = Wallet()
    early = joined(store, wallet=wallet.address, proven=False)
    store.ledger.correct(early.id, 50_000, "work")
    held = store.ledger.balance(wallet.address)
    assert (held.earned, held.held, held.payable) == (0, 50_000, 0)
    sign_in(store, wallet)
    own = store.ledger.balance(wallet.address)
    assert (own.earned, own.held, own.payable) == (50_000, 0, 50_000)
    planted = joined(store, wallet=wallet.address, proven=False)
    sign_in(store, wallet)
    assert not store.nodes.get(planted.id).proven
    with pytest.raises(UnknownNode):
        store.nodes.adopt(planted.id, actor="w", wallet=new_wallet())
    assert not store.nodes.get(planted.id).proven
    assert store.nodes.adopt(planted.id, actor=wallet.address, wallet=wallet.address).proven


def test_a_text_is_signed_once_in_time_and_by_its_own_wallet(
    store: HostStore, clock: Clock
) -> None:
    """A replay, another wallet, a wrong signature and a late one are refused, and use the text up."""
    wallet, other = Wallet(), Wallet()
    asked = store.owners.challenge(wallet.address, URL)
    signature = wallet.sign(asked.text)
    store.owners.prove(wallet.address, asked.nonce, signature)
    with pytest.raises(WalletProofError, match="Ask for a new one"):
        store.owners.prove(wallet.address, asked.nonce, signature)

    asked = store.owners.challenge(wallet.address, URL)
    with pytest.raises(WalletProofError, match="Ask for a new one"):
        store.owners.prove(other.address, asked.nonce, other.sign(asked.text))

    asked = store.owners.challenge(wallet.address, URL)
    with pytest.raises(WalletProofError, match="not this wallet's"):
        store.owners.prove(wallet.address, asked.nonce, other.sign(asked.text))
    with pytest.raises(WalletProofError, match="Ask for a new one"):
        store.owners.prove(wallet.address, asked.nonce, wallet.sign(asked.text))

    asked = store.owners.challenge(wallet.address, URL)
    clock.now_s += CHALLENGE_MS / 1000 + 1
    with pytest.raises(WalletProofError, match="Ask for a new one"):
        store.owners.prove(wallet.address, asked.nonce, wallet.sign(asked.text))
    with store.database.read() as connection:
        proven = select(wallet_table.c.address).where(wallet_table.c.proven_ms.is_not(None))
        assert connection.execute(proven).scalars().all() == [wallet.address]


def test_a_text_of_another_page_is_worth_nothing(store: HostStore) -> None:
    """A page that hands a text of ours on under its own name has a signature of another text."""
    wallet = Wallet()
    asked = store.owners.challenge(wallet.address, URL)
    elsewhere = asked.text.replace("hosts.example.com", "evil.example.com")
    with pytest.raises(WalletProofError):
        store.owners.prove(wallet.address, asked.nonce, wallet.sign(elsewhere))


def test_sessions_end(store: HostStore, clock: Clock) -> None:
    """By signing out, by time, and when the wallet is banned; the cookie itself is not kept."""
    wallet = Wallet()
    sign_in(store, wallet)
    first, second = (store.owners.start_session(wallet.address) for _ in range(2))
    assert store.owners.wallet_of_session(first) == wallet.address
    assert store.owners.wallet_of_session(f"{first}x") is None
    store.owners.end_session(first)
    assert store.owners.wallet_of_session(first) is None
    assert store.owners.wallet_of_session(second) == wallet.address
    clock.now_s += SESSION_MS / 1000 + 1
    assert store.owners.wallet_of_session(second) is None
    store.owners.forget()
    third = store.owners.start_session(wallet.address)
    store.owners.ban(wallet.address, actor="admin")
    assert store.owners.wallet_of_session(third) is None


def test_what_is_over_is_deleted_once_an_hour(store: HostStore, clock: Clock) -> None:
    """However often the store is asked to: texts that nobody signed and sessions that ended."""
    wallet = Wallet()
    sign_in(store, wallet)

    def count() -> int:
        with store.database.read() as connection:
            tables = (challenge, wallet_session)
            return sum(len(connection.execute(table.select()).all()) for table in tables)

    store.forget()
    store.owners.challenge(wallet.address, URL)
    store.owners.start_session(wallet.address)
    clock.now_s += 3599
    store.forget()
    assert count() == 2
    clock.now_s += 1
    store.forget()
    assert count() == 1
    clock.now_s += 86_400
    store.forget()
    assert count() == 0


def test_a_banned_wallet_gets_nothing(store: HostStore) -> None:
    """No token, no node by a token that it has, no payout."""
    wallet = Wallet()
    sign_in(store, wallet)
    node = joined(store, wallet=wallet.address)
    store.ledger.correct(node.id, 50_000, "work")
    token = store.owners.issue_token(wallet.address, proven=True).token
    store.owners.ban(wallet.address, actor="admin")
    with pytest.raises(WalletRefused, match="banned"):
        store.owners.issue_token(wallet.address, proven=True)
    with pytest.raises(TokenRefused, match="banned"):
        store.nodes.register(token, facts(), address="")
    assert store.nodes.get(node.id).state == "banned"
    assert store.ledger.pay_out() == []


@pytest.mark.parametrize("address", ["", "x", "0" * 44, "1" * 44, "I" * 43, "ü" * 40, "1" * 10**6])
def test_what_is_no_address_gets_nothing(store: HostStore, address: str) -> None:
    """It is said what an address is, and nothing is written."""
    for ask in (
        lambda: store.owners.issue_token(address, proven=False),
        lambda: store.owners.challenge(address, URL),
        lambda: store.owners.announce(address, "h", [], "o"),
    ):
        with pytest.raises(WalletRefused, match="base58 of 32 bytes"):
            ask()
    with store.database.read() as connection:
        assert connection.execute(text("SELECT count(*) FROM wallet")).scalar() == 0


def test_announcements_are_shown_for_a_season(store: HostStore, clock: Clock) -> None:
    """One for each machine of a wallet, the newest first; nothing else comes of them."""
    wallet, other = new_wallet(), new_wallet()
    for hostname in ("a", "b", "a"):
        clock.now_s += 1
        store.owners.announce(wallet, hostname, [{"name": "RTX"}], "Debian")
    store.owners.announce(other, "c", [], "")
    assert [one.hostname for one in store.owners.announced(wallet)] == ["a", "b"]
    assert len(store.owners.announced()) == 3
    assert store.nodes.of_wallet(wallet) == []
    clock.now_s += 91 * 86_400
    assert store.owners.announced() == []
    store.owners.forget()
    with store.database.read() as connection:
        assert connection.execute(text("SELECT count(*) FROM announcement")).scalar() == 0
