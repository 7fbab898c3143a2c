"""Wallets, their sessions and their tokens."""

from __future__ import annotations

import hashlib
import secrets
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, and_, delete, func, select, true, update

from pocqueue.hosts import wallets
from pocqueue.hosts.errors import TokenRefused, TooManyTokens, WalletProofError, WalletRefused
from pocqueue.hosts.store.bans import ban_node
from pocqueue.hosts.store.database import Database
from pocqueue.hosts.store.log import note
from pocqueue.hosts.tables import announcement, challenge, node, token, wallet, wallet_session

CHALLENGE_MS: Final = 300_000
SESSION_MS: Final = 86_400_000
#: Unused tokens that a wallet may have.
MAX_TOKENS: Final = 5
#: How long a machine's announcement is shown.
ANNOUNCED_MS: Final = 90 * 86_400_000
#: How long a token is known that was not used, so that its owner reads why it is refused.
_KEEP_MS: Final = 86_400_000


@dataclass(frozen=True, slots=True)
class NewToken:
    """A token for a node, shown once."""

    token: str  #: UUID v4
    expires_ms: int
    proven: bool  #: the wallet's owner asked for it


@dataclass(frozen=True, slots=True)
class Challenge:
    """A text that a wallet is to sign."""

    nonce: str
    text: str
    expires_ms: int


@dataclass(frozen=True, slots=True)
class Announcement:
    """A machine that announced itself."""

    wallet: str
    hostname: str
    gpus: list[object]
    os: str
    at_ms: int


