"""`make bench`: run every benchmark, print a table, write JSON.

    python -m benchmarks.run --output bench.json
    python -m benchmarks.run --smoke --output smoke.json

The worker is a real one in processes of its own (`pocqueue.local_stack`), on the embedded model and
this machine's CPU or first GPU; nothing is simulated. `--smoke` does a little of everything but vLLM and
delegation, to see that the benchmarks work; its figures mean nothing. How long each part takes is
said on standard error.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.effort import FULL, SMOKE
from benchmarks.machine import describe
from benchmarks.stats import Figure
from pocqueue.settings import Settings


def main() -> None:
    """Parse the command line, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("bench.json"))
    parser.add_argument("--smoke", action="store_true", help="see that it works; no figures")
    arguments = parser.parse_args()
    output: Path = arguments.output
    effort = SMOKE if arguments.smoke else FULL
    if not effort.is_full:
        # Threads of a team spin while they wait for one that has no core: minutes, on a machine with other work. To
        # be set before torch is imported, so what imports it comes below.
        os.environ["OMP_NUM_THREADS"] = "1"
    began = time.monotonic()
    machine = describe()
    with tempfile.TemporaryDirectory(prefix="pocqueue-bench-") as folder:
        settings = Settings.load().model_copy(
            update={
                "state_dir": Path(folder),
                "redis_url": None,
                "model": "embedded",
                "engine": "torch",
                "callback_private": True,
            }
        )
        from benchmarks.figures import measure_all

        figures = measure_all(settings, Path(folder) / "logs", effort)
    _print(figures.rows, machine, time.monotonic() - began)
    content = {
        "machine": machine,
        "smoke": not effort.is_full,
        "figures": [figure.to_dict() for figure in figures.rows],
    }
    output.write_text(json.dumps(content, indent=2) + "\n")
    sys.stdout.write(f"\nWritten to {output}.\n")
    if figures.failed:
        sys.exit(
            f"{figures.failed} of the benchmarks failed, see above; the others' figures stand."
        )


def _print(figures: list[Figure], machine: dict[str, object], seconds: float) -> None:
    print(f"{machine['cpu']}, {machine['cores']} cores, Python {machine['python']}")
    print(f"{machine['packages']}\n")
    for figure in figures:
        print(f"{figure.name}")
        print(f"    measured   {figure.measured}")
        if figure.against is not None:
            print(f"    against    {figure.against}   {figure.against_name}")
        verdict = "reached" if figure.reached else "MISSED"
        print(f"    asked for  {figure.target}: {figure.value:.4g}, {verdict}")
    print(f"\n{seconds:.0f} s in all")


if __name__ == "__main__":
    main()
