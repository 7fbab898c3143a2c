"""The table of checks before anything is changed: a good server passes all, and each trouble has its own line."""

from __future__ import annotations

import base64
import dataclasses
import re
from pathlib import Path

import pytest

from pocqueue.deploy.facts.docker import DockerFacts, PublishedPort, Service
from pocqueue.deploy.facts.gpu import DriverState, GpuDevice, GpuFacts, GpuProcess, Xid
from pocqueue.deploy.facts.http import Answer
from pocqueue.deploy.facts.packages import Remedy
from pocqueue.deploy.facts.system import Listener, SystemFacts
from pocqueue.deploy.ports import PORTS
from pocqueue.deploy.preflight import Seen, Verdict, Wanted, failures, preflight

URLS = ("https://huggingface.co/api", "http://node2.gonka.ai:8000")
GPU = GpuDevice(0, "GPU-0", "NVIDIA H100 80GB HBM3", 81559, 81079, "9.0", 0, True, 16, 16)
GPUS = GpuFacts(
    DriverState.READY,
    gpus=(GPU,),
    driver="550.54.15",
    module="550.54.15",
    packages=(("nvidia-driver-550-server", "550.54.15-0ubuntu1"),),
    is_secure_boot=False,
)
SYSTEM = SystemFacts(
    is_root=True,
    distribution="ubuntu",
    release="22.04",
    kernel="Linux 6.8.0-1 x86_64",
    clock_s=1_000,
    memory_bytes=10**12,
    free_memory_bytes=9 * 10**11,
    free_bytes=18 * 10**11,
    free_inodes=10**8,
    listeners=(Listener("0.0.0.0", 22, "sshd", 1),),  # noqa: S104
    apt_pid=None,
    is_apt_broken=False,
    needs_reboot=False,
    is_clock_synced=True,
    tools=frozenset({"sudo", "git", "curl", "python3", "docker", "flock", "findmnt", "ss"}),
    reached=((URLS[0], 200), (URLS[1], 404)),
)
DOCKER = DockerFacts("27.3.1", "2.29.7", True)
KEY, OTHER_KEY = (
    base64.b64encode(bytes([2, *range(first, 32 + first)])).decode() for first in (0, 1)
)
GOOD = Seen(
    SYSTEM, GPUS, DOCKER, now_s=1_001.0, container_gpus=1, write_mb_s=900.0, public_status=200
)
WANTED = Wanted(
    public_key=KEY,
    image="ghcr.io/product-science/mlnode:3.0.12",
    model_bytes=64 * 10**9,
    largest_file_bytes=5 * 10**9,
    urls=URLS,
)


def test_a_good_server_passes_everything() -> None:
    """With no remedy, and nothing that stops a run."""
    checks = preflight(GOOD, WANTED)
    assert [str(check) for check in checks if check.verdict is not Verdict.PASS] == []
    assert not any(check.remedy for check in checks)
    assert len({check.name for check in checks}) == len(checks)
    assert all(re.fullmatch(r"[a-z0-9.:-]+", check.name) for check in checks)


def system(**changes: object) -> Seen:
    """Return a good server but for its system."""
    return dataclasses.replace(GOOD, system=dataclasses.replace(SYSTEM, **changes))  # type: ignore[arg-type]


def gpus(**changes: object) -> Seen:
    """Return a good server but for its driver."""
    return dataclasses.replace(GOOD, gpus=dataclasses.replace(GPUS, **changes))  # type: ignore[arg-type]


def gpu(**changes: object) -> Seen:
    """Return a good server but for its GPU."""
    return gpus(gpus=(dataclasses.replace(GPU, **changes),))  # type: ignore[arg-type]


def docker(**changes: object) -> Seen:
    """Return a good server but for its containers."""
    return dataclasses.replace(GOOD, docker=dataclasses.replace(DOCKER, **changes))  # type: ignore[arg-type]


def port(number: int, program: str, address: str = "127.0.0.1") -> Seen:
    """Return a good server on which a program listens."""
    return system(listeners=(Listener(address, number, program, 4242),))


