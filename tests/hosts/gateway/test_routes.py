"""The REST routes as owners, admins, older pages and strangers use them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import secrets
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from nacl.signing import SigningKey
from sqlalchemy import update
from websockets.exceptions import ConnectionClosed, InvalidStatus

from pocqueue.hosts import wallets
from pocqueue.hosts.records import Attempt, Report
from pocqueue.hosts.tables import attempt
from pocqueue.hosts.wire import signed_text
from tests.hosts.agents import NewAgent, OldAgent
from tests.hosts.gateway.conftest import ADMIN, Gateway
from tests.hosts.parts import gpus, joined, running, sleep
from tests.support.waiting import wait_until

#: What asks nothing new of the database; the other tests run on both.
on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


class Wallet:
    """A wallet that can sign, as one in a browser does."""

    def __init__(self) -> None:
        self._key = SigningKey.generate()
        self.address = wallets.encode(bytes(self._key.verify_key))

    def sign(self, text: str) -> str:
        """Return the signature of a text, in base58."""
        return wallets.encode(self._key.sign(text.encode()).signature)


@contextlib.contextmanager
def sign_in(gateway: Gateway, wallet: Wallet) -> Iterator[httpx.Client]:
    """Have a browser in which a wallet has signed in."""
    with httpx.Client(base_url=gateway.url, trust_env=False, timeout=120) as http:
        asked = http.post("/api/session/challenge", json={"wallet": wallet.address}).json()
        body = {
            "wallet": wallet.address,
            "nonce": asked["nonce"],
            "signature": wallet.sign(asked["message"]),
        }
        reply = http.post("/api/session", json=body)
        assert reply.status_code == 200, reply.text
        cookie = reply.headers["Set-Cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        yield http


def at(gateway: Gateway, number: int) -> httpx.Client:
    """Return a client at an address of its own."""
    where = httpx.HTTPTransport(local_address=f"127.0.0.{number}")
    return httpx.Client(base_url=gateway.url, transport=where, timeout=120)


def error(reply: httpx.Response, status: int) -> str:
    """Return the sentence of a refusal."""
    assert reply.status_code == status, reply.text
    assert list(reply.json()) == ["error"]
    return str(reply.json()["error"])


@on_sqlite
def test_texts_that_older_pages_know(gateway: Gateway) -> None:
    """Word for word, with their statuses."""
    http = gateway.http
    ask = http.post
    for body in ({}, {"wallet": ""}):
        assert error(ask("/api/nodes/issue-token", json=body), 400) == "wallet address is required"
    assert error(http.get("/api/nodes/mine"), 400) == "wallet parameter is required"
    assert error(http.get("/api/jobs/mine"), 400) == "wallet parameter is required"
    assert error(http.get("/api/nodes/none"), 404) == "Node not found"
    assert error(http.get("/api/jobs/none"), 404) == "Job not found"
    assert error(ask("/api/jobs/report", json={}), 400) == "jobId and nodeId are required"
    body = {"jobId": "x", "nodeId": "y"}
    assert error(ask("/api/jobs/report", json=body), 404) == "Job not found"
    assert error(ask("/api/gpu/register", json={}), 400) == "wallet is required"
    body = {"wallet": gateway.wallet}
    assert error(ask("/api/gpu/register", json=body), 400) == "hostname is required"
    machine: dict[str, Any] = {"hostname": "h", "gpus": ["x"], "os": "o", "ip": "192.0.2.1"}
    assert ask("/api/gpu/register", json=body | machine).json() == {"ok": True}
    [host] = http.get("/api/gpu/hosts", params={"wallet": gateway.wallet}).json()
    assert (host["hostname"], host["os"]) == ("h", "o")
    assert host["gpus"] == [{"name": "x", "memory": "unknown"}]
    assert http.get("/health").json()["status"] == "ok"
    assert http.get("/readyz").json() == {"status": "ok", "database": True, "redis": True}
    assert error(http.get("/api/nowhere"), 404) == "Not Found"
    assert error(http.put("/health"), 405) == "Method Not Allowed"


def test_what_an_announcement_may_be(gateway: Gateway) -> None:
    """GPUs of few and short fields, printable lines, no number that is none: never a 500, never a full disk."""

    def announce(text: str) -> httpx.Response:
        body = text.replace("W", gateway.wallet)
        return gateway.http.post("/api/gpu/register", content=body)

    for wrong in (
        '{"wallet": "W", "hostname": "h", "gpus": [{"vramMib": NaN}]}',
        '{"wallet": "W", "hostname": "h", "gpus": [NaN]}',
        '{"wallet": "W", "hostname": "h", "gpus": [["x"]]}',
        '{"wallet": "W", "hostname": "h", "gpus": [MANY]}'.replace("MANY", ", ".join(["{}"] * 65)),
        '{"wallet": "W", "hostname": "h", "gpus": [{"name": "LONG"}]}'.replace("LONG", "x" * 201),
        '{"wallet": "W", "hostname": "LONG"}'.replace("LONG", "x" * 201),
    ):
        error(announce(wrong), 422)
    for odd in ("\\ud800", "\\n"):
        reply = announce(
            '{"wallet": "W", "hostname": "aODDb", "os": "ODD", '
            '"gpus": [{"name": "cODDd", "more": 1}]}'.replace("ODD", odd)
        )
        assert reply.status_code in {200, 422}, reply.text
    [host] = gateway.http.get("/api/gpu/hosts", params={"wallet": gateway.wallet}).json()
    assert (host["hostname"], host["os"]) == ("a b", "")
    assert host["gpus"] == [{"name": "c d", "memory": "unknown"}]
    assert error(announce('{"wallet": "\\ud800", "hostname": "h"}'), 422)


@on_sqlite
def test_announcements_are_bounded(make: Callable[..., Gateway]) -> None:
    """For an address, in a day, whatever wallets it names; asking for them is not."""
    gateway = make(limits_factor=0.1)
    body = {"wallet": gateway.wallet, "hostname": "h"}
    for _ in range(5):
        assert gateway.http.post("/api/gpu/register", json=body).status_code == 200
    said = error(gateway.http.post("/api/gpu/register", json=body), 429)
    assert "announcements in 86,400 seconds" in said
    found = gateway.http.get("/api/gpu/hosts", params={"wallet": gateway.wallet})
    assert len(found.json()) == 1


@on_sqlite
@pytest.mark.parametrize(
    ("host", "is_own"),
    [
        ("127.0.0.1:3001", True),
        ("localhost", True),
        ("[::1]:3001", True),
        ("192.0.2.7", True),
        ("evil.example.com", False),
        ("127.0.0.1.evil.example.com", False),
        ("hosts", False),
        ("[::1", False),
    ],
)
def test_nobody_signs_in_by_a_name_that_may_be_anothers(
    gateway: Gateway, host: str, is_own: bool
) -> None:
    """A site that passes its visitors' signatures on has a name; without a public URL none is ours."""
    body = {"wallet": gateway.wallet}
    reply = gateway.http.post("/api/session/challenge", json=body, headers={"Host": host})
    if is_own:
        assert reply.json()["message"].startswith(f"{host} wants you to sign in")
    else:
        assert "POCQUEUE_HOSTS_PUBLIC_URL" in error(reply, 403)


