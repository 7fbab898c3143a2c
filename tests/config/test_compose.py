"""compose.yaml follows the Compose specification and keeps what it promises about safety.

There is no Docker engine in CI, so the file is checked as data, and the one shell script in it is run.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.support.env_example import ROOT, read_env_example

SCHEMA = ROOT / "tests" / "data" / "compose-spec.json"
TEXT = (ROOT / "compose.yaml").read_text()
#: Services whose images are not ours.
FOREIGN = {"redis", "prometheus", "grafana"}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """The file with its anchors and merges resolved."""
    loaded = yaml.safe_load(TEXT)
    assert isinstance(loaded, dict)
    return loaded


@pytest.fixture(scope="module")
def services(compose: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Its services by name."""
    return dict(compose["services"])


def interpolations() -> list[tuple[str, str]]:
    """Return each `${NAME…}` outside comments as (name, rest); `$$` is a literal dollar."""
    lines = (line for line in TEXT.splitlines() if not line.lstrip().startswith("#"))
    return re.findall(r"(?<!\$)\$\{(\w+)([^}]*)\}", "\n".join(lines))


def test_is_valid_by_the_specification(compose: dict[str, Any]) -> None:
    """The schema of the Compose specification accepts the file, and it has no obsolete version key."""
    schema = json.loads(SCHEMA.read_text())
    validator = jsonschema.Draft202012Validator(schema)
    assert [f"{e.json_path}: {e.message}" for e in validator.iter_errors(compose)] == []
    assert "version" not in compose


def test_the_schema_would_notice(compose: dict[str, Any]) -> None:
    """The check above is able to fail: a misspelt key is refused."""
    schema = json.loads(SCHEMA.read_text())
    broken = {**compose, "services": {"redis": {"imagee": "redis"}}}
    assert not jsonschema.Draft202012Validator(schema).is_valid(broken)


def test_the_schema_is_the_one_described() -> None:
    """The README beside the schema states its checksum, so a changed copy is seen."""
    readme = SCHEMA.with_name("compose-spec.README.md").read_text()
    assert hashlib.sha256(SCHEMA.read_bytes()).hexdigest() in readme


def test_services_and_profiles(services: dict[str, dict[str, Any]]) -> None:
    """Without a profile all that rounds need but workers starts; the profiles add theirs."""
    profiles = {name: service.get("profiles") for name, service in services.items()}
    assert {name for name, value in profiles.items() if value is None} == {
        "redis",
        "scheduler",
        "io",
        "flower",
    }
    by_profile: dict[str, set[str]] = {}
    for name, value in profiles.items():
        by_profile.setdefault((value or [""])[0], set()).add(name)
    assert by_profile["cpu"] == {"worker-cpu"}
    assert by_profile["delegation"] == {"delegation"}
    assert by_profile["node"] == {"node"}
    assert by_profile["hosts"] == {"hosts"}
    assert by_profile["pouw"] == {"pouw"}
    assert by_profile["watch"] == {"prometheus", "grafana"}
    gpu = {name for name, value in profiles.items() if value == ["gpu"]}
    assert "worker-gpu0" in gpu
    assert all(re.fullmatch(r"worker-gpu\d+", name) for name in gpu)


def test_commands_are_the_documented_ones(services: dict[str, dict[str, Any]]) -> None:
    """Containers run the very lines an operator would type."""
    commands = {n: " ".join(s["command"]) for n, s in services.items() if n not in FOREIGN}
    assert commands == {
        "scheduler": "pocqueue scheduler",
        "io": "celery -A pocqueue worker -Q io",
        "flower": "celery -A pocqueue flower --conf=config/flowerconfig.py",
        "worker-cpu": "celery -A pocqueue worker -Q gpu0",
        "worker-gpu0": "celery -A pocqueue worker -Q gpu0",
        "delegation": "pocqueue delegation serve",
        "node": "pocqueue node serve",
        "pouw": "pocqueue pouw node --role supervisor --host 0.0.0.0",
        "hosts": "celery -A pocqueue worker -Q relay.${POCQUEUE_HOSTS_RELAY_NAME:-docker},hosts",
    }


def test_gpu_worker_sees_the_gpu_of_its_queue(services: dict[str, dict[str, Any]]) -> None:
    """Queue gpuN gets the host's device N alone, which inside the container is CUDA device 0."""
    for name, service in services.items():
        if service.get("profiles") != ["gpu"]:
            continue
        number = name.removeprefix("worker-gpu")
        assert service["command"][-2:] == ["-Q", f"gpu{number}"]
        assert service["deploy"]["resources"]["reservations"]["devices"] == [
            {"driver": "nvidia", "device_ids": [number], "capabilities": ["gpu"]}
        ]
        assert service["environment"]["POCQUEUE_DEVICE"] == "cuda:0"


