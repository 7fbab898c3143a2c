"""The fakes do what the programs that they stand for do, as far as a deployment sees it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pocqueue.deploy.facts.docker import docker_facts, open_ports, read_docker
from pocqueue.deploy.facts.git import CloneState, clone_state, git_facts, read_git
from pocqueue.deploy.facts.gpu import DriverState, gpu_facts, read_gpus
from pocqueue.deploy.facts.keys import (
    KeyProblem,
    addresses_in,
    key_problem,
    read_address,
    read_participant,
)
from pocqueue.deploy.facts.model import model_facts, read_model
from pocqueue.deploy.facts.node import inside_facts, read_inside
from pocqueue.deploy.words import Command
from tests.deploy.facts.test_gpu import gpus
from tests.deploy.fake_programs import URL, Fakes, fake_programs, hash_of
from tests.support.waiting import wait_until

PASSWORD = 'a b"c$d`e#f;'
REVISION = "c" * 40
GPU_FIELDS = (
    *("index", "uuid", "name", "memory.total", "memory.free", "driver_version", "compute_cap"),
    *("ecc.errors.uncorrected.volatile.total", "persistence_mode", "pcie.link.width.current"),
    *("pcie.link.width.max", "mig.mode.current"),
)


@pytest.fixture
def fakes(tmp_path: Path) -> Iterator[Fakes]:
    """The fakes of a server."""
    with fake_programs(tmp_path / "fakes") as found:
        found.secret(PASSWORD)
        yield found


@pytest.fixture
def project(fakes: Fakes, tmp_path: Path) -> Path:
    """A clone of the network's repository, as git makes it."""
    done = fakes.run("git", "clone", "-q", URL, str(tmp_path / "gonka"))
    assert done.returncode == 0, done.stderr
    return tmp_path / "gonka" / "deploy" / "join"


def text_of(fakes: Fakes, command: Command) -> str:
    """Return what a command of facts prints."""
    done = fakes.run(*command.argv())
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_call_is_in_the_journal(fakes: Fakes) -> None:
    """Its words one by one, what it read, and the names of its variables."""
    text = f"{PASSWORD}\n{PASSWORD}\n"
    fakes.run(
        "inferenced",
        "keys",
        "add",
        "a b",
        "--keyring-backend",
        "file",
        text=text,
        env={"LC_ALL": "C"},
    )
    fakes.run("apt-get", "update")
    first, second = fakes.calls()
    assert first.words == ("keys", "add", "a b", "--keyring-backend", "file")
    assert first.stdin_hash == hash_of(text)
    assert "LC_ALL" in first.variables
    assert str(second) == "apt-get update"
    assert fakes.calls("apt-get") == [second]


@pytest.mark.parametrize("where", ["words", "variables"])
def test_a_secret_among_words_or_variables_fails_the_test(where: str, tmp_path: Path) -> None:
    """By itself, at its end."""

    def leaking() -> None:
        with fake_programs(tmp_path) as found:
            found.secret(PASSWORD)
            words, env = (
                (("echo", PASSWORD), {})
                if where == "words"
                else (("echo",), {"KEYRING_PASSWORD": PASSWORD})
            )
            assert found.run("docker", *words, env=env).returncode == 97

    with pytest.raises(AssertionError, match="a secret was among"):
        leaking()


