"""`pocqueue pouw`: every command against a node that runs, a network of its own, and what is refused."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from pocqueue.cli import pouw_client
from pocqueue.pouw.chain.tasks import parse_requirements
from tests.support.commands import pocqueue, pocqueue_here, without_settings
from tests.support.processes import running, wait_ready
from tests.support.waiting import PATIENCE_S

_PROGRAM = [sys.executable, "-m", "pocqueue", "pouw"]


class Running(NamedTuple):
    """A node, and what its own commands are told."""

    process: subprocess.Popen[str]
    folder: Path
    variables: dict[str, str]
    port: int
    http_port: int

    def status(self) -> dict[str, Any]:
        """Return what it says of itself; nothing while it does not answer."""
        try:
            found = httpx.get(f"http://127.0.0.1:{self.http_port}/api/status", trust_env=False)
        except httpx.HTTPError:
            return {}
        return dict(found.json())

    def is_staked(self) -> bool:
        """Its ticket is live."""
        economics = self.status().get("economics", {})
        return bool(economics.get("staked"))

    def asked(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run a command that asks it."""
        return pocqueue_here(
            self.variables | {"POCQUEUE_POUW_HTTP_PORT": str(self.http_port)}, "pouw", *argv
        )


def _variables(folder: Path) -> dict[str, str]:
    return without_settings() | {"POCQUEUE_STATE_DIR": str(folder)}


def _free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as other:
        for sock in (one, other):
            sock.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]


@contextlib.contextmanager
def _node(role: str, folder: Path, *more: str, **variables: str) -> Iterator[Running]:
    folder.mkdir(exist_ok=True)
    variables |= _variables(folder)
    port, http_port = _free_ports()
    argv = [*_PROGRAM, "node", "--role", role, "--host", "127.0.0.1", "--node-id", f"{role}_1"]
    argv += ["--port", str(port), "--http-port", str(http_port), *more]
    with running(argv, folder / "log", variables) as process:
        found = Running(process, folder, variables, port, http_port)
        wait_ready(lambda: found.status() != {}, process)
        yield found


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A supervisor, which certifies its own training, of a network as dev with blocks of a second; there is a trained one."""
    folder = tmp_path_factory.mktemp("supervisor")
    text = files("pocqueue.pouw.chain").joinpath("dev.toml").read_text()
    for line, quick in (
        ('name = "dev"', 'name = "quick"'),
        ("block_ms = 10_000", "block_ms = 1_000"),
        ("halflife_ms = 200_000", "halflife_ms = 20_000"),
        ("first_target_bits = 247", "first_target_bits = 252"),
        ("slot_ms = 250", "slot_ms = 50"),
    ):
        assert line in text
        text = text.replace(line, quick)
    (folder / "quick.toml").write_text(text)
    with _node("supervisor", folder, POCQUEUE_POUW_NETWORK=str(folder / "quick.toml")) as found:
        wait_ready(lambda: found.status()["blockchain_height"] > 1, found.process)
        yield found


def _facts(text: str) -> dict[str, str]:
    return dict(re.findall(r"^(\w+)  +(.*)$", text, re.MULTILINE))


def test_status(node: Running) -> None:
    """For people in lines, for programs as JSON."""
    said = _facts(node.asked("status").stdout)
    assert said["node"] == "supervisor_1  supervisor  on quick"
    assert re.fullmatch(r"height \d+, final up to \d+", said["chain"])
    assert re.match(r"filler 0 slot \d", said["task"])
    assert (said["mining"], said["links"]) == ("yes", "0")
    assert said["coins"].endswith("100 staked")
    found = json.loads(node.asked("status", "--json").stdout)
    assert found["public_key"] == said["account"]
    assert found["committee"] == [said["account"]]


def test_balance(node: Running) -> None:
    """Of the node's own account, of one that nobody has used, and of what is no account."""
    own = _facts(node.asked("balance").stdout)
    assert own["staked"] == "100.000000 PAI"
    assert re.fullmatch(r"ticket [0-9a-f]{64}, 100 PAI, live", own["supervisor"])
    other = node.asked(
        "balance", own["account"][:-2] + ("00" if own["account"][-2:] != "00" else "11")
    )
    assert _facts(other.stdout)["balance"] == "0.000000 PAI"
    wrong = node.asked("balance", "me")
    assert wrong.returncode == 2
    assert "account is 'me'; allowed: 66 hex digits" in wrong.stderr