def participant(status: int, text: str) -> Seen:
    """Return a good server to which the network says this of the account."""
    return dataclasses.replace(GOOD, participant=Answer(status, text))


def running(*ports: PublishedPort) -> Service:
    """Return a service that runs and opens these ports."""
    return Service("mlnode", "mlnode:3", "running", "", 0, 60, ports)


#: What is wrong, and the one line that says so.
TROUBLE: dict[str, tuple[Seen, str]] = {
    "no driver": (
        gpus(state=DriverState.MISSING, gpus=(), driver="", module="", packages=()),
        "FAIL driver:",
    ),
    "a mismatch": (
        gpus(
            state=DriverState.MISMATCH, said="Driver/library version mismatch", gpus=(), driver=""
        ),
        "FAIL driver: Driver/library",
    ),
    "another module": (
        gpus(module="535.1", packages=()),
        "FAIL driver-version: 550.54.15, module 535.1",
    ),
    "another package": (
        gpus(packages=(("nvidia-driver-560", "560.1-0ubuntu1"),)),
        "WARN driver-package:",
    ),
    "an old driver": (
        gpus(driver="470.1", module="470.1", packages=()),
        "FAIL driver-cuda: 470.1 (wanted: 525.60.13",
    ),
    "upgrades": (gpus(is_upgraded_alone=True), "WARN driver-upgrades:"),
    "no GPU": (
        gpus(state=DriverState.NO_GPU, gpus=(), driver="", said="No devices were found"),
        "FAIL driver: No devices",
    ),
    "another capability": (
        gpu(compute_capability="10.0"),
        "FAIL gpu-capability: 10.0 (wanted: those that ghcr.io/product-science/mlnode:3.0.12 is built for). Set GONKA_REF",
    ),
    "a capability that nobody knows": (
        gpu(compute_capability="7.5"),
        "WARN gpu-capability: 7.5, of which is not known",
    ),
    "split": (gpu(is_mig=True), "FAIL gpu-mig:"),
    "a stranger's process": (
        gpus(processes=(GpuProcess("GPU-0", 77, 70000, "/usr/bin/miner"),)),
        "WARN gpu-processes: miner (77)",
    ),
    "little memory": (gpu(free_mib=10_000), "WARN gpu-memory: GPU 0: 10,000 of 81,559 MiB"),
    "errors": (gpu(uncorrected_ecc=3), "FAIL gpu-ecc: GPU 0: 3 errors"),
    "rows": (gpu(rows_failed=True), "FAIL gpu-ecc: GPU 0: 0 errors, rows failed"),
    "rows that wait": (gpu(rows_pending=True), "WARN gpu-rows: GPU 0"),
    "a lost GPU": (gpus(xids=(Xid("0000:1b:00", 79, ""),)), "FAIL gpu-xid: 79 at 0000:1b:00"),
    "a program's error": (gpus(xids=(Xid("0000:1b:00", 13, ""),)), "WARN gpu-xid: 13"),
    "not persistent": (gpu(is_persistent=False), "WARN gpu-persistence: off for GPU 0"),
    "a narrow slot": (gpu(pcie_width=4), "WARN gpu-pcie: GPU 0: x4 of x16"),
    "no Fabric Manager": (gpus(switches=4), "FAIL fabric-manager: none, not active"),
    "another Fabric Manager": (
        gpus(switches=4, fabric_manager="535.1", is_fabric_active=True),
        "FAIL fabric-manager: 535.1, active",
    ),
    "no docker": (docker(engine=""), "FAIL docker: none"),
    "an old compose": (docker(compose="2.24.3"), "FAIL compose: 2.24.3 (wanted: 2.24.4 or newer)"),
    "no compose": (docker(compose=""), "FAIL compose: none"),
    "no toolkit": (docker(has_nvidia=False), "FAIL nvidia-runtime: none"),
    "no GPU in containers": (
        dataclasses.replace(GOOD, container_gpus=0),
        "FAIL container-gpus: 0 GPUs",
    ),
    "not tried": (dataclasses.replace(GOOD, container_gpus=None), "WARN container-gpus: not tried"),
    "an open port": (
        docker(services=(running(PublishedPort("mlnode", 8080, "")),)),
        "WARN open-ports: mlnode 8080 (wanted: 5000, 8000, 8443 alone)",
    ),
    "a taken port": (port(8080, "apache2"), "FAIL port-8080: apache2 (4242)"),
    "a taken port of nobody known": (
        system(listeners=(Listener("*", 9200, "", 0),)),
        "FAIL port-9200: a program that is not known (?)",
    ),
    "an open administration": (
        port(9200, "docker-proxy", "0.0.0.0"),  # noqa: S104
        "WARN port-9200: docker-proxy at 0.0.0.0",
    ),
    "no ss": (system(listeners=None), "WARN ports: ss is not there"),
    "a small disk": (system(free_bytes=313 * 10**9), "FAIL disk: 313 GB free (wanted: 314 GB)"),
    "few inodes": (system(free_inodes=1000), "WARN inodes: 1,000 free"),
    "a slow disk": (dataclasses.replace(GOOD, write_mb_s=50.0), "WARN disk-rate: 50 MB/s"),
    "little RAM": (
        system(memory_bytes=8 * 10**9, free_memory_bytes=7 * 10**9),
        "FAIL ram: 8 GB (wanted: 10 GB",
    ),
    "full RAM": (system(free_memory_bytes=10**10), "WARN ram-free: 99% used"),
    "no hub": (
        system(reached=((URLS[0], 0), (URLS[1], 200))),
        "FAIL reach-huggingface.co: not reached",
    ),
    "a sick seed": (
        system(reached=((URLS[0], 200), (URLS[1], 503))),
        "FAIL reach-node2.gonka.ai:8000: HTTP 503",
    ),
    "a hub not tried": (system(reached=((URLS[1], 200),)), "WARN reach-huggingface.co: not tried"),
    "another's account": (
        participant(200, f'{{"pubkey": "{OTHER_KEY}"}}'),
        f"FAIL participant: {OTHER_KEY} (wanted: an answer about the account",
    ),
    "a seed that does not answer": (participant(0, ""), "WARN participant: not reached"),
    "an answer that nobody knows": (participant(200, "<html>"), "WARN participant: HTTP 200"),
    "closed to the world": (
        dataclasses.replace(GOOD, public_status=0),
        "WARN public-url: not reached",
    ),
    "a clock off by a day": (system(clock_s=1_000 + 86_400), "FAIL clock: +86399 s"),
    "a clock that is late": (system(clock_s=990), "FAIL clock: -11 s"),
    "a clock nobody sets": (system(is_clock_synced=False), "WARN clock-sync: off"),
    "an unknown system": (system(distribution="arch", release=""), "WARN distribution: arch"),
    "another processor": (system(kernel="Linux 6.8 aarch64"), "FAIL machine: aarch64"),
    "no root": (system(is_root=False), "FAIL root: an ordinary user"),
    "apt locked": (system(apt_pid=4711), "WARN apt-lock: held by 4711"),
    "dpkg broken": (system(is_apt_broken=True), "FAIL packages: interrupted"),
    "a reboot pending": (system(needs_reboot=True), "WARN reboot: pending"),
    "no git": (system(tools=SYSTEM.tools - {"git"}), "FAIL tools: without git"),
}


