"""pocqueue as a compose project: its file, and its updates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pocqueue.deploy.errors import BadUsage
from pocqueue.deploy.stack.compose import compose_project
from pocqueue.deploy.stack.units import units_of
from pocqueue.deploy.stack.variables import variables
from tests.deploy.confs import conf
from tests.deploy.stack.on_server import URL, on_server

IMAGE = f"registry.example:5000/pocqueue@sha256:{'ab' * 32}"
OTHER = f"registry.example:5000/pocqueue@sha256:{'cd' * 32}"


def project(folder: Path, **changes: str | None) -> dict[str, dict[str, object]]:
    """Return the services of a server."""
    fields = {"POCQUEUE_RUN": "compose", "POCQUEUE_IMAGE": IMAGE, "POCQUEUE_GPUS": "0,3"}
    fields["POCQUEUE_ROLE"] = "redis,scheduler,worker,io,delegation,hosts"
    node = conf(folder, **fields | changes)
    values = variables(node, "/var/lib/pocqueue")
    text = compose_project(node, units_of(node), values, "/etc/pocqueue/pocqueue.env")
    found = json.loads(text)
    assert found["name"] == "pocqueue"
    services: dict[str, dict[str, object]] = found["services"]
    return services


def test_its_services_are_hardened_and_open_nothing(tmp_path: Path) -> None:
    """A GPU each; ports on loopback; no variable but those that a container needs is in the file."""
    services = project(tmp_path, POCQUEUE_MODEL="/mnt/ssd/model")
    assert list(services)[-2:] == ["worker-gpu0", "worker-gpu3"]
    for name, service in services.items():
        assert service["image"] == IMAGE
        assert service["cap_drop"] == ["ALL"]
        assert service["env_file"] == ["/etc/pocqueue/pocqueue.env"]
        for port in service.get("ports", []):  # type: ignore[attr-defined]
            assert port.startswith("127.0.0.1:"), name
    worker = json.dumps(services["worker-gpu3"])
    assert '"device_ids": ["3"]' in worker
    assert "/mnt/ssd/model:/mnt/ssd/model:ro" in worker
    assert services["redis"]["environment"] == {"POCQUEUE_REDIS_URL": ""}


def test_what_compose_does_not_run_is_refused(tmp_path: Path) -> None:
    """No image, an agent."""
    with pytest.raises(BadUsage, match="POCQUEUE_IMAGE is missing"):
        project(tmp_path, POCQUEUE_IMAGE=None)
    with pytest.raises(BadUsage, match="sandboxes"):
        project(tmp_path, POCQUEUE_ROLE="agent")


async def test_an_update_is_one_worker_at_a_time(tmp_path: Path) -> None:
    """It is put there once; another image reaches one after the other, and stops where one does not come back."""
    async with on_server(tmp_path) as here:
        here.fakes.secret(URL)
        fields = {"POCQUEUE_RUN": "compose", "POCQUEUE_IMAGE": IMAGE}
        here.fakes.set("pull", "fails")
        code, lines = await here.run(here.conf(**fields))
        assert (code, here.fakes.state("ups")) == (1, "")
        here.fakes.unset("pull")
        code, lines = await here.run(here.conf(**fields))
        assert code == 0, lines[-20:]
        ups = ["io", "worker-gpu0", "worker-gpu1"]
        assert here.fakes.state("ups").split() == ups
        code, lines = await here.run(here.conf(**fields))
        assert (code, [line for line in lines if "[EXEC]" in line]) == (0, [])
        second = here.pid("worker-gpu1.service")
        here.fakes.set("deaf")
        code, lines = await here.run(here.conf(**fields | {"POCQUEUE_IMAGE": OTHER}), live_s=1)
        assert code == 1
        assert "[OUTPUT] quick-newton.gpu0 is not in the pool after 1 s" in lines
        assert here.fakes.state("ups").split() == [*ups, *ups[:2]]
        assert here.pid("worker-gpu1.service") == second


@pytest.mark.long
async def test_the_way_back_is_the_image_before(tmp_path: Path) -> None:
    """As often as it is asked for, one worker after the other; the conf's own image is named, which is the other one still."""
    async with on_server(tmp_path) as here:
        fields = {"POCQUEUE_RUN": "compose", "POCQUEUE_ROLE": "io,worker", "POCQUEUE_GPUS": "0"}
        first, second = (here.conf(**fields, POCQUEUE_IMAGE=image) for image in (IMAGE, OTHER))
        code, lines = await here.run(first)
        assert code == 0, lines[-20:]
        code, lines = await here.run(first, goes_back=True)
        assert (code, "no image before" in "\n".join(lines)) == (2, True)
        assert (await here.run(second))[0] == 0
        for _ in range(2):
            code, lines = await here.run(second, goes_back=True)
            assert code == 0, lines[-20:]
            services = json.loads((here.opt / "docker-compose.json").read_text())["services"]
            assert {service["image"] for service in services.values()} == {IMAGE}
            assert f"write {IMAGE} there" in lines[-1]
        assert here.fakes.state("ups").split() == ["io", "worker-gpu0"] * 3
        code, lines = await here.run(first)
        assert (code, [line for line in lines if "[EXEC]" in line]) == (0, [])