def test_cpu_image_has_no_cuda(services: dict[str, dict[str, Any]]) -> None:
    """Only GPU workers use the image with PyPI's CUDA torch; one tag is never built in two ways."""
    builds: dict[str, set[str]] = {}
    for name, service in services.items():
        if name not in FOREIGN:
            index = service["build"]["args"]["TORCH_INDEX_URL"]
            builds.setdefault(service["image"], set()).add(index)
            assert service["build"]["dockerfile"] == "config/Dockerfile"
    assert builds["pocqueue:cpu"] == {"https://download.pytorch.org/whl/cpu"}
    assert all(len(indexes) == 1 for indexes in builds.values())


def test_redis_password_is_required_everywhere() -> None:
    """No use of REDIS_PASSWORD has a default: an empty or missing one stops compose with a sentence."""
    rests = [rest for name, rest in interpolations() if name == "REDIS_PASSWORD"]
    assert len(rests) == 2
    assert all(re.match(r":\?.*config/env\.example", rest) for rest in rests)


def test_every_container_of_ours_uses_that_redis(services: dict[str, dict[str, Any]]) -> None:
    """They wait until Redis is healthy and reach it with the password."""
    for name, service in services.items():
        if name in FOREIGN:
            continue
        assert service["depends_on"]["redis"]["condition"] == "service_healthy"
        assert re.fullmatch(
            r"redis://:\$\{REDIS_PASSWORD:\?.*\}@redis:6379/0",
            service["environment"]["POCQUEUE_REDIS_URL"],
        )


def test_only_what_is_for_others_is_published_off_loopback(
    services: dict[str, dict[str, Any]],
) -> None:
    """The big node asks for a token, the gateway of GPU hosts is for strangers. Redis and the scheduler's metrics
    have no port on the host at all.
    """
    published = {name: s["ports"] for name, s in services.items() if "ports" in s}
    assert published == {
        "flower": ["127.0.0.1:${POCQUEUE_FLOWER_PORT:-5555}:5555"],
        "delegation": ["${DELEGATION_PORT:-9090}:9090"],
        "node": ["127.0.0.1:${POCQUEUE_NODE_PORT:-8080}:8080"],
        "hosts": [
            "${POCQUEUE_HOSTS_PORT:-3001}:3001",
            "${POCQUEUE_HOSTS_WS_PORT:-3002}:3002",
        ],
        "pouw": ["127.0.0.1:8000:8000"],
        "prometheus": ["127.0.0.1:${PROMETHEUS_PORT:-9091}:9090"],
        "grafana": ["127.0.0.1:${GRAFANA_PORT:-3000}:3000"],
    }
    assert all("network_mode" not in service for service in services.values())


def test_containers_are_confined(services: dict[str, dict[str, Any]]) -> None:
    """No capabilities, no way to new ones, and a root that only the NVIDIA runtime may write."""
    for name, service in services.items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["read_only"] is (service.get("profiles") != ["gpu"]), name
        assert service["init"] is True, name
        assert service["restart"] == "unless-stopped", name
        assert service["stop_grace_period"] == "30s", name


def test_data_is_kept_in_named_volumes(
    compose: dict[str, Any], services: dict[str, dict[str, Any]]
) -> None:
    """`docker compose down` keeps rounds, models and proofs."""
    assert set(compose["volumes"]) == {"redis", "state", "prometheus", "grafana"}
    assert "redis:/data" in services["redis"]["volumes"]
    assert "prometheus:/prometheus" in services["prometheus"]["volumes"]
    assert "grafana:/var/lib/grafana" in services["grafana"]["volumes"]
    for name in set(services) - FOREIGN:
        assert services[name]["volumes"] == ["state:/var/lib/pocqueue"]


def test_every_variable_is_in_env_example(services: dict[str, dict[str, Any]]) -> None:
    """What can be set is explained: interpolated names, and names passed on without a value."""
    passed_on = {
        name
        for service in services.values()
        for name, value in service["environment"].items()
        if value is None
    }
    assert {name for name, _ in interpolations()} | passed_on <= set(read_env_example())


def test_env_example_asks_for_what_is_required() -> None:
    """The only active line is the empty password: copied unchanged it stops compose."""
    active = {v.name: v.value for v in read_env_example().values() if v.active}
    assert active == {"REDIS_PASSWORD": ""}