@pytest.mark.parametrize("case", TROUBLE)
def test_each_trouble_has_its_line(case: str) -> None:
    """One, with a remedy; a FAIL stops a run unless its name is ignored."""
    seen, line = TROUBLE[case]
    bad = [check for check in preflight(seen, WANTED) if check.verdict is not Verdict.PASS]
    assert [str(check) for check in bad if str(check).startswith(line)], [*map(str, bad)]
    assert len(bad) == 1, [*map(str, bad)]
    assert all(check.remedy for check in bad)
    stopping = failures(bad)
    assert bool(stopping) is line.startswith("FAIL")
    assert failures(bad, [check.name for check in stopping]) == ()


def test_fewer_gpus_than_the_profile_has() -> None:
    """Counted on the server and in a container."""
    seen = dataclasses.replace(GOOD, container_gpus=8)
    checks = {
        check.name: check for check in preflight(seen, dataclasses.replace(WANTED, num_gpus=8))
    }
    assert str(checks["gpu-count"]).startswith(
        "FAIL gpu-count: 1 (NVIDIA H100 80GB HBM3) (wanted: 8 of the profile)"
    )


@pytest.mark.parametrize(
    ("status", "text", "shown"),
    [(404, "", "not registered yet"), (200, f'{{"pubkey": "{KEY}"}}', KEY)],
)
def test_what_the_network_knows_of_the_account(status: int, text: str, shown: str) -> None:
    """Nothing yet, or the conf's key."""
    checks = {each.name: each for each in preflight(participant(status, text), WANTED)}
    assert checks["participant"].line.startswith(f"PASS participant: {shown} (")


