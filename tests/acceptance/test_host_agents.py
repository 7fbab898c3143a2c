"""The agents that owners get, against the gateway that they get: `pocqueue agent`, and the small one in one file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import pocqueue.hosts.python_host
from tests.hosts.parts import new_wallet, sleep
from tests.support.commands import without_settings
from tests.support.hosts_service import Hosts
from tests.support.processes import with_us
from tests.support.sandbox_process import need
from tests.support.waiting import PATIENCE_S, wait_until

SMALL_AGENT = Path(pocqueue.hosts.python_host.__file__).with_name("agent.py")


class Machine:
    """A machine of an owner, on which an agent is started again and again."""

    def __init__(self, folder: Path, hosts: Hosts, token: str, sandbox: str) -> None:
        self.log = folder / "agent.log"
        agent = (sys.executable, "-m", "pocqueue", "agent")
        self._argv = with_us(*agent, "--endpoint", hosts.ws_url)
        self._env = without_settings() | {
            "POCQUEUE_STATE_DIR": str(folder),
            "HN_NODE_TOKEN": token,
            "HN_SANDBOX": sandbox,
        }
        self.process = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        """Start the agent, with the same token each time."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self._argv, env=self._env, stdout=log, stderr=log)
        return self.process

    def end(self) -> None:
        """End it as its owner would."""
        self.process.terminate()
        assert self.process.wait(PATIENCE_S) == 0, self.log.read_text()


def token_for(hosts: Hosts, wallet: str) -> str:
    """Return a node token as the page gets it: of a wallet that has not signed in."""
    token: str = hosts.http.post("/api/nodes/issue-token", json={"wallet": wallet}).json()["token"]
    return token


def completed(hosts: Hosts, wallet: str, kind: str) -> dict[str, Any]:
    """Wait until a job of a wallet's node is completed; return it as the page shows it."""

    def is_done() -> bool:
        # Not by the routes: these have a limit for each address.
        turns, _ = hosts.store.jobs.of_wallet(wallet)
        return any(str(turn.job.kind) == kind and turn.job.state == "completed" for turn in turns)

    wait_until(is_done, PATIENCE_S, "the job's end")
    return next(job for job in hosts.mine("jobs", wallet) if job["type"] == kind)


def test_an_agent_does_the_test_job_and_can_be_killed_in_a_job(
    hosts: Hosts, tmp_path: Path
) -> None:
    """Online, `sleep 5`, 0.05; killed while it works it comes back as the same node, and the job counts once."""
    need("bwrap", "bubblewrap")
    wallet = new_wallet()
    token = hosts.store.owners.issue_token(wallet, proven=True).token
    machine = Machine(tmp_path, hosts, token, "bubblewrap")
    try:
        done = completed(hosts, wallet, "test")
        assert done["status"] == "completed"
        assert done["duration"] >= 5
        [node] = hosts.mine("nodes", wallet)
        assert node["status"] == "online"
        assert node["earned"] == pytest.approx(0.05)  # five seconds, however long it took
        job = hosts.store.jobs.submit(sleep(6, only_node=node["id"]))
        wait_until(
            lambda: f"Job {job.id}, attempt" in machine.log.read_text(), PATIENCE_S, "the job"
        )
        machine.process.kill()
        machine.process.wait()
        machine.start()
        completed(hosts, wallet, "command")
        assert [node["id"]] == [found["id"] for found in hosts.mine("nodes", wallet)]
        attempts = hosts.store.jobs.attempts(job.id)
        assert [str(one.outcome) for one in attempts].count("completed") == 1
        assert sum(one.micro > 0 for one in attempts) == 1
        assert hosts.store.ledger.differences() == []
        machine.end()
    finally:
        machine.process.kill()


@pytest.mark.long
def test_the_job_of_a_killed_agent_goes_to_another_machine(hosts: Hosts, tmp_path: Path) -> None:
    """Once the killed one counts as offline; it is paid once, and whoever comes back has none of it."""
    need("bwrap", "bubblewrap")
    machines: dict[str, Machine] = {}
    try:
        for name in ("a", "b"):
            wallet = new_wallet()
            token = hosts.store.owners.issue_token(wallet, proven=True).token
            (tmp_path / name).mkdir()
            machines[wallet] = Machine(tmp_path / name, hosts, token, "bubblewrap")
        for wallet in machines:
            completed(hosts, wallet, "test")
        node_ids = {hosts.mine("nodes", wallet)[0]["id"]: wallet for wallet in machines}
        job_id = hosts.store.jobs.submit(sleep(10)).id
        wait_until(lambda: hosts.store.jobs.get(job_id).state == "running", PATIENCE_S, "the job")
        [turn] = hosts.store.jobs.attempts(job_id)
        killed = machines[node_ids[turn.node_id]]
        killed.process.kill()
        killed.process.wait()
        node = hosts.store.nodes
        wait_until(lambda: node.get(turn.node_id).relay is None, PATIENCE_S, "the socket's end")
        [turn] = hosts.store.jobs.attempts(job_id)
        # From then on it has as long as any silent node to be back; the next look gives the job away.
        assert turn.lease_until_ms <= node.get(turn.node_id).last_ms + hosts.store.offline_ms
        wait_until(lambda: hosts.store.jobs.get(job_id).state == "completed", PATIENCE_S, "its end")
        lost, done = hosts.store.jobs.attempts(job_id)
        assert (str(lost.outcome), lost.micro) == ("node_lost", 0)
        assert (str(done.outcome), {lost.node_id, done.node_id}) == ("completed", {*node_ids})
        assert done.micro >= 100_000
        killed.start()
        wait_until(lambda: node.get(lost.node_id).relay is not None, PATIENCE_S, "its return")
        assert len(hosts.store.jobs.attempts(job_id)) == 2
        assert hosts.store.ledger.differences() == []
        for machine in machines.values():
            machine.end()
    finally:
        for machine in machines.values():
            machine.process.kill()


def test_the_small_agent_does_the_test_job(hosts: Hosts) -> None:
    """One file and `websockets`, as the page says."""
    wallet = new_wallet()
    argv = [sys.executable, str(SMALL_AGENT), "--endpoint", hosts.ws_url]
    agent = subprocess.Popen(
        [*argv, "--token", token_for(hosts, wallet)],
        env=without_settings(),
        stderr=subprocess.DEVNULL,
    )
    try:
        done = completed(hosts, wallet, "test")
        assert (done["status"], done["duration"] >= 5) == ("completed", True)
        [node] = hosts.mine("nodes", wallet)
        assert node["status"] == "online"
    finally:
        agent.terminate()
        assert agent.wait(PATIENCE_S) == 0