def test_settings_that_docker_fixes_reach_every_container(
    services: dict[str, dict[str, Any]],
) -> None:
    """Every setting either has a value in compose.yaml or is passed on from .env."""
    variables = {n for n in read_env_example() if n.startswith(("POCQUEUE_", "DELEGATION_"))}
    flower = {name for name in variables if "_FLOWER_" in name}
    metrics = {name for name in variables if "_METRICS_" in name}
    node = {name for name in variables if name.startswith("POCQUEUE_NODE_")}
    delegation = {name for name in variables if name.startswith("DELEGATION_")}
    small = {
        f"DELEGATION_{name}"
        for name in (
            *("URL", "POLL_SECONDS", "FALLBACK", "RUNTIME", "DTYPE", "TLS_CA"),
            *("DIST_THRESHOLD", "P_MISMATCH", "STAGE_SECONDS"),
        )
    }
    both = {f"DELEGATION_{name}" for name in ("AUTH_TOKEN", "WINDOW_SECONDS", "ANY_MODEL")}
    hosts = {name for name in variables if name.startswith("POCQUEUE_HOSTS_")}
    pouw = {name for name in variables if name.startswith("POCQUEUE_POUW_")}
    workers = variables - flower - metrics - node - delegation - hosts - pouw
    everywhere = workers - {"POCQUEUE_DEVICE"}
    for name, own in {
        "worker-cpu": {"POCQUEUE_DEVICE"},
        "worker-gpu0": {"POCQUEUE_DEVICE"},
        "io": set[str](),
        "scheduler": metrics,
        "flower": flower,
        "delegation": delegation - small,
        "node": node | small | {"POCQUEUE_DEVICE"} | both,
        "hosts": hosts,
        "pouw": pouw,
    }.items():
        ours = {n for n in services[name]["environment"] if n.startswith(("POCQUEUE_", "DELEG"))}
        assert ours == everywhere | own, name


@pytest.mark.parametrize("name", ["prometheus", "grafana"])
def test_images_of_others_are_pinned(services: dict[str, dict[str, Any]], name: str) -> None:
    """To a version that this was written for; what they mount of ours is there, and read-only."""
    assert re.fullmatch(r"[\w/]+:v?\d+\.\d+\.\d+", services[name]["image"])
    for volume in services[name]["volumes"]:
        source, _, rest = volume.partition(":")
        if source.startswith("."):
            assert (ROOT / source).is_file(), source
            assert rest.endswith(":ro"), volume


def test_grafana_does_not_start_with_the_password_that_everybody_knows(
    services: dict[str, dict[str, Any]],
) -> None:
    """Its script, run here: without a password it ends with a sentence."""
    shell, flags, script = services["grafana"]["entrypoint"]
    sh = shutil.which(shell)
    assert sh is not None
    script = script.replace("$$", "$").replace("exec /run.sh", "echo started")
    for password, code in (("", 2), ("made-up", 0)):
        env = {"GF_SECURITY_ADMIN_PASSWORD": password}
        done = subprocess.run([sh, flags, script], env=env, capture_output=True, text=True)
        assert (done.returncode != 0) == bool(code)
        assert ("set GRAFANA_ADMIN_PASSWORD in .env" in done.stderr) == bool(code)


def test_prometheus_gets_the_tokens_as_files_that_are_its_own(
    services: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    """Its script, run here: each token, nothing else, and nobody else may read it."""
    shell, flags, script = services["prometheus"]["entrypoint"]
    sh = shutil.which(shell)
    assert sh is not None
    script = (
        script.replace("$$", "$")
        .replace("/run/secrets", str(tmp_path))
        .replace("exec prometheus", "echo")
    )
    tokens = {"DELEGATION_AUTH_TOKEN": "made-up'$token", "POCQUEUE_HOSTS_ADMIN_TOKEN": "x %s\\n"}
    assert set(tokens) == set(services["prometheus"]["environment"])
    subprocess.run([sh, flags, script], env=tokens, check=True, capture_output=True)
    for name, text in zip(("delegation_token", "hosts_token"), tokens.values(), strict=True):
        token = tmp_path / name
        assert token.read_text() == text
        assert token.stat().st_mode & 0o077 == 0


def test_the_image_has_what_each_service_takes() -> None:
    """The extras of GPU hosts, their PostgreSQL and the network of useful work are among what the Dockerfile installs."""
    dockerfile = (ROOT / "config" / "Dockerfile").read_text()
    script = re.search(r"python -c '([^']+)' > requirements\.txt", dockerfile)
    assert script is not None
    done = subprocess.run(
        [sys.executable, "-c", script[1]], cwd=ROOT, capture_output=True, text=True, check=True
    )
    names = {re.split(r"[\[<>=]", line)[0] for line in done.stdout.splitlines()}
    assert {"celery", "torch", "sqlalchemy", "alembic", "limits", "pynacl", "psycopg"} <= names
    assert {"msgspec", "psutil", "pyblst", "wallycore"} <= names
    assert not names & {"pytest", "vllm"}


def test_build_context_holds_what_the_image_copies() -> None:
    """Each COPY source of the Dockerfile exists and is let through by .dockerignore."""
    dockerfile = (ROOT / "config" / "Dockerfile").read_text()
    allowed = {
        line[1:]
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    for sources in re.findall(r"^COPY (.+) \S+$", dockerfile, flags=re.MULTILINE):
        for source in sources.split():
            assert (ROOT / source).exists(), source
            assert source.split("/")[0] in allowed, source
    assert re.search(r"^USER pocqueue$", dockerfile, flags=re.MULTILINE)
