"""`benchmarks/artifact_cuda.py`: what of it can be seen without a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import artifact_cuda
from benchmarks.kernels_cuda import ABSENT
from pocqueue.engine import EngineOptions
from pocqueue.poc.artifact.seeds import pick_seeds
from pocqueue.poc.artifact.vectors import pick_dims

CPU = torch.device("cpu")


def test_without_a_gpu_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence and a code of its own."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert artifact_cuda.main([]) == ABSENT
    assert capsys.readouterr().out == (
        "No CUDA device: run this on a host with a GPU and a CUDA build of torch.\n"
    )


@pytest.mark.parametrize("argv", [["--batch-size", "0"], ["--seq-len", "-3"]])
def test_a_batch_that_cannot_be_is_refused(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """In a sentence, before anything is measured."""
    with pytest.raises(SystemExit) as ended:
        artifact_cuda.main(argv)
    assert ended.value.code == 2
    assert f"{argv[0][2:].replace('-', '_')} is {argv[1]}" in capsys.readouterr().err


def test_the_cpu_kernels_pass_every_check_but_the_order_of_top_k() -> None:
    """Which a CPU has another one of: the reason why it is built and not asked for."""
    found = list(artifact_cuda.checks(CPU, num_rows=3))
    of_top_k = [check for check in found if "torch.topk" in check.text]
    assert len(of_top_k) == 6
    assert not of_top_k[0].is_so, of_top_k[0].text
    assert [check.text for check in found if check not in of_top_k and not check.is_so] == []


def test_the_scores_are_those_of_the_pick() -> None:
    """The smallest of them stand for the dimensions that are picked."""
    scores = artifact_cuda.scores(pick_seeds("block", "key", [4, 5], 12), 3072, CPU)
    smallest = torch.topk(scores, 12, largest=False).indices
    picked = pick_dims("block", "key", [4, 5], 3072, 12)
    assert smallest.sort(dim=1).values.equal(picked.sort(dim=1).values)


def test_rates_of_an_engine(tmp_path: Path) -> None:
    """Over its bare pass, and the share of the reflections; an engine that cannot be had is named."""
    options = EngineOptions(model="embedded", device="cpu", state_dir=tmp_path)
    batch = artifact_cuda.artifact_batch(2, 8)
    lines = list(artifact_cuda.rates(options, batch, 0.1, engines=("torch",)))
    assert [line.split(":")[0].strip() for line in lines] == [
        "artifacts, torch, embedded, 2x8",
        "over the bare pass, reflections included",
        "reflections' share of the pass, torch, embedded, 2x8",
    ]
    options = EngineOptions(model="none", device="cpu", state_dir=tmp_path)
    [line] = artifact_cuda.rates(options, batch, 0.1, engines=("torch",))
    assert line.startswith("artifacts, torch: not measured. Model 'none'")
