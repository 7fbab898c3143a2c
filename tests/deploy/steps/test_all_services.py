"""All services of a node: inner ports closed, all of them up, and the model served."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from pocqueue.deploy.engine import run_steps
from pocqueue.deploy.errors import StepFailed
from pocqueue.deploy.facts.docker import PublishedPort, Service
from pocqueue.deploy.facts.node import HEALTH_URL, MODELS_URL
from pocqueue.deploy.steps.all_services import (
    AllServices,
    ClosedPorts,
    ModelServed,
    closing_file,
)
from pocqueue.deploy.steps.repository import Repository
from tests.deploy.running_node import models
from tests.deploy.steps.on_disk import OnDisk, kinds, on_disk
from tests.support.waiting import until

IMAGE = "ghcr.io/product-science/mlnode:3.0.12"
CLOSED = """\
# Made by pocqueue deploy of what the other files publish: inner ports are for the server itself.
services:
  api:
    ports: !override
      - "127.0.0.1:9100:9100"
      - "127.0.0.1:9200:9200"
  mlnode-308:
    ports: !override
      - "127.0.0.1:5050:5000"
      - "127.0.0.1:8080:8080"
"""


@pytest_asyncio.fixture
async def disk(tmp_path: Path) -> AsyncIterator[OnDisk]:
    """A server that has the repository."""
    async with on_disk(tmp_path) as disk:
        await disk.run(Repository())
        yield disk


def join(disk: OnDisk) -> Path:
    """Return the folder of the compose files."""
    return disk.disk / "gonka" / "deploy" / "join"


def test_every_port_but_the_public_ones_is_closed() -> None:
    """As it is published: by whichever service, of one's own number, with its protocol; a bound one stays as it is."""
    text = closing_file(
        (
            PublishedPort("inference", 8080, "", "tcp", 80),
            PublishedPort("proxy", 8001, "", "tcp", 80),
            PublishedPort("proxy", 9999, "203.0.113.7", "udp", 99),
            PublishedPort("api", 9200, "127.0.0.1", "tcp", 9200),
        ),
        {8001},
    )
    assert text.splitlines()[2:] == [
        "  inference:",
        "    ports: !override",
        '      - "127.0.0.1:8080:80"',
        "  proxy:",
        "    ports: !override",
        '      - "8001:80"',
        '      - "127.0.0.1:9999:99/udp"',
    ]


async def test_inner_ports_are_closed_before_anything_runs(disk: OnDisk) -> None:
    """By a file of ours behind upstream's; it is made once, and what somebody changed is kept beside it."""
    file = join(disk) / "docker-compose.pocqueue.yml"
    assert "[OK]" in kinds(await disk.run(ClosedPorts()))
    assert file.read_text() == CLOSED
    assert kinds(await disk.later().run(ClosedPorts())) <= {"[INFO]", "[CHECK]", "[SKIP]"}
    file.write_text("services: {}\n")
    await disk.run(ClosedPorts())
    assert file.read_text() == CLOSED
    [kept] = file.parent.glob("docker-compose.pocqueue.yml.pocqueue-*")
    assert kept.read_text() == "services: {}\n"


async def test_all_services_come_up(disk: OnDisk) -> None:
    """Images first, as a job; then a try of the GPUs in a container; then all of the three files; the second run finds them. Taking them down leaves volumes."""
    await disk.run(ClosedPorts())
    lines = await disk.run(AllServices())
    files = "-f docker-compose.yml -f docker-compose.mlnode.yml -f docker-compose.pocqueue.yml"
    assert [line for line in lines if line.startswith("[EXEC]")] == [
        f"[EXEC] Remote: sudo -n compose.sh {join(disk)} {files} pull --policy missing",
        f"[EXEC] Remote: sudo -n try_gpus.sh {IMAGE} 1",
        f"[EXEC] Remote: sudo -n compose.sh {join(disk)} {files} up -d",
    ]
    assert lines[-1] == "[OK] all services: tmkms, node, api, proxy, mlnode-308 run"
    assert kinds(await disk.later().run(AllServices())) <= {"[INFO]", "[CHECK]", "[SKIP]"}
    published = [port for service in await services(disk) for port in service.ports]
    assert {port.port for port in published if port.is_open} == {5000, 8000}
    undo = disk.host.journal.undos[-1]
    assert (await disk.host.connection.run(undo.command())).exit_code == 0
    assert not await services(disk.later())
    assert not disk.fakes.state("volumes-removed")


async def services(disk: OnDisk) -> tuple[Service, ...]:
    """Return the services that there are."""
    return (await AllServices().look(disk.host)).docker.services or ()


async def test_a_service_that_does_not_settle_stops_the_run(disk: OnDisk) -> None:
    """Its name and how it does are said; nothing is called up that is not."""
    await disk.run(ClosedPorts())
    disk.fakes.set("service-api", "loop")
    disk.fakes.set("logs-api", "bind: address already in use")
    with pytest.raises(StepFailed, match="api: restarting; another program has its port"):
        await disk.run(AllServices(settle_s=0.01, every_s=0.01))
    assert "[OK] all services" not in disk.console.getvalue()
    disk.fakes.unset("service-api")
    disk.fakes.set("service-mlnode-308", "unhealthy")
    with pytest.raises(StepFailed, match=r"mlnode-308: .*unhealthy"):
        await disk.run(AllServices(settle_s=0.01, every_s=0.01))


