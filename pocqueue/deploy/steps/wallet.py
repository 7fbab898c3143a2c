"""The warm wallet: a key of the node's name in the server's keyring, and its words and address in the node's folder.

A key is made once. What `inferenced` says of it stays on the server, in a file of root's, until it has arrived here whole.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass
from pathlib import Path

from pocqueue.deploy.conf import Conf
from pocqueue.deploy.engine import Download, Host, LocalFile, NotYet, Plan
from pocqueue.deploy.errors import StepFailed
from pocqueue.deploy.facts.keys import KeyProblem, addresses_in, key_problem, read_address
from pocqueue.deploy.facts.wallet import WalletFacts, WalletPlace, read_wallet, wallet_facts
from pocqueue.deploy.steps.mounted import compose_folder, looked, need_mounted
from pocqueue.deploy.words import Command, Secret

#: Seconds that `keys add` and `keys show` may take, each in a container of its own.
KEY_TIMEOUT_S = 120.0
#: Between two looks at one that runs.
_EVERY_S = 0.5


@dataclass(frozen=True, slots=True)
class Wallet:
    """The wallet on the server, and what the node's folder has of it.

    Attributes:
        place: on the server.
        facts: of it.
        password: of its keyring.
        address: of its key; empty: there is no key of this name.
        local_folder: the node's.
        local_address: what warm_address.txt has; empty: there is none.
        words_hash: SHA-256 of warm_key.txt; empty: there is none.
        words_addresses: addresses in it.
    """

    place: WalletPlace
    facts: WalletFacts
    password: Secret
    address: str
    local_folder: Path
    local_address: str
    words_hash: str
    words_addresses: frozenset[str]

    @property
    def words_file(self) -> str:
        """Return the path of warm_key.txt."""
        return str(self.local_folder / "warm_key.txt")

    @property
    def address_file(self) -> str:
        """Return the path of warm_address.txt."""
        return str(self.local_folder / "warm_address.txt")

    @property
    def conflict(self) -> str:
        """Return how the node's folder and the server speak of two wallets; empty: they do not."""
        if not self.address:
            known = [
                path
                for path, has in (
                    (self.words_file, self.words_hash),
                    (self.address_file, self.local_address),
                )
                if has
            ]
            if known:
                return (
                    f"the server has no key {self.place.name}, but {' and '.join(known)} of one are here. No other key is made: "
                    "recover that one there (inferenced keys add --recover), or move what is here away."
                )
            return ""
        other = (self.words_addresses | frozenset(filter(None, [self.local_address]))) - {
            self.address
        }
        if other:
            return (
                f"the server's key {self.place.name} has the address {self.address}, but {self.local_folder} has files of "
                f"{', '.join(sorted(other))}. Nothing is done with either: find out which is the node's, and move the other away."
            )
        return ""


async def look_at_wallet(host: Host, name: str, *, wait_s: float = KEY_TIMEOUT_S) -> Wallet:
    """Return how the wallet stands; a `keys add` that still runs is waited for.

    Args:
        host: the server.
        name: of the step.
        wait_s: for how long.

    Raises:
        NotYet: there are no compose files yet.
        StepFailed: the keyring does not give the key's address.
    """
    conf, password = host.conf, host.conf.keyring_password
    assert password is not None
    await need_mounted(host)
    join = compose_folder(conf)
    place = WalletPlace(join, f"{host.state_dir}/wallet/{conf.key_name}", conf.key_name)
    facts = await _settled(host, place, name, wait_s)
    words, local_address = _read(conf.folder / "warm_key.txt"), _local_address(conf)
    words_addresses = addresses_in(words.decode("utf-8", "replace"))
    address = ""
    if place.name in facts.keyring.names:
        # Seen once with the password, and kept here: the keyring still has the file of this account, and no other.
        seen = words_addresses | frozenset(filter(None, [local_address]))
        is_known = (
            facts.keyring.names == {place.name} and len(seen) == 1 and seen == facts.addresses
        )
        address = next(iter(seen)) if is_known else await _address(host, place, password, name)
    return Wallet(
        place,
        facts,
        password,
        address,
        conf.folder,
        local_address,
        hashlib.sha256(words).hexdigest() if words else "",
        words_addresses,
    )


async def _settled(host: Host, place: WalletPlace, name: str, wait_s: float) -> WalletFacts:
    """Return how it stands when no `keys add` runs."""
    command, needs = wallet_facts(place), f"{place.folder}/docker-compose.yml"
    for look in range(1 + int(wait_s / _EVERY_S)):
        facts = read_wallet(await looked(host, name, command, needs=needs, anew=look > 0))
        if not facts.is_being_made:
            return facts
        await asyncio.sleep(_EVERY_S)
    raise StepFailed(
        name, f"`keys add` of an earlier run has not ended after {wait_s:.0f} s; run again."
    )