def test_an_image_that_is_not_named_yet_is_told() -> None:
    """Before the repository is there, whatever the GPUs are."""
    checks = {
        each.name: str(each) for each in preflight(GOOD, dataclasses.replace(WANTED, image=""))
    }
    assert checks["gpu-capability"].startswith("WARN gpu-capability: 9.0, of which is not known")
    assert "the repository of phase 2 names" in checks["gpu-capability"]


def test_a_port_of_ones_own_may_be_open() -> None:
    """API_PORT."""
    seen = docker(services=(running(PublishedPort("proxy", 8001, "")),))
    wanted = dataclasses.replace(WANTED, public_ports=WANTED.public_ports | {8001})
    assert not [each for each in preflight(seen, wanted) if each.verdict is not Verdict.PASS]


def test_a_machine_without_gpus_needs_no_driver() -> None:
    """Such as one that only schedules."""
    seen = gpus(state=DriverState.MISSING, gpus=(), driver="", module="", packages=())
    checks = preflight(seen, Wanted(num_gpus=0, roles=frozenset({"redis"})))
    assert not failures(checks)
    assert {check.name for check in checks} >= {"port-6379"}
    assert "port-5000" not in {check.name for check in checks}


def test_ports_of_ours_are_free_for_us() -> None:
    """A rerun finds its own services: by the program, or by the process."""
    seen = port(8000, "docker-proxy", "0.0.0.0")  # noqa: S104
    assert not failures(preflight(seen, WANTED))
    ours = dataclasses.replace(port(8080, "nginx"), our_pids=frozenset({4242}))
    assert not failures(preflight(ours, WANTED))


def test_no_port_is_given_twice() -> None:
    """On one machine everything runs side by side."""
    assert len({use.port for use in PORTS}) == len(PORTS)


def test_preflight_reads_nothing() -> None:
    """It imports no connection, no clock and no files."""
    folder = Path(preflight.__code__.co_filename).parent
    for file in folder.glob("*.py"):
        imports = set(re.findall(r"^(?:from|import) (\S+)", file.read_text(), re.MULTILINE))
        assert not imports & {
            "asyncssh",
            "time",
            "os",
            "pathlib",
            "subprocess",
            "pocqueue.deploy.connection",
        }, file


BARE = dataclasses.replace(
    docker(engine="", compose="", has_nvidia=False),
    lacks=("docker",),
    todo=Remedy(packages=("docker.io",), runtime=True),
)


def test_what_is_missing_comes_with_the_commands() -> None:
    """They stop a run before anything is changed."""
    table = {check.name: check for check in preflight(BARE, WANTED)}
    assert table["software"].verdict is Verdict.FAIL
    assert (
        "apt-get install --no-install-recommends docker.io; nvidia-ctk" in table["software"].remedy
    )
    assert {"docker", "compose", "nvidia-runtime"} <= {
        check.name for check in failures(table.values())
    }


@pytest.mark.parametrize("by_hand", [(), ("curl …",)])
def test_what_a_run_installs_does_not_stop_it(by_hand: tuple[str, ...]) -> None:
    """But what a person has to do before."""
    assert BARE.todo is not None
    seen = dataclasses.replace(BARE, todo=dataclasses.replace(BARE.todo, by_hand=by_hand))
    found = failures(preflight(seen, dataclasses.replace(WANTED, installs=True)))
    assert [check.name for check in found] == (["software"] if by_hand else [])
