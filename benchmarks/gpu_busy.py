"""How much of a round a GPU is busy, as its driver sees it (NVML by way of `nvidia-smi`)."""

from __future__ import annotations

import shutil
import subprocess
import time

from benchmarks.effort import FULL, Effort
from benchmarks.stats import Figure, Sample
from pocqueue.rounds.backend import Backend
from pocqueue.rounds.start import decided, deployed_model, draft_spec

ROUND_S = 60.0
#: The driver's own sample period is between 1/6 s and 1 s.
SAMPLE_MS = 200
#: Not counted at either end: the first range is on its way, the last one is over.
EDGE_S = 1.0


def gpu_busy(backend: Backend, effort: Effort = FULL) -> list[Figure]:
    """Run a round on the first GPU; empty where there is none, or no `nvidia-smi`."""
    gpu = backend.pool.live()[0]
    nvidia_smi = shutil.which("nvidia-smi")
    if nvidia_smi is None or not gpu.info.device.startswith("cuda:"):
        return []
    window_s = 2 * EDGE_S + effort.seconds(ROUND_S)
    draft = draft_spec(block_hash=f"busy-{time.time_ns()}", public_key="bench", window_s=window_s)
    round_id = backend.store.create(
        decided(draft, deployed_model(backend, draft, None), r_target=1.38)
    )
    time.sleep(EDGE_S)
    argv = [nvidia_smi, "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    argv += [f"--loop-ms={SAMPLE_MS}", f"--id={gpu.info.device.removeprefix('cuda:')}"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as sampling:
        time.sleep(window_s - 2 * EDGE_S)
        sampling.terminate()
        output, _ = sampling.communicate()
    while backend.store.status(round_id).state.is_active:
        time.sleep(0.05)
    shares = [float(line) for line in output.split()]
    busy = Sample(shares, "% of a sample period")
    mean = sum(shares) / len(shares)
    return [
        Figure(
            f"GPU busy share over a round of {window_s:.0f} s",
            busy,
            None,
            "",
            mean / 100,
            "mean at least 0.95",
            mean >= 95,
        )
    ]
