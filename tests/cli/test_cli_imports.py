"""The command line, the APIs' ground and the scheduler start without a model runtime."""

from __future__ import annotations

import subprocess
import sys

import pytest

RUNTIMES = ("torch", "vllm", "transformers")


def loaded(code: str) -> set[str]:
    """Return the top-level packages that a fresh interpreter has loaded after some code."""
    report = f"{code}\nimport sys\nprint('LOADED', *{{n.partition('.')[0] for n in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", report], capture_output=True, text=True, check=True, timeout=300
    )
    return set(done.stdout.rpartition("LOADED")[2].split())


def test_help_imports_nothing_heavy() -> None:
    """`pocqueue --help` answers without torch, Celery, pydantic, Redis, numpy, Rich or SSH."""
    code = """
import sys
sys.argv = ["pocqueue", "--help"]
from pocqueue.cli import main
try:
    main()
except SystemExit as exc:
    assert exc.code == 0
"""
    packages = loaded(code)
    assert "typer" in packages
    assert not packages & {
        *RUNTIMES,
        "asyncssh",
        "celery",
        "kombu",
        "pydantic",
        "redis",
        "numpy",
        "scipy",
        "rich",
    }


@pytest.mark.parametrize(
    "module",
    [
        "pocqueue.app",
        "pocqueue.rounds.scheduler_process",
        "pocqueue.measure.samples",
        "pocqueue.local_stack",
        "workers.io",
    ],
)
def test_only_engines_import_a_runtime(module: str) -> None:
    """Scheduler, io worker and everything around rounds do without torch."""
    assert not loaded(f"import {module}") & set(RUNTIMES)


def test_a_node_of_the_network_of_useful_work_is_imported_at_once() -> None:
    """The modules that programs import take no torch, no settings and none of the extra's packages."""
    packages = loaded(
        "import pocqueue.pouw.node, pocqueue.pouw.economics, pocqueue.pouw.blockchain"
    )
    assert not packages & {
        *(*RUNTIMES, "pydantic", "msgspec", "pyblst", "psutil", "cryptography", "fastapi"),
        *("wallycore", "numba", "scipy", "rich", "typer"),
    }