def test_blocks(node: Running) -> None:
    """A founding block and a trained one, line by line; training is said to be checked only where it was."""
    first = node.asked("block", "1")
    assert first.returncode == 0
    assert "founding" in _facts(first.stdout)["proof"]
    heights = range(2, node.status()["blockchain_height"] + 1)
    trained = next(
        height
        for height in heights
        if json.loads(node.asked("block", str(height), "--json").stdout)["task"].strip("0")
    )
    shown = node.asked("block", str(trained)).stdout
    for rule in ("certificates", "messages", "commitment", "draw", "work", "transactions", "state"):
        assert re.search(rf"^{rule} +holds ", shown, re.MULTILINE), rule
    assert re.search(r"^re-execution +not checked", shown, re.MULTILINE)
    verified = node.asked("verify", str(trained))
    assert verified.returncode == 0, verified.stdout
    assert re.search(
        r"^re-execution +holds +\d gradients? done over", verified.stdout, re.MULTILINE
    )
    beyond = node.asked("verify", "1000000")
    assert beyond.returncode == 2
    assert "There is no block of height 1000000; the newest one is" in beyond.stderr


@pytest.mark.long
def test_an_order(node: Running) -> None:
    """A client orders a model and watches it to the end: matched, trained, closed, evaluated, paid; then it is among
    the tasks."""
    assert "No tasks." in node.asked("tasks").stdout
    assert "No links." in node.asked("peers").stdout
    address = f"127.0.0.1:{node.port}"
    network = node.variables["POCQUEUE_POUW_NETWORK"]
    order = ["task", "submit", "digits", "--name", "mine", "--min-accuracy", "0.2", "--watch"]
    # A task waits until there is a miner.
    miner = _node(
        "miner", node.folder / "miner", "--bootstrap", address, POCQUEUE_POUW_NETWORK=network
    )
    evaluator = _node(
        "evaluator",
        node.folder / "evaluator",
        "--bootstrap",
        address,
        POCQUEUE_POUW_NETWORK=network,
    )
    with miner, evaluator as judge:
        wait_ready(lambda: judge.is_staked(), judge.process)
        done = pocqueue(
            node.folder / "client",
            *("pouw", *order, "--max-epochs", "5", "--bootstrap", address, "--json"),
            POCQUEUE_POUW_NETWORK=network,
        )
        assert re.search(
            r"^miner_1 +miner +127\.0\.0\.1:", node.asked("peers").stdout, re.MULTILINE
        )
    assert done.returncode == 0, done.stderr
    assert "55 PAI go into escrow" in done.stderr
    found = json.loads(done.stdout)
    paid = Counter[str]()
    for one in found["payouts"]:
        paid[one["for"]] += round(1_000_000 * one["amount"])
    assert (found["state"], found["accuracy"] > 0.2) == ("settled", True)
    assert paid["training"] + paid["bounties"] == 35_750_000
    assert (paid["certifying"], paid["evaluating"]) == (11_000_000, 8_250_000)
    for line in (
        r"trained: closed by the committee of epoch 0 after \d+ slots; it counts \d+ of 256 right",
        r"evaluator 0[23][0-9a-f]{10} finds \d+ of 256 right",
        r"settled: the median is [\d.]+ % right, so quality is 100.00 %",
        r"8.250000 PAI to 0[23][0-9a-f]{64} for evaluating",
    ):
        assert re.search(f"^mine: {line}", done.stderr, re.MULTILINE), done.stderr
    assert re.search(r"\bmine +digits +50 .*settled", node.asked("tasks").stdout)