async def test_images_that_cannot_be_loaded_start_nothing(disk: OnDisk) -> None:
    """The registry's words are the last lines."""
    await disk.run(ClosedPorts())
    disk.fakes.set("pull", "fails")
    with pytest.raises(StepFailed) as raised:
        await disk.run(AllServices())
    assert "no such host" in "\n".join(raised.value.tail)
    assert not disk.fakes.state("started")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("gpus", "fails", "could not select device driver"),
        ("gpu", "no-gpu", "No devices"),
    ],
)
async def test_gpus_are_tried_as_soon_as_an_image_is_there(
    name: str, value: str, said: str, disk: OnDisk
) -> None:
    """Before anything is started that needs them; why a container gets none is said."""
    await disk.run(ClosedPorts())
    disk.fakes.set(name, value)
    with pytest.raises(StepFailed) as raised:
        await disk.run(AllServices())
    assert said in "\n".join(raised.value.tail)
    assert not disk.fakes.state("started")
    disk.fakes.unset(name)
    assert (await disk.later().run(AllServices()))[-1].startswith("[OK] all services")


async def test_a_container_that_sees_too_few_gpus_is_told(tmp_path: Path) -> None:
    """Not when the model does not load."""
    async with on_disk(tmp_path, NODE_CONFIG_PROFILE="x8") as disk:
        await disk.run(Repository(), ClosedPorts())
        with pytest.raises(StepFailed) as raised:
            await disk.run(AllServices())
        assert "sees 1 of the 8 GPUs" in "\n".join(raised.value.tail)


async def test_an_image_for_other_gpus_is_not_loaded(disk: OnDisk) -> None:
    """It has tens of gigabytes; an operator who knows better is believed."""
    await disk.run(ClosedPorts())
    disk.fakes.set("gpu-capability", "12.0")
    with pytest.raises(
        StepFailed, match=f"{IMAGE} is not built for GPUs of compute capability 12.0"
    ):
        await disk.run(AllServices())
    assert not [call for call in disk.fakes.calls("docker") if "pull" in call.words]
    knows = replace(disk.host, ignored=("gpu-capability",))
    await run_steps(knows, [AllServices()], now=lambda: "2026-01-02 03:04:05")
    assert "[OK] all services" in disk.console.getvalue()


async def test_the_mlnode_is_found_by_its_image(disk: OnDisk) -> None:
    """Whatever its service is called."""
    file = join(disk) / "docker-compose.mlnode.yml"
    file.write_text(file.read_text().replace("mlnode-308:", "gpus:"))
    disk.fakes.answer(HEALTH_URL, "ok")
    disk.fakes.answer(MODELS_URL, models("Qwen/Qwen3-32B-FP8"))
    await disk.run(ClosedPorts(), AllServices())
    assert "  gpus:\n" in (join(disk) / "docker-compose.pocqueue.yml").read_text()
    assert (await disk.run(ModelServed()))[-1].startswith(
        "[SKIP] model loaded: health HTTP 200; Qwen/"
    )
    file.write_text(file.read_text().replace("/mlnode:", "/vllm:"))
    with pytest.raises(StepFailed, match="until all services are up"):
        await disk.run(ModelServed())


async def test_a_model_that_loads_is_waited_for(disk: OnDisk) -> None:
    """Until it is served; a health that says ERROR is not well, whatever its status is."""
    disk.fakes.answer(HEALTH_URL, "ok")
    disk.fakes.answer(MODELS_URL, models(), 503)
    await disk.run(ClosedPorts(), AllServices())
    running = asyncio.create_task(disk.run(ModelServed(load_s=60, every_s=0.02)))
    await until(lambda: "waiting up to 60 s" in disk.console.getvalue())
    disk.fakes.answer(MODELS_URL, models("Qwen/Qwen3-32B-FP8"))
    assert (await running)[-1] == "[OK] model loaded: health HTTP 200; Qwen/Qwen3-32B-FP8"
    disk.fakes.answer(HEALTH_URL, "2026-11-29 ERROR CUDA error")
    with pytest.raises(StepFailed, match="HTTP 200, '2026-11-29 ERROR CUDA error'"):
        await disk.run(ModelServed(load_s=0.01, every_s=0.01))


@pytest.mark.parametrize(("profile", "seconds"), [("x1", 180), ("x8", 900)])
async def test_how_long_is_waited_depends_on_the_profile(
    profile: str, seconds: int, tmp_path: Path
) -> None:
    """A large model needs longer."""
    async with on_disk(tmp_path, NODE_CONFIG_PROFILE=profile) as disk:
        disk.fakes.set("gpu", "8")
        await disk.run(Repository(), ClosedPorts(), AllServices())
        assert (await disk.plan(ModelServed())).wait_s == seconds