def add(fakes: Fakes, text: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Make a key."""
    return fakes.run(
        "inferenced", "keys", "add", "quick-newton", "--keyring-backend", "file", *words, text=text
    )


@pytest.mark.parametrize("output", ["yaml", "json"])
@pytest.mark.parametrize("words_on", ["stdout", "stderr"])
def test_inferenced_makes_a_key_once(output: str, words_on: str, fakes: Fakes) -> None:
    """It asks twice for a new keyring's password, and about a name that is there."""
    fakes.set("output", output)
    fakes.set("words-on", words_on)
    done = add(fakes, f"{PASSWORD}\n{PASSWORD}\n")
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith(
        "Enter keyring passphrase (attempt 1/3):\nRe-enter keyring passphrase:\n"
    )
    [address] = addresses_in(done.stdout + done.stderr)
    assert re.search(r"(?:[a-z]{3,8} ){23}[a-z]{3,8}", done.stdout + done.stderr)
    show = ("inferenced", "keys", "show", "quick-newton", "-a", "--keyring-backend", "file")
    shown = fakes.run(*show, text=f"{PASSWORD}\n")
    assert read_address(shown.stdout) == address
    again = add(fakes, f"{PASSWORD}\nn\n")
    assert again.returncode == 1
    assert key_problem(again.stderr) is KeyProblem.EXISTS
    assert fakes.state("keys-added") == "quick-newton\n"
    assert fakes.state("overridden") == ""
    wrong = fakes.run(*show, text="wrong password\n" * 3)
    assert key_problem(wrong.stderr) is KeyProblem.REFUSED
    assert key_problem(fakes.run(*show, text="").stderr) is KeyProblem.NO_INPUT
    other = fakes.run(
        "inferenced",
        "keys",
        "show",
        "other",
        "-a",
        "--keyring-backend",
        "file",
        text=f"{PASSWORD}\n",
    )
    assert key_problem(other.stderr) is KeyProblem.NOT_FOUND


@pytest.mark.parametrize(
    "text", ["", "short\nshort\n", f"{PASSWORD}\n", f"{PASSWORD}\nanother one\n"]
)
def test_inferenced_makes_no_key_of_half_an_answer(text: str, fakes: Fakes) -> None:
    """No input, a password that is too short, one that is not repeated."""
    assert add(fakes, text).returncode == 1
    assert fakes.state("keys-added") == ""


@pytest.mark.parametrize(
    ("how", "code", "is_registered"), [("ok", 0, True), ("late", 1, True), ("refuse", 1, False)]
)
def test_inferenced_registers(how: str, code: int, is_registered: bool, fakes: Fakes) -> None:
    """Also where its answer is lost; the network's answer shows which it was."""
    fakes.set("register", how)
    key = "ApyZAVGwm2gP8ojw8bbvDb1+TgrkyAkZb1UcM4qCbnP4"
    done = fakes.run(
        "inferenced",
        "register-new-participant",
        "http://1.2.3.4:8000",
        key,
        "--node-address",
        "http://seed:8000",
    )
    assert done.returncode == code
    url = "http://seed:8000/v1/participants/gonka17tvsmufmewvwfy3dfxz7l20jmlhhn6eqsrsss9"
    said = fakes.run("curl", "-sS", url)
    assert (said.returncode == 0) is is_registered
    if is_registered:
        assert read_participant(200, said.stdout) == key


@pytest.mark.parametrize(
    ("profile", "state", "count"),
    [
        ("none", DriverState.MISSING, 0),
        ("mismatch", DriverState.MISMATCH, 0),
        ("not-loaded", DriverState.NOT_LOADED, 0),
        ("no-gpu", DriverState.NO_GPU, 0),
        ("lost", DriverState.LOST, 0),
        ("1", DriverState.READY, 1),
        ("8", DriverState.READY, 8),
    ],
)
def test_nvidia_smi_in_its_profiles(
    profile: str, state: DriverState, count: int, fakes: Fakes
) -> None:
    """Understood as the real one's words are."""
    fakes.set("gpu", profile)
    said = fakes.run("sh", "-c", "nvidia-smi --query-gpu=" + ",".join(GPU_FIELDS) + " 2>&1")
    facts = read_gpus(gpus(gpus=(said.stdout, said.returncode), rows=""))
    assert (facts.state, len(facts.gpus)) == (state, count)


def test_nvidia_smi_in_the_whole_script(fakes: Fakes) -> None:
    """With the kernel's log beside it."""
    fakes.set("gpu", "8")
    fakes.set("dmesg", "[1.0] NVRM: Xid (PCI:0000:1b:00): 79, GPU has fallen off the bus.")
    facts = read_gpus(text_of(fakes, gpu_facts()))
    assert len(facts.gpus) == 8
    assert [xid.code for xid in facts.xids] == [79]


def test_git_clones_and_dies(fakes: Fakes, tmp_path: Path) -> None:
    """Killed once half-way; then the whole repository, and its commit."""
    folder = tmp_path / "gonka"
    fakes.set("git", "dies")
    assert fakes.run("git", "clone", URL, str(folder)).returncode == -signal.SIGKILL

    def state(commit: str) -> CloneState:
        return clone_state(
            read_git(str(folder), text_of(fakes, git_facts(str(folder)))), URL, commit
        )

    assert state("0" * 40) is CloneState.PARTIAL
    folder.rename(tmp_path / "aside")
    assert fakes.run("git", "clone", "-q", URL, str(folder)).returncode == 0
    commit = fakes.run("git", "-C", str(folder), "rev-parse", "v0.2.12").stdout.strip()
    assert state(commit) is CloneState.READY
    fakes.set("git", "unreachable")
    assert fakes.run("git", "-C", str(folder), "fetch").returncode == 128


def hub(fakes: Fakes, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the hub's program."""
    return fakes.run(
        "hf",
        *words,
        "Qwen/Qwen3-32B-FP8",
        "--revision",
        REVISION,
        env={"HF_HOME": str(fakes.folder / "hf")},
    )


def test_hf_downloads_resumes_and_verifies(fakes: Fakes) -> None:
    """Dies after half of a shard, goes on with the other half, finds a flipped byte."""
    fakes.set("hf", "dies")
    home = str(fakes.folder / "hf")
    assert len(hub(fakes, "download", "--dry-run").stdout.splitlines()) == 4
    assert not Path(home).exists()
    assert hub(fakes, "download").returncode == -signal.SIGKILL

    def facts() -> tuple[int, list[int]]:
        found = read_model(text_of(fakes, model_facts(home, "Qwen/Qwen3-32B-FP8", REVISION)))
        return len(found.entries), list(found.incomplete.values())

    assert facts() == (2, [100000])
    assert hub(fakes, "cache", "verify", "--fail-on-missing-files").returncode == 1
    assert hub(fakes, "download").returncode == 0
    assert facts() == (4, [])
    assert "model-00002-of-00002.safetensors 100000\n" in fakes.state("loaded")
    assert hub(fakes, "cache", "verify").returncode == 0
    blob = (
        Path(home)
        / "hub"
        / "models--Qwen--Qwen3-32B-FP8"
        / "snapshots"
        / REVISION
        / "model-00001-of-00002.safetensors"
    ).resolve()
    blob.write_bytes(b"2" + blob.read_bytes()[1:])
    assert hub(fakes, "cache", "verify").returncode == 1


def test_hf_stalls_and_is_refused(fakes: Fakes) -> None:
    """Until it may go on; too many requests once; a full disk."""
    fakes.set("hf", "429")
    assert "429 Too Many Requests" in hub(fakes, "download").stderr
    fakes.set("hf", "full")
    assert "No space left" in hub(fakes, "download").stderr
    fakes.set("hf", "stalls")
    env = {"HOME": "/", **fakes.env, "HF_HOME": str(fakes.folder / "hf")}
    argv = ["hf", "download", "a/b"]
    stalled = subprocess.Popen(argv, env=env, start_new_session=True, stdout=subprocess.PIPE)
    try:
        blobs = fakes.folder / "hf" / "hub" / "models--a--b" / "blobs"
        wait_until(lambda: [p for p in blobs.glob("*.incomplete") if p.stat().st_size == 100000])
        assert stalled.poll() is None
        fakes.set("hf-go")
        assert stalled.wait(timeout=120) == 0
    finally:
        if stalled.poll() is None:
            os.killpg(stalled.pid, signal.SIGKILL)
        stalled.communicate()


def test_curl_answers(fakes: Fakes, tmp_path: Path) -> None:
    """With the body, the status, or an error; a host that is not there is not reached."""
    fakes.answer("http://x:1/status?a=b", '{"a": 1}')
    fakes.answer("http://x:1/gone", "no", status=404)
    assert fakes.run("curl", "-sS", "--max-time", "5", "http://x:1/status?a=b").stdout == '{"a": 1}'
    written = fakes.run(
        "curl", "-s", "-o", str(tmp_path / "o"), "-w", "%{http_code}", "http://x:1/gone"
    )
    assert (written.returncode, written.stdout, (tmp_path / "o").read_text()) == (0, "404", "no")
    assert fakes.run("curl", "-fsS", "http://x:1/gone").returncode == 22
    assert fakes.run("curl", "-sSI", "-w", "%{http_code}", "http://x:1/gone").stdout == "404"
    assert fakes.run("curl", "http://y/").returncode == 7


def test_apt_get_installs_or_is_locked(fakes: Fakes) -> None:
    """In its own words."""
    assert (
        fakes.run(
            "apt-get", "-y", "-o", "DPkg::Lock::Timeout=300", "install", "git", "curl"
        ).returncode
        == 0
    )
    assert fakes.state("packages") == "git\ncurl\n"
    for how, said in (
        ("locked", "held by process 4711"),
        ("broken", "dpkg --configure -a"),
        ("unreachable", "resolve"),
    ):
        fakes.set("apt", how)
        done = fakes.run("apt-get", "update")
        assert (done.returncode, said in done.stderr) == (100, True)


def test_systemctl_starts_units(fakes: Fakes) -> None:
    """Or fails to."""
    assert fakes.run("systemctl", "is-active", "pocqueue-redis").returncode == 3
    assert fakes.run("systemctl", "enable", "--now", "pocqueue-redis").returncode == 0
    assert fakes.run("systemctl", "is-active", "pocqueue-redis").stdout == "active\n"
    assert fakes.run("systemctl", "is-enabled", "pocqueue-redis").returncode == 0
    fakes.run("systemctl", "stop", "pocqueue-redis")
    assert fakes.run("systemctl", "is-active", "pocqueue-redis").stdout == "inactive\n"
    fakes.set("units", "pocqueue-io")
    assert fakes.run("systemctl", "restart", "pocqueue-io").returncode == 1


FILES = ("docker-compose.yml", "docker-compose.mlnode.yml")


def compose(
    fakes: Fakes, project: Path, *words: str, text: str = "", files: tuple[str, ...] = FILES
) -> subprocess.CompletedProcess[str]:
    """Run compose in the project's folder."""
    named = [word for file in files for word in ("-f", file)]
    return fakes.run("docker", "compose", *named, *words, text=text, cwd=project)


def test_compose_starts_what_is_asked_for(fakes: Fakes, project: Path) -> None:
    """And nothing twice; its facts are understood as the real one's."""
    assert compose(fakes, project, "up", "-d", "--no-deps", "tmkms", "node").returncode == 0
    facts = read_docker(text_of(fakes, docker_facts(str(project), FILES)))
    assert facts.services is not None
    assert [(service.name, service.is_settled) for service in facts.services] == [
        ("tmkms", True),
        ("node", True),
    ]
    assert compose(fakes, project, "up", "-d").returncode == 0
    assert fakes.state("started").split() == ["tmkms", "node", "api", "proxy", "mlnode-308"]
    facts = read_docker(text_of(fakes, docker_facts(str(project), FILES)))
    assert [service.name for service in facts.by_image("mlnode")] == ["mlnode-308"]
    assert facts.published is not None
    assert {port.port for port in open_ports(facts.published)} == {9100, 5050, 8080}
    assert compose(fakes, project, "up", "-d", "nothing").returncode == 1
    assert compose(fakes, project, "restart", "node").returncode == 0
    assert compose(fakes, project, "down").returncode == 0
    assert compose(fakes, project, "ps", "--all", "--format", "json").stdout == ""
    assert fakes.state("volumes-removed") == ""


def test_compose_closes_ports_with_a_file_of_ours(fakes: Fakes, project: Path) -> None:
    """`!override` forgets the ports of the files before."""
    (project / "ours.yml").write_text(
        'services:\n  mlnode-308:\n    ports: !override\n      - "127.0.0.1:8080:8080"\n  api:\n    ports: !override\n      - "127.0.0.1:9100:9100"\n'
    )
    facts = read_docker(text_of(fakes, docker_facts(str(project), (*FILES, "ours.yml"))))
    assert facts.published is not None
    assert open_ports(facts.published) == ()
    assert (
        json.loads(compose(fakes, project, "config", "--format", "json").stdout)["name"] == "join"
    )


@pytest.mark.parametrize(
    ("how", "shown"),
    [
        ("loop", "node: restarting"),
        ("exits", "node: exited with 137"),
        ("unhealthy", "node: running for 60 s, unhealthy"),
    ],
)
def test_compose_has_services_that_do_not_run(
    how: str, shown: str, fakes: Fakes, project: Path
) -> None:
    """Restarting for ever, ended, sick."""
    fakes.set("service-node", how)
    compose(fakes, project, "up", "-d", "node")
    facts = read_docker(text_of(fakes, docker_facts(str(project), FILES)))
    node = facts.service("node")
    assert node is not None
    assert (node.is_settled, node.shown) == (False, shown)
    fakes.set("logs-node", "panic: wrong genesis\n")
    assert (
        compose(fakes, project, "logs", "--tail", "100", "node").stdout
        == "node  | panic: wrong genesis\n"
    )


def test_compose_runs_inferenced_with_the_projects_folder(fakes: Fakes, project: Path) -> None:
    """Standard input goes through, and the keys stay beside the compose file."""
    words = (
        "run",
        "--rm",
        "--no-deps",
        "-T",
        "api",
        "inferenced",
        "keys",
        "add",
        "x",
        "--keyring-backend",
        "file",
    )
    text = f"{PASSWORD}\n{PASSWORD}\n"
    # Whatever a container prints is in docker's log, but for one without.
    assert compose(fakes, project, *words, text=text).returncode == 97
    assert fakes.calls("inferenced") == []
    (project / "no-log.yml").write_text("services:\n  api:\n    logging:\n      driver: none\n")
    done = compose(fakes, project, "-f", "no-log.yml", *words, text=text)
    assert done.returncode == 0, done.stderr
    assert (project / ".inference" / "keyring-file" / "x.info").exists()
    [call] = fakes.calls("inferenced")
    assert call.stdin_hash == hash_of(f"{PASSWORD}\n{PASSWORD}\n")
    assert compose(fakes, project, "exec", "-T", "mlnode-308", "nvidia-smi").returncode == 1
    compose(fakes, project, "up", "-d")
    assert "H100" in compose(fakes, project, "exec", "-T", "mlnode-308", "nvidia-smi").stdout


def test_a_warning_is_no_gpu(fakes: Fakes, project: Path) -> None:
    """What the driver, docker or compose says beside the list of them is not counted."""
    compose(fakes, project, "up", "-d")
    fakes.set("gpu-warns", "WARNING: infoROM is corrupted at gpu 0000:1B:00.0\n")
    look = inside_facts(str(project), "mlnode-308", FILES)
    assert read_inside(text_of(fakes, look)).gpus == ("NVIDIA H100 80GB HBM3",)
    fakes.set("gpu", "0")
    found = read_inside(text_of(fakes, look))
    assert (found.gpus, found.gpus_said[:8]) == ((), "WARNING:")


def test_compose_pulls_slowly_or_not_at_all(fakes: Fakes, project: Path) -> None:
    """Until it may go on."""
    fakes.set("pull", "fails")
    assert "no such host" in compose(fakes, project, "up", "-d", "node").stderr
    fakes.set("pull", "wait")
    fakes.set("pull-go")
    assert compose(fakes, project, "up", "-d", "node").returncode == 0
    fakes.set("engine", "stopped")
    assert compose(fakes, project, "ps").returncode == 1
    assert read_docker(text_of(fakes, docker_facts(""))).engine == ""