@dataclass(frozen=True, slots=True)
class Owners:
    """Who owns nodes: wallets, what they prove, and the tokens they get."""

    _db: Database
    _now_ms: Callable[[], int]
    token_ms: int  #: life of a token

    def issue_token(self, address: str, *, proven: bool, from_address: str = "") -> NewToken:
        """Give a wallet a token for one node.

        Args:
            address: of the wallet.
            proven: its owner asks, as `wallet_of_session` or `prove` has shown; else whoever it is.
            from_address: network address of who asks.

        Raises:
            WalletRefused: it is no address, or banned.
            TooManyTokens: it has `MAX_TOKENS` that are not used: proven ones, or others from that address.
        """
        wallets.public_key(address)
        text, now_ms = str(uuid.uuid4()), self._now_ms()
        with self._db.write() as connection:
            self._lock_wallet(connection, address)
            open_ones = connection.execute(
                select(func.count(), func.min(token.c.expires_ms)).where(
                    token.c.wallet == address,
                    token.c.used_ms.is_(None),
                    token.c.expires_ms > now_ms,
                    # Whoever types somebody's address uses up neither what its owner may have, nor what
                    # may be had without a proof from elsewhere.
                    token.c.proven == proven,
                    true() if proven else token.c.address == from_address,
                )
            ).one()
            if open_ones[0] >= MAX_TOKENS:
                raise TooManyTokens(MAX_TOKENS, max(1.0, (open_ones[1] - now_ms) / 1000))
            row = {
                "hash": digest(text),
                "wallet": address,
                "proven": proven,
                "address": from_address,
                "created_ms": now_ms,
                "expires_ms": now_ms + self.token_ms,
            }
            connection.execute(token.insert().values(row))
        return NewToken(text, now_ms + self.token_ms, proven)

    def known_token(self, text: str) -> tuple[str, bool] | None:
        """Return the wallet that a token was made for, and whether it is used; None: there is no such token."""
        with self._db.read() as connection:
            query = select(token.c.wallet, token.c.used_ms).where(token.c.hash == digest(text))
            known = connection.execute(query).first()
        return None if known is None else (known.wallet, known.used_ms is not None)

    def challenge(self, address: str, public_url: str) -> Challenge:
        """Make a text for a wallet to sign; it is good for `CHALLENGE_MS`, once.

        Args:
            public_url: of the page that asks, as this server knows it.

        Raises:
            WalletRefused: it is no address.
        """
        wallets.public_key(address)
        nonce, now_ms = secrets.token_hex(16), self._now_ms()
        expires_ms = now_ms + CHALLENGE_MS
        text = wallets.sign_in_text(
            public_url, address, nonce, issued_ms=now_ms, expires_ms=expires_ms
        )
        row = {"nonce": nonce, "wallet": address, "text": text, "expires_ms": expires_ms}
        with self._db.write() as connection:
            connection.execute(challenge.insert().values(row))
        return Challenge(nonce, text, expires_ms)

    def prove(self, address: str, nonce: str, signature: bytes) -> None:
        """Take a wallet's signature of its text. The text is used up by that, whether it is right or not.

        The first time, the nodes that it has by then become its own, too: what they earned is held no more.

        Args:
            nonce: of the text, from `challenge`.
            signature: 64 bytes (`wallets.signature_bytes`).

        Raises:
            WalletRefused: the wallet is banned.
            WalletProofError: the text is unknown, used or too old, or the signature is not the wallet's.
        """
        now_ms = self._now_ms()
        with self._db.write() as connection:
            found = connection.execute(
                delete(challenge)
                .where(challenge.c.nonce == nonce)
                .returning(challenge.c.wallet, challenge.c.text, challenge.c.expires_ms)
            ).first()
        if found is None or found.wallet != address or found.expires_ms < now_ms:
            raise WalletProofError(
                f"There is no text for this wallet to sign any more: one is good for {CHALLENGE_MS // 60_000} "
                "minutes, once. Ask for a new one."
            )
        wallets.check_signature(address, found.text, signature)
        with self._db.write() as connection:
            self._lock_wallet(connection, address)
            first = connection.execute(
                update(wallet)
                .where(wallet.c.address == address, wallet.c.proven_ms.is_(None))
                .values(proven_ms=now_ms)
            )
            if first.rowcount:
                connection.execute(update(node).where(node.c.wallet == address).values(proven=True))
                note(connection, now_ms, address, "wallet.proven", address)

    def start_session(self, address: str) -> str:
        """Start a session of a wallet that `prove` has accepted; return its secret, for a cookie."""
        secret, now_ms = secrets.token_urlsafe(32), self._now_ms()
        row = {"hash": digest(secret), "wallet": address, "expires_ms": now_ms + SESSION_MS}
        with self._db.write() as connection:
            connection.execute(wallet_session.insert().values(row))
        return secret

    def wallet_of_session(self, secret: str) -> str | None:
        """Return whose session it is; None: nobody's, or it has ended."""
        with self._db.read() as connection:
            return connection.execute(
                select(wallet_session.c.wallet)
                .join(wallet, wallet.c.address == wallet_session.c.wallet)
                .where(
                    wallet_session.c.hash == digest(secret),
                    wallet_session.c.expires_ms > self._now_ms(),
                    wallet.c.banned_ms.is_(None),
                )
            ).scalar()

    def end_session(self, secret: str) -> None:
        """End a session; one that is not there is over already."""
        with self._db.write() as connection:
            connection.execute(
                delete(wallet_session).where(wallet_session.c.hash == digest(secret))
            )

    def ban(self, address: str, *, actor: str) -> list[str]:
        """Ban a wallet and its nodes, which lose what they were not paid yet; return the nodes' ids.

        Args:
            actor: ``admin`` or ``server``.

        Raises:
            WalletRefused: the wallet's address is none; one with a slip in it would be banned in place of the one that is meant.
        """
        wallets.public_key(address)
        now_ms = self._now_ms()
        with self._db.write() as connection:
            new = self._db.insert(wallet).values(address=address)
            connection.execute(new.on_conflict_do_nothing())
            unbanned = and_(wallet.c.address == address, wallet.c.banned_ms.is_(None))
            connection.execute(update(wallet).where(unbanned).values(banned_ms=now_ms))
            mine = select(node.c.id).where(node.c.wallet == address).order_by(node.c.id)
            # All of them first, and then the ledger: who ends a job holds its node, and then waits for the ledger.
            nodes = list(connection.execute(mine.with_for_update(key_share=True)).scalars())
            for node_id in nodes:
                ban_node(self._db, connection, node_id, now_ms)
            note(connection, now_ms, actor, "wallet.ban", address)
        return nodes

    def announce(self, address: str, hostname: str, gpus: Sequence[object], os: str) -> None:
        """Note that a machine says it is there; it is shown for 90 days, and nothing else comes of it.

        Raises:
            WalletRefused: the wallet's address is none.
        """
        wallets.public_key(address)
        row = {"gpus": gpus, "os": os, "at_ms": self._now_ms()}
        new = self._db.insert(announcement).values(wallet=address, hostname=hostname, **row)
        with self._db.write() as connection:
            connection.execute(
                new.on_conflict_do_update(index_elements=["wallet", "hostname"], set_=row)
            )

    def announced(self, address: str | None = None, *, limit: int = 200) -> list[Announcement]:
        """Return the machines that announced themselves, of one wallet or (None) of all, newest first."""
        query = select(announcement).where(
            announcement.c.at_ms > self._now_ms() - ANNOUNCED_MS,
            *([] if address is None else [announcement.c.wallet == address]),
        )
        with self._db.read() as connection:
            rows = connection.execute(
                query.order_by(announcement.c.at_ms.desc(), announcement.c.hostname).limit(limit)
            )
            return [Announcement(**row) for row in rows.mappings()]

    def forget(self) -> None:
        """Delete what is over: texts, sessions, unused tokens, announcements."""
        now_ms = self._now_ms()
        unused = token.c.used_ms.is_(None) & (token.c.expires_ms < now_ms - _KEEP_MS)
        with self._db.write() as connection:
            connection.execute(delete(challenge).where(challenge.c.expires_ms < now_ms))
            connection.execute(delete(wallet_session).where(wallet_session.c.expires_ms < now_ms))
            connection.execute(delete(token).where(unused))
            connection.execute(
                delete(announcement).where(announcement.c.at_ms < now_ms - ANNOUNCED_MS)
            )

    def _lock_wallet(self, connection: Connection, address: str) -> None:
        """Hold a wallet's row, made if there is none, until the transaction ends.

        Raises:
            WalletRefused: it is banned.
        """
        new = self._db.insert(wallet).values(address=address)
        connection.execute(new.on_conflict_do_nothing())
        row = (
            select(wallet.c.banned_ms)
            .where(wallet.c.address == address)
            .with_for_update(key_share=True)
        )
        if connection.execute(row).scalar() is not None:
            raise WalletRefused("This wallet is banned here.")


def digest(secret: str) -> str:
    """Return what is kept of a token or a cookie: SHA-256. They are random, so that no salt is needed."""
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()


def use_token(connection: Connection, text: str, node_id: str, now_ms: int) -> tuple[str, bool]:
    """Use a token up for a node, within a transaction; return its wallet and whether that is proven.

    Raises:
        TokenRefused: it is unknown, used, too old, or its wallet is banned.
    """
    used = connection.execute(
        update(token)
        .where(token.c.hash == digest(text), token.c.used_ms.is_(None), token.c.expires_ms > now_ms)
        .values(used_ms=now_ms, node_id=node_id)
        .returning(token.c.wallet, token.c.proven)
    ).first()
    if used is None:
        known = connection.execute(
            select(token.c.used_ms).where(token.c.hash == digest(text))
        ).first()
        if known is None:
            raise TokenRefused("Invalid token")
        raise TokenRefused("Token already used" if known.used_ms is not None else "Token expired")
    banned = select(wallet.c.banned_ms).where(wallet.c.address == used.wallet)
    if connection.execute(banned).scalar() is not None:
        raise TokenRefused("This wallet is banned here")
    return used.wallet, used.proven