def test_coins_are_sent(node: Running) -> None:
    """Signed with the key in the node's folder; a block has it when the command ends."""
    other = "02" + "79be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798"
    done = node.asked("send", other, "1.5")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.match(rf"1\.5 PAI to {other}; [\d,.]+ PAI are left\.", done.stdout)
    assert _facts(node.asked("balance", other).stdout)["balance"] == "1.500000 PAI"
    for argv, sentence in (
        ([other, "0"], "amount: a transfer of nothing"),
        ([other, "0.0000001"], "amount is '0.0000001'; allowed: a number from 0 to"),
        ([other, "1000000"], "balance: its sender cannot pay for it"),
        (["me", "1"], "address is 'me'; allowed: 66 hex digits"),
    ):
        refused = node.asked("send", *argv)
        assert refused.returncode == 2, refused.stdout
        assert sentence in " ".join(refused.stderr.split())


@pytest.mark.long
def test_a_ticket_is_given_back(node: Running) -> None:
    """Its own, by default; then it has none. One of nobody is refused."""
    address, network = f"127.0.0.1:{node.port}", node.variables["POCQUEUE_POUW_NETWORK"]
    begun = ("--bootstrap", address)
    with _node("verifier", node.folder / "verifier", *begun, POCQUEUE_POUW_NETWORK=network) as it:
        wait_ready(it.is_staked, it.process)
        wrong = it.asked("ticket", "release", "ab" * 32)
        assert wrong.returncode == 2
        assert "is no live ticket of its sender" in " ".join(wrong.stderr.split())
        done = it.asked("ticket", "release")
        assert (done.returncode, done.stderr) == (0, "")
        assert re.match(r"ticket [0-9a-f]{64} given back; [\d,.]+ PAI are left\.", done.stdout)
        assert not it.is_staked()
        again = it.asked("ticket", "release")
        assert "The node on this machine has no ticket." in again.stderr


def test_a_node_cannot_start(node: Running, tmp_path: Path) -> None:
    """Port taken, folder in use, too small a stake: a sentence each, no traceback, code 2."""
    given = ["pouw", "node", "--host", "127.0.0.1", "--role", "miner", "--http-port", "0"]
    for folder, more, sentence in (
        (tmp_path, ["--port", str(node.port)], f"port {node.port} of 127.0.0.1 is taken"),
        (node.folder, ["--port", "0"], "is in use by another node"),
        (tmp_path, ["--port", "0", "--stake", "5"], "allowed for a miner: at least 100"),
    ):
        network = node.variables["POCQUEUE_POUW_NETWORK"]
        done = pocqueue(folder, *given, *more, POCQUEUE_POUW_NETWORK=network)
        assert done.returncode == 2, done.stderr
        assert sentence in done.stderr
        assert "Traceback" not in done.stderr


