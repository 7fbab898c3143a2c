"""The rows of GPU hosts alone.

python -m benchmarks.hosts [--smoke] [--agents 5000] [--tls]
"""

from __future__ import annotations

import argparse

from benchmarks.effort import FULL, SMOKE
from benchmarks.hosts.rows import NUM_AGENTS, hosts_alone, hosts_over_tls

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="see that it works; no figures")
    parser.add_argument("--agents", type=int, default=NUM_AGENTS)
    parser.add_argument("--tls", action="store_true", help="the memory of agents over TLS alone")
    options = parser.parse_args()
    measure = hosts_over_tls if options.tls else hosts_alone
    for figure in measure(SMOKE if options.smoke else FULL, options.agents):
        print(f"{figure.name}\n    {figure.measured}, {figure.against or ''} {figure.against_name}")
        print(
            f"    {figure.target}: {figure.value:.4g}, {'reached' if figure.reached else 'MISSED'}"
        )