async def _address(host: Host, place: WalletPlace, password: Secret, name: str) -> str:
    inferenced = ("inferenced", "keys", "show", place.name, "-a", "--keyring-backend", "file")
    words = (place.folder, "run", "--rm", "--no-deps", "-T", "api", *inferenced)
    show = Command(words, (password, "\n"), script="compose", sudo=True, timeout_s=KEY_TIMEOUT_S)
    said = await host.look(show)
    if said.exit_code != 0:
        problem = key_problem(said.stdout + said.stderr)
        tail = said.tail if problem is KeyProblem.UNKNOWN else ()
        raise StepFailed(
            name,
            f"the address of the key {place.name} cannot be read: {problem.value}.",
            exit_code_there=said.exit_code,
            tail=tail,
        )
    return read_address(f"{said.stdout}\n{said.stderr}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as exc:
        raise StepFailed(path.name, f"{path} cannot be read ({exc.strerror}): mend it.") from None


def _local_address(conf: Conf) -> str:
    return _read(conf.folder / "warm_address.txt").decode("utf-8", "replace").strip()


@dataclass(frozen=True, slots=True)
class WarmWallet:
    """The keyring has a key of the node's name, made once.

    Args:
        wait_s: seconds that a `keys add` of an earlier run is waited for.
    """

    wait_s: float = KEY_TIMEOUT_S
    phase: int = 4
    name: str = "warm wallet"

    async def look(self, host: Host) -> Wallet:
        """Read the keyring."""
        return await look_at_wallet(host, self.name, wait_s=self.wait_s)

    def told(self, facts: Wallet) -> str:
        """Say what there is, or why there is nothing."""
        if facts.address:
            return f"{facts.place.name}, {facts.address}"
        problem = facts.facts.problem
        return f"no key {facts.place.name}" + (f": {problem}" if problem else "")

    def is_done(self, facts: Wallet) -> bool:
        """Say whether there is a key, and no other one is spoken of here."""
        return bool(facts.address) and not facts.conflict

    def plan(self, facts: Wallet) -> Plan:
        """Make it.

        Raises:
            StepFailed: the node's folder has files of another one.
        """
        if facts.conflict:
            raise StepFailed(self.name, facts.conflict)
        place = facts.place
        command = Command(
            (place.folder, place.ring, place.dir, place.name),
            (facts.password, "\n"),
            script="new_key",
            sudo=True,
            timeout_s=KEY_TIMEOUT_S + 30,
        )
        what = f"inferenced keys add {place.name} --keyring-backend file"
        return Plan(what, (command,), is_final=True)


@dataclass(frozen=True, slots=True)
class WarmKeyFile:
    """The words of the key are in the node's folder, in a file of mode 0600, and nowhere else in plain.

    Args:
        stays: they stay on the server, where they are as private.
    """

    stays: bool = False
    phase: int = 4
    name: str = "warm_key.txt"

    async def look(self, host: Host) -> Wallet:
        """Read the keyring, and see what waits there."""
        facts = await look_at_wallet(host, self.name)
        if not facts.address:
            raise NotYet(f"until there is a key {facts.place.name}")
        return facts

    def told(self, facts: Wallet) -> str:
        """Say where the words are."""
        waiting = f"on the server, {facts.place.dir}" if facts.facts.answer_hash else ""
        if facts.words_hash:
            return facts.words_file + (f", and still {waiting}" if waiting else "")
        return waiting or "lost"

    def is_done(self, facts: Wallet) -> bool:
        """Say whether nothing waits to be fetched."""
        return self.stays or not facts.facts.answer_hash

    def warning(self, facts: Wallet) -> str:
        """Say that the words are lost."""
        if facts.words_hash or facts.facts.answer_hash:
            return ""
        return (
            f"the words of {facts.address} are neither here nor on the server, and are not to be had again: keep the backup of "
            "the keys, and its password."
        )

    def plan(self, facts: Wallet) -> Plan:
        """Fetch them, and only then remove them there.

        Raises:
            StepFailed: other words are here.
        """
        place, waiting = facts.place, facts.facts.answer_hash
        if facts.words_hash not in ("", waiting):
            raise StepFailed(
                self.name,
                f"{facts.words_file} is another file than the one in {place.dir} on the server: compare the two, and move one away.",
            )
        words = (place.dir, place.ring, place.name)
        read = Command(("read", *words), script="key_answer", sudo=True)
        drop = Command(("drop", *words, waiting), script="key_answer", sudo=True)
        fetch = Download(f"{place.dir}/answer", read, facts.words_file, waiting)
        actions = (drop,) if facts.words_hash else (fetch, drop)
        return Plan(f"the words of {facts.address} to {facts.words_file}", actions)


@dataclass(frozen=True, slots=True)
class WarmAddressFile:
    """The address of the key is in the node's folder."""

    phase: int = 4
    name: str = "warm_address.txt"

    async def look(self, host: Host) -> Wallet:
        """Read the keyring."""
        return await WarmKeyFile(name=self.name).look(host)

    def told(self, facts: Wallet) -> str:
        """Say which it is."""
        return facts.local_address or "none"

    def is_done(self, facts: Wallet) -> bool:
        """Say whether it is the key's."""
        return facts.local_address == facts.address

    def plan(self, facts: Wallet) -> Plan:
        """Write it.

        Raises:
            StepFailed: another one is here.
        """
        if facts.conflict:
            raise StepFailed(self.name, facts.conflict)
        file = LocalFile(facts.address_file, f"{facts.address}\n", 0o600)
        return Plan(f"{facts.address} to {facts.address_file}", (file,))