def test_who_certifies_and_what_was_noticed(node: Running) -> None:
    """One member, itself; no alerts; and no evidence against anybody, which is said with code 2."""
    said = node.asked("committee").stdout
    assert _facts(said)["needed"] == "1 of 1 member make a signature"
    assert "supervisor_1 (this node)" in said
    found = json.loads(node.asked("committee", "--json").stdout)
    assert [one["account"] for one in found["members"]] == [node.status()["public_key"]]
    assert node.asked("alerts").stdout == "Threat level LOW\nNo alerts.\n"
    assert json.loads(node.asked("alerts", "--json").stdout)["alerts"] == []
    done = node.asked("evidence", node.status()["public_key"])
    assert done.returncode == 2
    assert "There is no evidence against account" in done.stderr


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["evidence", "miner_1", "--http-port", "1"], "ID is 'miner_1'; allowed: 64 hex digits"),
        (["node", "--role", "boss"], "--role is 'boss'; allowed: miner, supervisor,"),
        (["node", "--bootstrap", "nowhere"], "--bootstrap is 'nowhere'; allowed: HOST:PORT"),
        (["node", "--node-id", "a b"], "node_id is 'a b'; allowed: 1 to 64 of"),
        (["node", "--port", "70000"], "Invalid value for '--port'"),
        (["status", "--http-port", "1"], "No node answers at 127.0.0.1:1: start one"),
        (["verify", "0", "--http-port", "1"], "Invalid value for 'height'"),
        (
            ["task", "submit", "cats"],
            "data is 'cats'; allowed: digits, words, or the path of a file.",
        ),
        (
            ["task", "submit", "digits", "--widths", "a,b"],
            "--widths is 'a,b'; allowed: whole numbers with commas, such as 64,32.",
        ),
        (["task", "submit", "digits", "--minutes", "inf"], "Invalid value for '--minutes'"),
        (["task", "submit", "digits", "--minutes", "1e15"], "Invalid value for '--minutes'"),
        (["task", "submit", __file__], "test_pouw.py: it is no safetensors file"),
        (["task", "submit", "digits", "--epsilon", "0"], "Invalid value for '--epsilon'"),
        (
            ["task", "submit", "digits", "--epsilon", "3", "--delta", "1"],
            "Invalid value for '--delta'",
        ),
        (
            ["task", "submit", "digits", "--delta", "0.1"],
            "--delta is 0.1; allowed: with --epsilon only.",
        ),
        (
            ["task", "submit", "digits", "--epsilon", "0.001", "--max-epochs", "1000"],
            "--epsilon is 0.001; allowed: what a noise of 1,000 times the norm gives 1000 laps",
        ),
        (["testnet", "--miners", "0"], "Invalid value for '--miners'"),
        (["testnet", "--supervisors", "3"], "a committee of 2 or 3 tolerates nobody's failure"),
        (
            ["testnet", "--chaos", "--miners", "2"],
            "--miners is 2; allowed: 3 and more with --chaos",
        ),
        (
            ["testnet", "--chaos", "--supervisors", "4", "--seconds", "60"],
            "and more with --chaos and so many nodes, or none: it ends when all is done",
        ),
        (["testnet", "--seed", "1"], "--seed is 1; allowed: with --chaos only."),
    ],
)
def test_bad_input(tmp_path: Path, argv: list[str], sentence: str) -> None:
    """One sentence that names the value and what is allowed, and code 2."""
    done = pocqueue_here(_variables(tmp_path), "pouw", *argv)
    assert done.returncode == 2
    assert sentence in " ".join(done.stderr.split())


@pytest.mark.parametrize(("epsilon", "laps"), [(0.5, 1), (12.0, 40), (100.0, 1000)])
def test_a_private_order_has_noise_for_all_of_its_laps(epsilon: float, laps: int) -> None:
    """As the chain counts it, and for not one more."""
    asked = {"max_epochs": laps, **pouw_client._private(epsilon, 1e-6, laps)}
    model = parse_requirements(asked, "digits")
    assert model.privacy is not None
    assert model.privacy.max_laps == laps


def test_a_network_cannot_be_read(tmp_path: Path) -> None:
    """The genesis file is named, and why it describes nothing."""
    file = tmp_path / "mine.toml"
    file.write_text("name = 'mine'")
    env = _variables(tmp_path) | {"POCQUEUE_POUW_NETWORK": str(file)}
    done = pocqueue_here(env, "pouw", "node", "--http-port", "0")
    assert (done.returncode, str(file) in done.stderr) == (2, True)


def test_ctrl_c_and_again(tmp_path: Path) -> None:
    """Ctrl-C ends a node with 0; started again it has the same account. Its key is its owner's alone."""
    accounts = []
    for _ in range(2):
        with _node("peer", tmp_path / "peer") as found:
            accounts.append(found.status()["public_key"])
            found.process.send_signal(signal.SIGINT)
            assert found.process.wait(PATIENCE_S) == 0, (found.folder / "log").read_text()
    assert accounts[0] == accounts[1]
    assert (tmp_path / "peer" / "pouw" / "key.pem").stat().st_mode & 0o077 == 0


