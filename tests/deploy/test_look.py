"""The look at a whole server: what it tries, and what it asks others, comes into the table."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from pocqueue.deploy.facts.http import Answer
from pocqueue.deploy.facts.tried import Tried, read_tried, tried_facts
from pocqueue.deploy.look import look_at_server
from pocqueue.deploy.steps.registration import participant_url
from pocqueue.deploy.steps.repository import Repository
from pocqueue.deploy.words import script
from tests.deploy.facts.answers import answer
from tests.deploy.fake_programs import fake_programs
from tests.deploy.hub import has_listing
from tests.deploy.running_node import World
from tests.deploy.steps.on_disk import OnDisk, on_disk
from tests.deploy.steps_of_tests import with_scripts


@pytest_asyncio.fixture
async def here(tmp_path: Path) -> AsyncIterator[OnDisk]:
    """A server that reaches the hub."""
    async with on_disk(tmp_path) as here:
        has_listing(here.fakes)
        yield here


async def lines_of(here: OnDisk, world: World | None = None) -> dict[str, str]:
    """Return the table's lines by the names of the checks."""
    checks = await look_at_server(here.later().host, world or World())
    return {check.name: str(check) for check in checks}


async def test_a_container_is_tried_with_an_image_that_is_there(here: OnDisk) -> None:
    """The node's own before others; none is loaded for it; one that sees no GPU says why."""
    lines = await lines_of(here)
    assert lines["container-gpus"].startswith("WARN container-gpus: not tried: no image")
    assert "docker pull ubuntu:24.04" in lines["container-gpus"]
    assert not [call for call in here.fakes.calls("docker") if call.words[0] == "run"]
    here.fakes.set("images", "postgres aa1\nubuntu bb2\nghcr.io/product-science/mlnode cc3\n")
    lines = await lines_of(here)
    assert lines["container-gpus"].startswith("PASS container-gpus: 1 GPU ")
    [run] = [call for call in here.fakes.calls("docker") if call.words[0] == "run"]
    assert run.words[:6] == ("run", "--rm", "--pull", "never", "--network", "none")
    assert "cc3" in run.words
    here.fakes.set("gpus", "fails")
    lines = await lines_of(here)
    assert lines["container-gpus"].startswith("FAIL container-gpus: 0 GPUs (docker: Error response")


async def test_the_gpus_are_compared_with_the_image(here: OnDisk) -> None:
    """As soon as the repository names one."""
    assert (await lines_of(here))["gpu-capability"].startswith("WARN gpu-capability: 9.0, of which")
    await here.run(Repository())
    for capability, verdict in (("9.0", "PASS"), ("12.0", "FAIL"), ("7.5", "WARN")):
        here.fakes.set("gpu-capability", capability)
        line = (await lines_of(here))["gpu-capability"]
        assert line.startswith(f"{verdict} gpu-capability: {capability}")
        assert "ghcr.io/product-science/mlnode:3.0.12" in line


async def test_ports_that_containers_have_opened_are_told(here: OnDisk) -> None:
    """Where somebody has started them without our file; the run's own are closed."""
    await here.run(Repository())
    assert "open-ports" not in await lines_of(here)
    files = ("-f", "docker-compose.yml", "-f", "docker-compose.mlnode.yml")
    assert here.fakes.run("docker", "compose", *files, "up", "-d", cwd=here.join).returncode == 0
    line = (await lines_of(here))["open-ports"]
    assert line.startswith("WARN open-ports: api 9100, mlnode-308 5050, mlnode-308 8080")


async def test_a_server_without_the_runtime_is_not_tried(here: OnDisk) -> None:
    """That it is missing has a line of its own."""
    here.fakes.set("no-nvidia")
    here.fakes.set("images", "ubuntu bb2\n")
    lines = await lines_of(here)
    assert lines["container-gpus"].startswith("WARN container-gpus: not tried")
    assert lines["nvidia-runtime"].startswith("FAIL")


async def test_what_the_model_takes_is_asked(here: OnDisk) -> None:
    """Its largest file twice in memory, and all of it on the disk beside the chain; a hub that does not say is no error here."""
    lines = await lines_of(here)
    assert "twice the largest file of the model" in lines["ram"]
    for url in (Path(here.fakes.folder) / "set" / "http").iterdir():
        url.unlink()
    assert "ram" not in await lines_of(here)


async def test_the_network_is_asked_for_the_account(here: OnDisk) -> None:
    """From the server; an answer of another form is no error before there is anything to register."""
    conf = here.host.conf
    assert (await lines_of(here))["participant"].startswith("WARN participant: not reached")
    url = participant_url(conf.seed_api_url, conf.account_pubkey)
    here.fakes.answer(url, "{}", 404)
    assert (await lines_of(here))["participant"].startswith("PASS participant: not registered yet")


async def test_the_public_address_is_asked_once_something_listens(
    here: OnDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From here, as the world does; before that nothing is said of it."""
    listens = 'LISTEN 0 4096 0.0.0.0:8000 0.0.0.0:* users:((\\"docker-proxy\\",pid=7,fd=4))'
    text = script("system_facts")
    for lines, status in (("", None), (listens, 0), (listens, 200)):
        ports = text.replace("ss -H -l -n -t -p", f'printf "%s" "{lines}"'.replace("'", ""))
        with_scripts(monkeypatch, {"system_facts": ports})
        table = await lines_of(here, World(page=Answer(status or 0)))
        if status is None:
            assert "public-url" not in table
        else:
            assert table["public-url"].startswith("PASS" if status else "WARN")


def test_a_disk_is_written_to_without_a_trace(tmp_path: Path) -> None:
    """Its rate, where the disk can do without the cache; the folder is as it was."""
    before = tmp_path.stat()
    with fake_programs(tmp_path.parent / "fakes") as fakes:
        said = fakes.run(*tried_facts(str(tmp_path)).argv()).stdout
        tried = read_tried(said)
        assert tried.write_mb_s is None or tried.write_mb_s > 0
        assert list(tmp_path.iterdir()) == []
        assert tmp_path.stat().st_mtime_ns == before.st_mtime_ns
        assert read_tried(fakes.run(*tried_facts("").argv()).stdout).write_mb_s is None


def test_what_was_tried_is_read() -> None:
    """Only numbers are GPUs; a rate that is no number was not tried."""
    assert read_tried(answer(gpus="0\n1", rate="420000000")) == Tried(2, "", 420.0)
    assert read_tried(answer(gpus="", rate="")) == Tried(None, "", None)
    failed = read_tried(answer(gpus=("unknown flag\nit failed", 125), rate=("x", 1)))
    assert failed == Tried(0, "it failed", None)
