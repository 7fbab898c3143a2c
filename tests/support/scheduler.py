"""`pocqueue scheduler` with ranges of a quarter of a second: `python -m tests.support.scheduler`."""

from __future__ import annotations

from pocqueue.cli.scheduler import run
from pocqueue.settings import Settings

if __name__ == "__main__":
    run(Settings.load(), range_s=0.25)
