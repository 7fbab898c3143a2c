"""The registration of the node with the network: once, and proved by the network's own answer alone."""

from __future__ import annotations

from dataclasses import dataclass

from pocqueue.deploy.engine import Host, LocalFile, NotYet, Plan
from pocqueue.deploy.errors import StepFailed
from pocqueue.deploy.facts.account import account_address
from pocqueue.deploy.facts.keys import read_participant
from pocqueue.deploy.facts.parts import read_parts
from pocqueue.deploy.remote_job import Job
from pocqueue.deploy.steps.mounted import compose_folder, looked, need_mounted
from pocqueue.deploy.words import Command

_JOB = "4-register"


@dataclass(frozen=True, slots=True)
class Participant:
    """What the network knows of the node's account.

    Attributes:
        folder: of the compose files on the server.
        seed: URL of the network.
        public_url: where the world is to reach the node.
        public_key: of the account, as the conf has it.
        known: the key that the network has for the account's address; None: none.
        answer: its words.
        output: what the job that registered it has printed; empty: there was none.
        file: path of registration.txt here.
        has_file: it is there.
    """

    folder: str
    seed: str
    public_url: str
    public_key: str
    known: str | None
    answer: str
    output: str
    file: str
    has_file: bool

    @property
    def address(self) -> str:
        """Return the address of the account: the cold one, which is registered, and not the warm wallet's."""
        return account_address(self.public_key)

    @property
    def url(self) -> str:
        """Return where the network is asked for it."""
        return participant_url(self.seed, self.public_key)


def participant_url(seed: str, public_key: str) -> str:
    """Return where a network is asked for the participant of a public key."""
    return f"{seed.rstrip('/')}/v1/participants/{account_address(public_key)}"


async def look_at_participant(host: Host, name: str) -> Participant:
    """Return what the network knows, asked from the server.

    Args:
        host: the server.
        name: of the step.

    Raises:
        NotYet: there are no compose files yet.
        StepFailed: the network is not reached: what it knows stays open.
        UnexpectedAnswer: its answer is not understood: the same.
    """
    await need_mounted(host)
    conf = host.conf
    folder, url = compose_folder(conf), participant_url(conf.seed_api_url, conf.account_pubkey)
    words = (folder, url, f"{host.state_dir}/jobs/{_JOB}")
    command = Command(words, script="participant", sudo=True, timeout_s=60)
    said = await looked(host, name, command, needs=f"{folder}/docker-compose.yml")
    parts = read_parts(said, "answer", "output")
    answer, _, status = parts["answer"].text.rpartition("\n")
    if parts["answer"].exit_code != 0 or not status.isdecimal():
        raise StepFailed(
            name,
            f"the server does not reach {url}: whether the node is registered is not known, and nothing is done. Mend its network, "
            "or SEED_API_URL.",
            tail=tuple(parts["answer"].lines),
        )
    file = conf.folder / "registration.txt"
    return Participant(
        folder,
        conf.seed_api_url.rstrip("/"),
        conf.public_url,
        conf.account_pubkey,
        read_participant(int(status), answer),
        answer.strip(),
        parts["output"].text.strip(),
        str(file),
        file.exists(),
    )


@dataclass(frozen=True, slots=True)
class Registration:
    """The network knows the node's account by its key.

    Args:
        tries: how often the network is asked after the request.
        every_s: seconds between.
    """

    tries: int = 10
    every_s: float = 6.0
    phase: int = 4
    name: str = "registration"

    async def look(self, host: Host) -> Participant:
        """Ask the network."""
        return await look_at_participant(host, self.name)

    def told(self, facts: Participant) -> str:
        """Say what the network knows."""
        known = "known to" if facts.known else "not known to"
        return f"{facts.address} is {known} {facts.seed}"

    def is_done(self, facts: Participant) -> bool:
        """Say whether it knows the account by the conf's key."""
        return facts.known == facts.public_key

    def plan(self, facts: Participant) -> Plan:
        """Register it.

        Raises:
            StepFailed: the network has another key for this account.
        """
        if facts.known is not None:
            raise StepFailed(
                self.name,
                f"the network has the key {facts.known} for {facts.address}, and not ACCOUNT_PUBKEY. Nothing is sent: compare "
                f"{facts.url} with the conf file.",
            )
        request = (facts.folder, facts.public_url, facts.public_key, facts.seed, facts.url)
        waits = (str(self.tries), f"{self.every_s:g}")
        command = Command(
            (*request, *waits),
            script="register",
            sudo=True,
            timeout_s=180 + self.tries * (self.every_s + 10),
        )
        what = f"inferenced register-new-participant {facts.public_url} {facts.public_key} --node-address {facts.seed}"
        return Plan(what, (Job(_JOB, command),), is_final=True)


@dataclass(frozen=True, slots=True)
class RegistrationFile:
    """The node's folder has what was said at its registration."""

    phase: int = 4
    name: str = "registration.txt"

    async def look(self, host: Host) -> Participant:
        """Ask the network, and see what the job has printed."""
        facts = await look_at_participant(host, self.name)
        if not facts.known:
            raise NotYet("until the network knows the node")
        return facts

    def told(self, facts: Participant) -> str:
        """Say where it is."""
        return facts.file if facts.has_file else "none"

    def is_done(self, facts: Participant) -> bool:
        """Say whether it is there."""
        return facts.has_file

    def warning(self, facts: Participant) -> str:
        """Say that somebody else has made the account known, which may have been for something else."""
        if facts.output:
            return ""
        return (
            f"{facts.address} was known before, and no run of this server has registered it. An account that has only signed "
            f"something is known, too: see that the network has {facts.public_url} for it."
        )

    def plan(self, facts: Participant) -> Plan:
        """Write it."""
        said = f"{facts.output}\n\n" if facts.output else ""
        text = f"{said}{facts.url}\n{facts.answer}\n"
        return Plan(f"to {facts.file}", (LocalFile(facts.file, text, 0o600),))