@on_sqlite
def test_with_a_public_url_its_name_is_signed(
    make: Callable[..., Gateway], caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever `Host` says; a gateway for others that has none says so at its start."""
    gateway = make(public_url="https://hosts.example.com", host="0.0.0.0")  # noqa: S104
    headers = {"Host": "evil.example.com"}
    body = {"wallet": gateway.wallet}
    reply = gateway.http.post("/api/session/challenge", json=body, headers=headers)
    assert reply.json()["message"].startswith("hosts.example.com wants you to sign in")
    assert "PUBLIC_URL is not set" not in caplog.text
    make()
    assert "PUBLIC_URL is not set" not in caplog.text
    make(host="0.0.0.0")  # noqa: S104
    assert "POCQUEUE_HOSTS_PUBLIC_URL is not set" in caplog.text


@on_sqlite
def test_bodies_are_json_whatever_is_said_of_them(
    gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    """As curl's `-d` sends them; what is none is not repeated, as it may have a secret in it."""
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    post = gateway.http.post
    body = f'{{"wallet": "{gateway.wallet}"}}'
    for headers in (form, {}):
        assert post("/api/nodes/issue-token", content=body, headers=headers).status_code == 200
    said = error(post("/api/session", content="signature=geheim", headers=form), 422)
    assert said == "The body is not a JSON object."
    error(post("/api/session", content='"geheim"'), 422)
    assert "geheim" not in caplog.text


@on_sqlite
@pytest.mark.parametrize("wallet", ["x", "1" * 31, "1" * 45, "0OIl" * 10, "1" * 1_000_000])
def test_what_is_no_wallet(gateway: Gateway, wallet: str) -> None:
    """Is refused at once, however long it is, and only its beginning is repeated."""
    said = error(gateway.http.post("/api/nodes/issue-token", json={"wallet": wallet}), 400)
    assert "base58 of 32 bytes" in said
    assert len(said) < 300
    body = {"wallet": wallet}
    assert error(gateway.http.post("/api/session/challenge", json=body), 400) == said


def test_tokens(make: Callable[..., Gateway]) -> None:
    """Unproven for whoever asks, proven for who has signed; five at a time; none without proof where that is set."""
    gateway, wallet = make(), Wallet()
    http = gateway.http
    reply = http.post("/api/nodes/issue-token", json={"wallet": wallet.address}).json()
    assert reply["proven"] is False
    assert reply["expiresAt"].endswith("Z")
    for _ in range(4):
        http.post("/api/nodes/issue-token", json={"wallet": wallet.address})
    reply = http.post("/api/nodes/issue-token", json={"wallet": wallet.address})
    assert "5 unused tokens" in error(reply, 429)
    assert int(reply.headers["Retry-After"]) > 0
    # Whoever typed that address has not used up what its owner may have.
    with sign_in(gateway, wallet) as browser:
        reply = browser.post("/api/nodes/issue-token", json={"wallet": wallet.address})
        assert reply.json()["proven"] is True
        other = {"wallet": Wallet().address}
        assert browser.post("/api/nodes/issue-token", json=other).json()["proven"] is False
    asked = http.post("/api/session/challenge", json={"wallet": wallet.address}).json()
    body = {
        "wallet": wallet.address,
        "nonce": asked["nonce"],
        "signature": wallet.sign(asked["message"]),
    }
    assert http.post("/api/nodes/issue-token", json=body).json()["proven"] is True
    # A signature is good once.
    assert error(http.post("/api/nodes/issue-token", json=body), 401)
    strict = make(require_proof=True)
    body = {"wallet": gateway.wallet}
    assert "Sign in" in error(strict.http.post("/api/nodes/issue-token", json=body), 401)


def test_sessions(gateway: Gateway) -> None:
    """Start with a signature of the page's own text, show more of what is the wallet's, and end."""
    wallet, stranger = Wallet(), Wallet()
    http = gateway.http
    asked = http.post("/api/session/challenge", json={"wallet": wallet.address}).json()
    host = gateway.url.removeprefix("http://")
    assert asked["message"].startswith(f"{host} wants you to sign in with your Solana account:\n")
    body = {"wallet": wallet.address, "nonce": asked["nonce"]}
    wrong = body | {"signature": stranger.sign(asked["message"])}
    assert error(http.post("/api/session", json=wrong), 401)
    right = body | {"signature": wallet.sign(asked["message"])}
    assert error(http.post("/api/session", json=right), 401)  # used up by the wrong one
    node = joined(gateway.store, wallet=wallet.address, address="192.0.2.7")
    assert error(http.get("/api/earnings"), 401)
    with sign_in(gateway, wallet) as browser:
        assert browser.get("/api/session").json() == {"wallet": wallet.address}
        [mine] = browser.get("/api/nodes/mine", params={"wallet": wallet.address}).json()
        assert mine["gpus"][0]["name"] == "NVIDIA GeForce RTX 4090"
        assert mine["held"] == 0
        earned = browser.get("/api/earnings").json()
        assert (earned["earned"], earned["rows"]) == (0, [])
        drain = f"/api/nodes/{node.id}/drain"
        with sign_in(gateway, stranger) as other:
            assert error(other.post(drain), 404) == "Node not found"
        assert error(http.post(drain), 401)
        assert browser.post(drain).json() == {"ok": True}
        [mine] = browser.get("/api/nodes/mine", params={"wallet": wallet.address}).json()
        assert mine["status"] in {"draining", "offline"}
        assert browser.post(f"/api/nodes/{node.id}/resume").json() == {"ok": True}
        assert browser.post(f"/api/nodes/{node.id}/revoke").json() == {"ok": True}
        assert browser.get("/api/nodes/mine", params={"wallet": wallet.address}).json() == []
        assert browser.delete("/api/session").json() == {"wallet": None}
        assert browser.get("/api/session").json() == {"wallet": None}


@on_sqlite
def test_what_an_admin_has_drained_its_owner_does_not_take_back(gateway: Gateway) -> None:
    """He reads who can; what he has drained himself he takes back."""
    wallet = Wallet()
    node = joined(gateway.store, wallet=wallet.address, connect=False)
    drain, resume = f"/api/nodes/{node.id}/drain", f"/api/nodes/{node.id}/resume"
    with sign_in(gateway, wallet) as browser:
        assert gateway.admin("POST", drain).json() == {"ok": True}
        assert browser.post(drain).json() == {"ok": True}
        assert "operator of this server has drained" in error(browser.post(resume), 409)
        assert gateway.admin("POST", resume).json() == {"ok": True}
        assert browser.post(drain).json() == {"ok": True}
        assert browser.post(resume).json() == {"ok": True}
    assert gateway.store.nodes.get(node.id).state == "active"


@on_sqlite
def test_owners_decide_about_tokens_and_held_nodes(gateway: Gateway) -> None:
    """Their own alone; rows of pay say what became of them."""
    wallet, stranger = Wallet(), Wallet()
    store = gateway.store
    with sign_in(gateway, wallet) as browser, sign_in(gateway, stranger) as other:
        held = joined(store, wallet=wallet.address, proven=False)
        store.ledger.correct(held.id, 50_000, "its test job")
        [row] = browser.get("/api/earnings").json()["rows"]
        assert (row["hyper"], row["fate"], row["jobId"]) == (0.05, "held", None)
        adopt = f"/api/nodes/{held.id}/adopt"
        assert error(other.post(adopt), 404) == "Node not found"
        assert error(gateway.http.post(adopt), 401)
        assert browser.post(adopt).json() == {"ok": True}
        earned = browser.get("/api/earnings").json()
        assert (earned["held"], earned["payable"], earned["rows"][0]["fate"]) == (0, 0.05, "due")

        made = browser.post("/api/nodes/issue-token", json={"wallet": wallet.address}).json()
        [token] = browser.get("/api/tokens").json()
        assert token["proven"]
        assert made["token"] not in str(token)
        revoke = f"/api/tokens/{token['id']}/revoke"
        assert other.get("/api/tokens").json() == []
        assert "Token not found" in error(other.post(revoke), 404)
        assert error(gateway.http.post(revoke), 401)
        assert error(gateway.http.get("/api/tokens"), 401)
        assert browser.post(revoke).json() == {"ok": True}
        assert browser.get("/api/tokens").json() == []


async def test_what_everybody_may_see(gateway: Gateway) -> None:
    """Of a node and a job the fields of the older page, and none of the owner's."""
    async with OldAgent(gateway.ws_url) as agent:
        node_id = await agent.register(gateway.token())
        job = await agent.do_job()
    six = {"id", "hostname", "gpu", "status", "lastHeartbeat", "earned"}
    assert set(gateway.nodes()[0]) == six
    assert set(gateway.http.get(f"/api/nodes/{node_id}").json()) == six
    assert {"wallet", "gpus", "os"} <= set(gateway.admin("GET", f"/api/nodes/{node_id}").json())
    seven = {"id", "type", "nodeId", "status", "duration", "createdAt", "completedAt"}
    assert seven <= set(gateway.jobs()[0])
    shown = gateway.http.get(f"/api/jobs/{job['id']}").json()
    assert (shown["status"], shown["nodeId"]) == ("completed", node_id)
    assert error(gateway.http.get(f"/api/jobs/{job['id']}/log"), 404) == "Job not found"
    assert gateway.admin("GET", f"/api/jobs/{job['id']}/log").json()["log"] == "done\n"
    assert error(gateway.http.get(f"/api/nodes/{node_id}/self-test"), 404) == "Node not found"


def test_admins(make: Callable[..., Gateway]) -> None:
    """A token for what is theirs; without one on the gateway nobody gets in. Lists come in pages."""
    gateway = make()
    for path in ("/api/nodes", "/api/jobs", "/api/gpu/hosts/all", "/metrics"):
        assert "ADMIN_TOKEN" in error(gateway.http.get(path), 401)
        wrong = {"Authorization": "Bearer a-token-of-nobody"}
        assert "Invalid auth token" in error(gateway.http.get(path, headers=wrong), 401)
        assert gateway.admin("GET", path).status_code == 200
    nodes = {joined(gateway.store).id for _ in range(5)}
    found, cursor = [], None
    while True:
        reply = gateway.admin("GET", "/api/nodes", params={"limit": 2, "cursor": cursor or ""})
        found += [node["id"] for node in reply.json()]
        if (cursor := reply.headers.get("X-Next-Cursor")) is None:
            break
    assert set(found) == nodes
    assert len(found) == 5
    job_id = gateway.submit(priority=3)
    assert gateway.admin("POST", f"/api/jobs/{job_id}/cancel").json() == {"ok": True}
    assert error(gateway.http.post(f"/api/jobs/{job_id}/cancel"), 401)
    assert gateway.admin("GET", "/api/jobs").json()[0]["status"] == "failed"
    assert error(gateway.admin("GET", "/api/jobs", params={"limit": 0}), 422)
    page = gateway.admin("GET", "/metrics").text
    assert 'pocqueue_hosts_jobs{kind="command",state="cancelled"} 1.0' in page
    assert not any(node in page for node in nodes)
    closed = make(admin_token=None)
    assert "is not set" in error(closed.http.get("/api/nodes"), 401)
    assert error(closed.admin("GET", "/api/nodes"), 401)


@on_sqlite
def test_figures_of_nodes_jobs_and_the_ledger(make: Callable[..., Gateway]) -> None:
    """In every state, also where there is none; a row that somebody has changed is seen by the gateway itself."""
    gateway = make(timings={"first_audit_s": 0.05, "audit_s": 0.05})

    def figure(name: str) -> float:
        lines = gateway.admin("GET", "/metrics").text.splitlines()
        return next((float(line.split()[-1]) for line in lines if line.startswith(name)), -1.0)

    wait_until(lambda: figure("pocqueue_hosts_ledger_mismatch ") == 0, message="an audit")
    node = joined(gateway.store)
    joined(gateway.store, connect=False)
    gateway.store.nodes.set_state(joined(gateway.store).id, "banned", actor="admin")
    for state, num in (("online", 1), ("offline", 1), ("banned", 1), ("paused", 0)):
        assert figure(f'pocqueue_hosts_nodes{{state="{state}"}}') == num
    job_id = gateway.store.jobs.submit(sleep(0)).id
    assert figure('pocqueue_hosts_jobs{kind="command",state="queued"}') == 1
    assert figure('pocqueue_hosts_jobs{kind="container",state="running"}') == 0
    running(gateway.store, job_id)
    gateway.store.leases.finish(job_id, node.id, Report("completed"))
    with gateway.store.database.write() as connection:
        connection.execute(update(attempt).values(micro=7))
    wait_until(lambda: figure("pocqueue_hosts_ledger_mismatch ") == 1, message="an audit")


@on_sqlite
def test_each_attempt_is_counted_once_by_its_end(gateway: Gateway) -> None:
    """Completed, cancelled or lost; a job that has failed with its last attempt does not wait again."""
    node = joined(gateway.store, gpus=gpus(2))

    def at_work(**changes: Any) -> str:
        job_id = gateway.store.jobs.submit(sleep(**changes)).id
        running(gateway.store, job_id)
        with gateway.store.database.write() as connection:
            began = update(attempt).where(attempt.c.job_id == job_id)
            connection.execute(began.values(sent_ms=attempt.c.sent_ms - 2000))
        return job_id

    def lose(job_id: str) -> None:
        with gateway.store.database.write() as connection:
            over = update(attempt).where(attempt.c.job_id == job_id)
            connection.execute(over.values(lease_until_ms=0))
        gateway.service.sweep()

    cancelled, lost = at_work(timeout_s=2), at_work(max_attempts=1, only_node=node.id)
    for _ in range(2):
        assert gateway.admin("POST", f"/api/jobs/{cancelled}/cancel").status_code == 200
        lose(lost)
    # As by `pocqueue hosts job cancel`, which has no figures of its own.
    by_command = at_work(timeout_s=2)
    done = gateway.store.leases.cancel(by_command, actor="admin")
    assert done is not None
    gateway.service.tell("cancelled", node.id, by_command, done.attempt.n)
    page = gateway.admin("GET", "/metrics").text
    for line in (
        'job_attempts_total{kind="command",outcome="cancelled"} 2.0',
        'job_attempts_total{kind="command",outcome="node_lost"} 1.0',
        'earned_micro_total{kind="command"} 40000.0',
        'jobs{kind="command",state="cancelled"} 2.0',
        'jobs{kind="command",state="failed"} 1.0',
    ):
        assert f"pocqueue_hosts_{line}" in page
    assert "pocqueue_hosts_jobs_requeued_total{" not in page


@on_sqlite
def test_jobs_of_one_address_are_bounded(make: Callable[..., Gateway]) -> None:
    """As an admin's program may go wrong, too."""
    gateway = make(limits_factor=0.1)
    body = {"name": "sleep", "parameters": {"seconds": 0}}
    for _ in range(6):
        assert gateway.admin("POST", "/api/jobs", json=body).status_code == 200
    assert "jobs in 60 seconds" in error(gateway.admin("POST", "/api/jobs", json=body), 429)


async def test_a_job_is_submitted(gateway: Gateway) -> None:
    """From the operator's list alone, by an admin; it goes to a node, and its log is there to read."""
    async with NewAgent(gateway.ws_url) as agent:
        token = gateway.store.owners.issue_token(gateway.wallet, proven=True).token
        node_id = await agent.register(token)
        await agent.result(await agent.of_type("job"))
        body = {"name": "sleep", "parameters": {"seconds": 0}, "node": node_id}
        assert error(gateway.http.post("/api/jobs", json=body), 401)
        made = gateway.admin("POST", "/api/jobs", json=body)
        assert made.status_code == 200, made.text
        job = await agent.of_type("job")
        assert (job["id"], job["argv"]) == (made.json()["id"], ["sleep", "0"])
        assert job["limits"]["memoryMib"] == 4096
        await agent.result(job)
        assert gateway.admin("GET", f"/api/jobs/{job['id']}/log").json()["log"] == "done\n"
        for wrong, said in (
            ({"name": "rm"}, "no command of the list"),
            ({"parameters": {"seconds": "1; rm -rf /"}}, "parameters.seconds is '1; rm -rf /'"),
            ({"parameters": {}}, "parameters.seconds is missing"),
            ({"shell": "x"}, "shell"),
        ):
            reply = gateway.admin("POST", "/api/jobs", json=body | wrong)
            assert said in error(reply, 422)
        reply = gateway.admin("POST", "/api/jobs", json=body | {"node": "nobody's"})
        assert error(reply, 404) == "Node not found"


def test_a_log_is_for_the_owner_of_its_attempt(gateway: Gateway) -> None:
    """The job went on to another owner's node, which has written nothing yet: it does not see the first one's."""
    store, first, second = gateway.store, Wallet(), Wallet()
    ours = joined(store, wallet=first.address, connect=False)
    theirs = joined(store, wallet=second.address, connect=False)
    job = store.jobs.submit(sleep())
    for node in (ours, theirs):
        store.presence.connected(node.id, "none", "socket")
        turn = store.places.place(job.id)
        assert isinstance(turn, Attempt)
        assert turn.node_id == node.id
        if node is ours:
            store.leases.refuse(job.id, 1, ours.id, "a secret of ours")
    path = f"/api/jobs/{job.id}/log"
    with sign_in(gateway, second) as browser:
        assert browser.get(path).json() == {"log": "", "truncated": False}
        store.leases.add_log(job.id, theirs.id, "theirs")
        assert browser.get(path).json()["log"] == "theirs"
    with sign_in(gateway, first) as browser:
        assert error(browser.get(path), 404) == "Job not found"


async def test_results_over_rest(gateway: Gateway) -> None:
    """From the node alone, by its token or its key; paid once, by the server's clock."""
    token = gateway.token()
    async with OldAgent(gateway.ws_url) as agent:
        node_id = await agent.register(token)
        job = await agent.of_type("job")
        body = {"jobId": job["id"], "nodeId": node_id, "status": "completed", "logs": "x"}
        body |= {"duration": 1_000_000}
        post = gateway.http.post
        assert error(post("/api/jobs/report", json=body), 401)
        wrong = {"Authorization": f"Bearer {secrets.token_hex(16)}"}
        assert error(post("/api/jobs/report", json=body, headers=wrong), 401)
        signed = {"X-Node-Signature": "00" * 64}
        assert error(post("/api/jobs/report", json=body, headers=signed), 401)
        right = {"Authorization": f"Bearer {token}"}
        for _ in range(2):
            reply = post("/api/jobs/report", json=body, headers=right)
            assert reply.json() == {"success": True}
    [done] = gateway.jobs()
    assert (done["status"], done["duration"] < 1000) == ("completed", True)
    # One with a key signs: its token has let it in, and is nothing any more.
    token = gateway.token()
    async with NewAgent(gateway.ws_url) as new:
        node_id = await new.register(token)
        job = await new.of_type("job")
        body = {"jobId": job["id"], "nodeId": node_id, "status": "completed"}
        content = json.dumps(body).encode()
        text = signed_text("127.0.0.1", node_id, hashlib.sha256(content).hexdigest())
        signed = {"X-Node-Signature": new.key.sign(text)}
        right = {"Authorization": f"Bearer {token}"}
        said = error(post("/api/jobs/report", content=content, headers=right), 401)
        assert "which has a key: send X-Node-Signature" in said
        reply = post("/api/jobs/report", content=content, headers=signed)
        assert reply.json() == {"success": True}
        gateway.store.nodes.set_state(node_id, "revoked", actor="admin")
        error(post("/api/jobs/report", content=content, headers=signed), 401)
    assert gateway.store.ledger.differences() == []


@on_sqlite
async def test_pages_of_other_sites(make: Callable[..., Gateway]) -> None:
    """May read nothing, change nothing and open no socket, unless the setting names them."""
    gateway = make(cors_origins="https://app.example.com, http://localhost:5173")
    body = {"wallet": gateway.wallet}
    evil, good = {"Origin": "https://evil.example.com"}, {"Origin": "https://app.example.com"}
    own = {"Origin": gateway.url}
    post = gateway.http.post
    assert "of another site" in error(post("/api/nodes/issue-token", json=body, headers=evil), 403)
    reply = gateway.http.get("/health", headers=evil)
    assert "access-control-allow-origin" not in reply.headers
    for headers in (good, own, {}):
        assert post("/api/nodes/issue-token", json=body, headers=headers).status_code == 200
    reply = gateway.http.get("/health", headers=good)
    assert reply.headers["access-control-allow-origin"] == good["Origin"]
    assert reply.headers["access-control-allow-credentials"] == "true"
    asked = good | {"Access-Control-Request-Method": "POST"}
    reply = gateway.http.options("/api/nodes/issue-token", headers=asked)
    assert reply.status_code == 200
    with pytest.raises(InvalidStatus) as refused:
        async with OldAgent(gateway.ws_url, origin="https://evil.example.com"):
            pass
    assert refused.value.response.status_code == 403
    async with OldAgent(gateway.ws_url, origin="https://app.example.com") as agent:
        assert (await agent.ask(type="register"))["message"] == "Token is required"
    everybody = make(cors_origins="*")
    reply = everybody.http.get("/health", headers=evil)
    assert reply.headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in reply.headers
    # Another port of this machine is the same site: its pages' requests come with the cookie.
    with sign_in(everybody, Wallet()) as browser:

        def who(origin: str) -> object:
            asked = browser.get("/api/session", headers={"Origin": origin})
            return asked.json()["wallet"]

        assert who(everybody.url)
        assert who("http://127.0.0.1:1") is None
        assert who("null") is None
        elsewhere = {"Origin": "http://127.0.0.1:1"}
        assert browser.delete("/api/session", headers=elsewhere).status_code == 200
        assert who(everybody.url)


@on_sqlite
@pytest.mark.usefixtures("still_limits")
async def test_limits(make: Callable[..., Gateway]) -> None:
    """Tokens, requests and sockets of one address; each says when to try again."""
    gateway = make(limits_factor=1.0)
    for number in range(11):
        body = {"wallet": wallets.encode(secrets.token_bytes(32))}
        reply = gateway.http.post("/api/nodes/issue-token", json=body)
        assert reply.status_code == (200 if number < 10 else 429)
    assert "10 tokens in 3,600 seconds" in error(reply, 429)
    assert int(reply.headers["Retry-After"]) > 0
    said = {gateway.http.get("/api/session").status_code for _ in range(130)}
    assert said == {200, 429}
    assert gateway.http.get("/api/jobs/none/log").status_code == 429
    assert gateway.http.get("/health").status_code == 200  # whoever watches it is not counted
    said = {gateway.http.get("/readyz").status_code for _ in range(100)}
    assert said == {200, 429}  # by itself: a page's requests do not use it up
    codes = set()
    for _ in range(21):
        async with OldAgent(gateway.ws_url) as agent:
            try:
                codes.add((await agent.ask())["type"])
            except ConnectionClosed:
                codes.add(await agent.close_code())
    assert codes == {"error", 4429}
    page = gateway.admin("GET", "/metrics").text
    for route in ("tokens_of_address", "requests", "connects", "looks"):
        assert f'pocqueue_hosts_rate_limited_total{{route="{route}"}}' in page


@on_sqlite
@pytest.mark.parametrize("trusted", [None, "127.0.0.1"])
async def test_limits_behind_a_proxy(make: Callable[..., Gateway], trusted: str | None) -> None:
    """What a proxy adds is believed where the setting names it, and nothing that its client has made up before that."""
    gateway = make(limits_factor=0.1, trusted_proxies=trusted)  # a token for each address

    def ask(forwarded: str) -> int:
        body = {"wallet": wallets.encode(secrets.token_bytes(32))}
        headers = {"X-Forwarded-For": forwarded}
        return gateway.http.post("/api/nodes/issue-token", json=body, headers=headers).status_code

    assert ask("203.0.113.7") == 200
    assert ask("198.51.100.1, 203.0.113.7") == 429
    assert ask("203.0.113.8") == (200 if trusted else 429)
    token = gateway.store.owners.issue_token(gateway.wallet, proven=True).token
    headers = {"X-Forwarded-For": "198.51.100.1, 203.0.113.9"}
    async with OldAgent(gateway.ws_url, headers=headers) as agent:
        node = gateway.store.nodes.get(await agent.register(token))
    assert node.address == ("203.0.113.9" if trusted else "127.0.0.1")


@on_sqlite
def test_new_wallets_are_no_way_around_the_limits(make: Callable[..., Gateway]) -> None:
    """Each gets its tokens in its session, all of one address no more than it may have."""
    gateway = make(
        limits_factor=0.1
    )  # 3 signed requests of an address, 3 tokens in sessions, 2 for a wallet

    def ask(http: httpx.Client) -> httpx.Response:
        wallet = Wallet()
        gateway.store.owners.issue_token(wallet.address, proven=True)
        secret = gateway.store.owners.start_session(wallet.address)
        cookie = {"Cookie": f"pocqueue_session={secret}"}
        path = "/api/nodes/issue-token"
        return http.post(path, json={"wallet": wallet.address}, headers=cookie)

    assert [ask(gateway.http).json()["proven"] for _ in range(3)] == [True] * 3
    assert "30 tokens in 3,600 seconds" in error(ask(gateway.http), 429)
    with at(gateway, 2) as other:
        assert ask(other).json()["proven"] is True


def test_strangers_use_up_nobody_elses_tokens(make: Callable[..., Gateway]) -> None:
    """Who names a wallet is counted by his address; its owner, signed in or not, gets his."""
    gateway, wallet = make(limits_factor=1.0), Wallet()
    body = {"wallet": wallet.address}
    for number in (2, 3):
        with at(gateway, number) as stranger:
            said = [
                stranger.post("/api/nodes/issue-token", json=body).status_code for _ in range(10)
            ]
            assert said == [200] * 5 + [429] * 5
    reply = gateway.http.post("/api/nodes/issue-token", json=body)
    assert reply.json()["proven"] is False
    with sign_in(gateway, wallet) as browser:
        for _ in range(5):
            reply = browser.post("/api/nodes/issue-token", json=body)
            assert reply.json()["proven"] is True
        assert "5 unused tokens" in error(browser.post("/api/nodes/issue-token", json=body), 429)


@on_sqlite
def test_strangers_use_up_nobody_elses_pages(gateway: Gateway) -> None:
    """Of one wallet twenty may be open at each address, and twenty in its session."""
    wallet = Wallet()
    path = f"/app/events?wallet={wallet.address}"

    def opened(http: httpx.Client) -> int:
        return held.enter_context(http.stream("GET", path)).status_code

    with contextlib.ExitStack() as held:
        stranger = held.enter_context(at(gateway, 2))
        assert [opened(stranger) for _ in range(21)] == [200] * 20 + [429]
        assert opened(gateway.http) == 200
        browser = held.enter_context(sign_in(gateway, wallet))
        assert [opened(browser) for _ in range(21)] == [200] * 20 + [429]


@on_sqlite
async def test_secrets_are_in_no_log(gateway: Gateway, caplog: pytest.LogCaptureFixture) -> None:
    """Neither tokens, cookies, signatures nor the admin's token, right or wrong ones, at any level."""
    caplog.set_level(logging.DEBUG)
    logging.getLogger("websockets").setLevel(logging.WARNING)  # that of the test's own clients
    wallet, token, wrong = Wallet(), gateway.token(), "a-wrong-token-of-somebody"
    with sign_in(gateway, wallet) as browser:
        secret = browser.cookies["pocqueue_session"]
        browser.get("/api/nodes/mine", params={"wallet": wallet.address, "token": wrong})
    gateway.http.get("/api/nodes", headers={"Authorization": f"Bearer {wrong}"})
    gateway.admin("GET", "/api/nodes")
    async with OldAgent(f"{gateway.ws_url}/?token={wrong}") as agent:
        await agent.ask(type="register", token=wrong, hostInfo={})
        await agent.ask(type="register", token=[wrong], hostInfo={})
        await agent.register(token)
        await agent.send(type="job_result", id="x", status="completed", logs=wrong)
    async with NewAgent(gateway.ws_url) as new:
        await new.register(gateway.token())
        seed = new.key.seed.hex()
    logging.getLogger("websockets").setLevel(logging.NOTSET)
    ours = [r.getMessage() for r in caplog.records if not r.name.startswith(("httpx", "httpcore"))]
    text = "\n".join(ours)
    assert "Refused an agent from 127.0.0.1: Invalid token" in text
    for one in (token, wrong, secret, ADMIN, seed):
        assert one not in text