def test_testnet(tmp_path: Path) -> None:
    """Its nodes are linked and have blocks; Ctrl-C ends all of them, and it says whether they agree."""
    log = tmp_path / "log"
    argv = [*_PROGRAM, "testnet", "--miners", "1"]
    with running(argv, log, _variables(tmp_path)) as process:
        wait_ready(
            lambda: (
                re.search(r"^2 nodes, height [1-9]\d*, slot", log.read_text(), re.MULTILINE)
                is not None
            ),
            process,
        )
        process.send_signal(signal.SIGINT)
        code = process.wait(PATIENCE_S)
    last = log.read_text().splitlines()[-1]
    assert (
        code,
        re.match(r"2 nodes agree on one chain of \d+ blocks[,.]", last) is not None,
    ) == (0, True), last


def test_testnet_for_programs(tmp_path: Path) -> None:
    """It ends by itself; one object says what each node was, and the exit code whether they agree."""
    done = pocqueue(tmp_path, "pouw", "testnet", "--miners", "1", "--seconds", "1", "--json")
    found = json.loads(done.stdout)
    assert [one["node_id"] for one in found["nodes"]] == ["supervisor_001", "miner_001"]
    assert done.returncode == (0 if found["agreement"]["agree"] else 1)


def test_without_its_packages(tmp_path: Path) -> None:
    """Whoever lacks the extra gets a sentence that says how it comes, from the command and from the class."""
    code = """
import sys
sys.modules["pyblst"] = None
from pocqueue.pouw.economics import NodeRole
from pocqueue.pouw.node import PoUWNode
try:
    PoUWNode("one", NodeRole.PEER)
except Exception as exc:
    print(type(exc).__name__, exc)
sys.argv = ["pocqueue", "pouw", "status"]
from pocqueue.cli import main
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=_variables(tmp_path), capture_output=True, text=True
    )
    sentence = "not installed here (pyblst): pip install 'pocqueue[pouw]'."
    assert done.returncode == 2
    assert done.stdout.startswith("PouwError ")
    assert sentence in done.stdout
    assert "[one] Failed to initialize node components: " in done.stderr
    assert done.stderr.splitlines()[-1].endswith(sentence)


@pytest.mark.long
@pytest.mark.parametrize(
    ("roles", "cheats", "evidence"),
    [
        ({}, ("false-maps", "two-messages"), {"Fault", "TwoMessages"}),
        (
            {"supervisors": 4, "miners": 3, "verifiers": 1, "evaluators": 1},
            ("false-maps", "two-messages", "two-values", "two-votes"),
            {"Fault", "TwoMessages", "TwoProposals", "TwoVotes"},
        ),
    ],
    ids=["one in charge", "nobody in charge"],
)
def test_testnet_with_chaos(
    tmp_path: Path, roles: dict[str, int], cheats: tuple[str, ...], evidence: set[str]
) -> None:
    """Everything planned is done, each kind once; cheats lose their stakes, and who is honest has one history."""
    options = [word for name, number in roles.items() for word in (f"--{name}", str(number))]
    done = pocqueue(tmp_path, *("pouw", "testnet", *options, "--chaos", "--seed", "1", "--json"))
    found = json.loads(done.stdout)
    deeds = {(deed["kind"], deed["cheat"]) for deed in found["chaos"]["deeds"]}
    others = {("kill", None), ("pause", None), ("cut", None)}
    assert deeds == others | {("cheat", name) for name in cheats}
    assert (found["chaos"]["is_well"], found["chaos"]["is_done"]) == (True, True), done.stdout
    assert found["agreement"]["agree"], found["agreement"]["sentence"]
    assert {one["evidence"] for one in found["chaos"]["slashed"]} == evidence
    assert done.returncode == 0
