"""pocqueue as a compose project of its own, where systemd is not to run it. JSON is YAML, and compose reads it as such."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pocqueue.deploy.conf import Conf
from pocqueue.deploy.errors import BadUsage
from pocqueue.deploy.stack.units import Unit
from pocqueue.deploy.words import Secret

FILE = "docker-compose.json"
#: Inside, and the volume of all services.
STATE = "/var/lib/pocqueue"
#: Variables by which a service listens, and its ports: inside it is every address, outside the one that the variable names.
_LISTENS = {
    "scheduler": ("POCQUEUE_METRICS_ADDRESS", (9101,)),
    "delegation": ("DELEGATION_HOST", (9090,)),
    "hosts": ("POCQUEUE_HOSTS_HOST", (3001, 3002)),
}
_HARDENED: dict[str, Any] = {
    "init": True,
    "restart": "unless-stopped",
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges:true"],
    "tmpfs": ["/tmp"],  # noqa: S108 - of the container, in memory
    "logging": {"driver": "json-file", "options": {"max-size": "10m", "max-file": "5"}},
    # A worker commits the batch at hand and hands the rest back.
    "stop_grace_period": "40s",
}


def compose_project(
    conf: Conf, units: tuple[Unit, ...], values: Mapping[str, str | Secret], env_file: str
) -> str:
    """Return the project's file.

    Args:
        conf: of the server.
        units: services that it has.
        values: the variables, which are in a file of their own.
        env_file: that file.

    Raises:
        BadUsage: there is no image, or an agent is among the roles.
    """
    if conf.pocqueue_image is None:
        raise BadUsage(
            "POCQUEUE_IMAGE is missing: POCQUEUE_RUN=compose runs an image by its digest."
        )
    if "agent" in conf.pocqueue_role:
        raise BadUsage("An agent makes sandboxes of its own: POCQUEUE_RUN=systemd runs it.")
    services = {unit.name: _service(conf, unit, values, env_file) for unit in units}
    project = {"name": "pocqueue", "services": services, "volumes": {"state": {}}}
    return json.dumps(project, indent=2) + "\n"


def _service(
    conf: Conf, unit: Unit, values: Mapping[str, str | Secret], env_file: str
) -> dict[str, Any]:
    volumes = [f"state:{STATE}"]
    service: dict[str, Any] = _HARDENED | {
        "image": conf.pocqueue_image,
        "env_file": [env_file],
        "command": _command(conf, unit),
        # The NVIDIA runtime writes links into a container's root.
        "read_only": unit.gpu is None,
        "volumes": volumes,
    }
    if unit.role in _LISTENS:
        variable, ports = _LISTENS[unit.role]
        address = values[variable]
        service["environment"] = {variable: "0.0.0.0"}  # noqa: S104 - of the container
        service["ports"] = [f"{address}:{port}:{port}" for port in ports]
    if unit.role == "redis":
        # To others it is a server at a URL; this process is what runs it.
        service["environment"] = {"POCQUEUE_REDIS_URL": ""}
    if unit.gpu is not None:
        if conf.pocqueue_model.startswith("/"):
            volumes.append(f"{conf.pocqueue_model}:{conf.pocqueue_model}:ro")
        if values.get("POCQUEUE_DEVICE") != "cpu":
            # The one that it is given is always the first inside.
            service["environment"] = {"POCQUEUE_DEVICE": "cuda:0"}
            device = {"driver": "nvidia", "device_ids": [str(unit.gpu)], "capabilities": ["gpu"]}
            service["deploy"] = {"resources": {"reservations": {"devices": [device]}}}
    return service


def _command(conf: Conf, unit: Unit) -> list[str]:
    worker = ["celery", "-A", "pocqueue", "worker", "-Q"]
    commands = {
        "redis": ["pocqueue", "redis", "run"],
        "scheduler": ["pocqueue", "scheduler"],
        "delegation": ["pocqueue", "delegation", "serve"],
        "io": [*worker, "io", "-c", "16"],
        "hosts": [*worker, f"relay.{conf.key_name},hosts"],
        "worker": [*worker, unit.queue],
    }
    return commands[unit.role]
