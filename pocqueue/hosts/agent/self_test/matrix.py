"""A matrix product on one GPU for some seconds, in a process of its own: it is the only one that imports torch.

`python -m pocqueue.hosts.agent.self_test.matrix DEVICE SECONDS` prints a line of JSON: ``tflops`` (of one product,
2 n^3 operations), ``checksum`` of the product, ``alike``: every product was the same, bit for bit.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
import time
from importlib.util import find_spec

from pocqueue.hosts.agent.gpu_facts import Gpu
from pocqueue.hosts.agent.messages import TestRow
from pocqueue.hosts.agent.sandbox.bounded import until_gone

_CUDA_SIZE, _CPU_SIZE = 8192, 512
_STARTS_S = 120.0


async def matrix_row(gpu: Gpu, seconds: float, *, device: str = "cuda") -> TestRow:
    """Return how a GPU multiplies."""
    wanted = f"the same product for {seconds:g} s"
    if find_spec("torch") is None:
        measured = "torch is not installed, which only proofs take"
        return TestRow(name="gpu_matrix", state="skip", measured=measured, gpu=gpu.uuid)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", __name__, device, str(seconds)),
        env=os.environ | {"CUDA_VISIBLE_DEVICES": gpu.uuid},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), seconds + _STARTS_S)
    except TimeoutError:
        out, err = b"", f"no answer within {seconds + _STARTS_S:g} s".encode()
    finally:
        if process.returncode is None:
            process.kill()
            await until_gone(process)
    if process.returncode or not out:
        said = (err.decode("utf-8", "replace").strip().splitlines() or ["it ended"])[-1]
        return TestRow(
            name="gpu_matrix",
            state="fail",
            measured=said[:300],
            wanted=wanted,
            remedy="install a torch for this driver's CUDA: https://pytorch.org/get-started/locally",
            gpu=gpu.uuid,
        )
    found = json.loads(out)
    return TestRow(
        name="gpu_matrix",
        state="pass" if found["alike"] else "fail",
        measured=f"{found['tflops']:.1f} TFLOPS, {'' if found['alike'] else 'not always '}{found['checksum']}",
        wanted=wanted,
        remedy=""
        if found["alike"]
        else "it computes wrongly: lower its clocks, cool it, or replace it",
        gpu=gpu.uuid,
    )


def _main(device: str, seconds: float) -> None:
    import torch

    size = _CUDA_SIZE if device == "cuda" else _CPU_SIZE
    generator = torch.Generator().manual_seed(1)
    factor = torch.randn(size, size, generator=generator).to(device, torch.bfloat16)
    first, count, best_s = "", 0, float("inf")
    alike, end_s = True, time.monotonic() + seconds
    while count < 2 or time.monotonic() < end_s:
        began_s = time.perf_counter()
        product = (factor @ factor).float().cpu()
        best_s = min(best_s, time.perf_counter() - began_s)
        checksum = hashlib.sha256(product.numpy().tobytes()).hexdigest()[:16]
        first = first or checksum
        alike, count = alike and checksum == first, count + 1
    tflops = 2 * size**3 / best_s / 1e12
    sys.stdout.write(json.dumps({"tflops": tflops, "checksum": first, "alike": alike}) + "\n")


if __name__ == "__main__":
    _main(sys.argv[1], float(sys.argv[2]))
