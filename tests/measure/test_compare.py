"""Comparing engines: the maths on made-up distances, the process that an engine runs in, the options."""

from __future__ import annotations

import math
import os
import signal
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner
from typing_extensions import override

from pocqueue.cli import app
from pocqueue.engine import Engine, EngineInfo, OnProgress
from pocqueue.errors import EngineError, InvalidRound, ModelMismatch, ModelNotFound, PocqueueError
from pocqueue.measure.child import run_in_child
from pocqueue.measure.compare import (
    Comparison,
    Measurement,
    check_same_model,
    compare as compare_with,
    expected_flips,
    measure,
    quantile_r_target,
    share,
)
from pocqueue.poc.batch import Batch
from pocqueue.poc.data import PROBABILITY_MISMATCH
from tests.support.factories import make_spec

NAN, INF = math.nan, math.inf
INFO = EngineInfo("torch", "embedded", "ab" * 32, "cpu", "a CPU", "bfloat16", 128, 1024, 4096)


def normal(seed: int, num: int, mean: float, spread: float) -> list[float]:
    """Return made-up distances."""
    found: list[float] = np.random.default_rng(seed).normal(mean, spread, num).tolist()
    return found


def noisy(distances: list[float], seed: int, noise: float) -> list[float]:
    """Return what an engine with float error gives for the same nonces."""
    return [d + e for d, e in zip(distances, normal(seed, len(distances), 0, noise), strict=True)]


def compare(a: list[float], b: list[float], r_target: float) -> Comparison:
    """Compare distances of a model with the vocabulary of `INFO`."""
    return compare_with(a, b, r_target, INFO.vocab_size)


def test_differences_are_those_computed_by_hand() -> None:
    """In norm against a, and in absolute terms."""
    found = compare([1.5, 2.0], [1.5, 2.25], 1.75)
    assert found.relative_difference == pytest.approx(0.25 / 2.5)
    assert found.spread_difference == pytest.approx(0.25 / math.sqrt(0.125))
    assert (found.median_difference, found.max_difference) == (0.125, 0.25)
    assert found.p99_difference == pytest.approx(0.2475)
    assert found.rms_difference == pytest.approx(0.25 / math.sqrt(2))
    assert found.honest_difference == pytest.approx(0.15 / math.sqrt(2 * 1024))
    assert found.num_beyond == 1
    assert (found.num_nonces, found.num_compared) == (2, 2)


def test_an_engine_agrees_with_itself() -> None:
    """No difference, no flip, and that is within everything."""
    a = normal(1, 256, 1.41, 0.03)
    found = compare(a, a, quantile_r_target(a, 0.1))
    assert (found.relative_difference, found.spread_difference, found.max_difference) == (0, 0, 0)
    assert found.num_valid_a == found.num_valid_b == 25
    assert (found.num_only_a, found.num_only_b) == (0, 0)
    assert (found.flips.share_a, found.flips.share_b) == (0, 0)
    assert found.agrees
    assert found.to_dict()["interchangeable"]
    assert "may be validated" in found.sentence()


def test_flips_are_counted_for_each_side() -> None:
    """A nonce is valid strictly below r_target."""
    found = compare([0.9, 0.9, 1.1, 1.0, 0.8], [1.1, 1.0, 0.9, 1.0, 0.8], 1.0)
    assert (found.num_valid_a, found.num_valid_b) == (3, 2)
    assert (found.num_only_a, found.num_only_b) == (2, 1)


def test_distances_that_are_not_finite_are_dropped_and_counted() -> None:
    """In either engine; the others are compared as if those were not there."""
    a = [1.0, NAN, 1.2, 1.3, INF, NAN]
    b = [1.1, 1.1, NAN, 1.3, 1.4, NAN]
    found = compare(a, b, 1.05)
    assert (found.num_nonfinite_a, found.num_nonfinite_b) == (3, 2)
    assert (found.num_nonces, found.num_compared) == (6, 2)
    clean = compare([1.0, 1.3], [1.1, 1.3], 1.05)
    assert found == replace(clean, num_nonces=6, num_nonfinite_a=3, num_nonfinite_b=2)


def test_nothing_left_to_compare_is_said() -> None:
    """With the counts of both."""
    with pytest.raises(EngineError, match=r"No nonce of 2 .*\(1 are not finite in a, 1 in b\)"):
        compare([NAN, 1.0], [1.0, INF], 1.0)


def test_engines_that_differ_disagree() -> None:
    """From a relative difference of 1 % on."""
    a = normal(1, 256, 1.41, 0.03)
    found = compare(a, [1.01001 * d for d in a], 1.4)
    assert not found.agrees
    assert "disagree: the relative difference of their distances is 1 %" in found.sentence()
    assert compare(a, [1.0099 * d for d in a], 1.4).relative_difference < 0.01


def test_unrelated_engines_disagree_however_narrow_their_distances_are() -> None:
    """Distances of a large vocabulary differ by less than 1 % between any two models."""
    a, b = normal(1, 256, 1.4142, 0.0026), normal(2, 256, 1.4142, 0.0026)
    found = compare(a, b, quantile_r_target(a, 0.1))
    assert found.relative_difference < 0.003
    assert found.spread_difference == pytest.approx(math.sqrt(2), rel=0.15)
    assert not found.agrees
    assert "disagree" in found.sentence()


def test_float_error_that_flips_too_many_verdicts_is_said() -> None:
    """The engines agree, and their proofs are still not interchangeable."""
    a = normal(1, 256, 1.4142, 0.0026)
    r_target = quantile_r_target(a, 0.1)
    rough, fine = compare(a, noisy(a, 2, 3e-5), r_target), compare(a, noisy(a, 2, 1e-7), r_target)
    assert rough.agrees
    assert not rough.flips.allowed
    assert "do not validate" in rough.sentence()
    assert fine.flips.worst is not None
    assert 0 < fine.flips.worst < PROBABILITY_MISMATCH
    assert fine.flips.allowed


def test_expected_flips_are_the_mean_over_all_thresholds() -> None:
    """The same as counting at very many thresholds between the quantiles of 5 % and 15 %."""
    a = np.array(normal(1, 300, 1.4, 0.03))
    b = a + np.array(normal(2, 300, 0.002, 0.004))
    found = expected_flips(a.tolist(), b.tolist(), quantile_r_target(a.tolist(), 0.1))
    low, high = np.quantile(a, [0.05, 0.15], method="weibull")
    thresholds = np.linspace(low, high, 20_001)[:, None]
    in_a, in_b = a < thresholds, b < thresholds
    assert found.share_a == pytest.approx((in_a & ~in_b).sum() / in_a.sum(), rel=0.01)
    assert found.share_b == pytest.approx((in_b & ~in_a).sum() / in_b.sum(), rel=0.01)
    assert found.num_near == pytest.approx(30, abs=2)
    # b is shifted up, so a loses more than b.
    assert found.share_a is not None
    assert found.share_b is not None
    assert found.share_a > found.share_b


def test_expected_flips_of_a_sample_tell_those_of_the_population() -> None:
    """256 nonces, of which none or one flips, say what a million have at r_target."""
    a = normal(1, 1_000_000, 1.4, 0.03)
    b = noisy(a, 2, 0.0003)
    r_target = quantile_r_target(a, 0.1)
    whole = compare(a, b, r_target)
    truth = whole.num_only_a / whole.num_valid_a
    assert whole.flips.share_a == pytest.approx(truth, rel=0.05)
    guesses = [
        expected_flips(a[i : i + 256], b[i : i + 256], r_target).share_a
        for i in range(0, 100 * 256, 256)
    ]
    assert np.mean([guess for guess in guesses if guess is not None]) == pytest.approx(
        truth, rel=0.1
    )


@pytest.mark.parametrize(
    ("a", "r_target"), [([1.3], 1.3), ([1.3, 1.4], 1.0), ([1.3, 1.4], 2.0), ([1.3, 1.3], 1.3)]
)
def test_flips_are_unknown_without_thresholds(a: list[float], r_target: float) -> None:
    """Where r_target makes no nonce valid, or all, and where there is one distance only."""
    flips = expected_flips(a, a, r_target)
    assert (flips.share_a, flips.share_b, flips.worst, flips.allowed) == (None, None, None, False)
    assert "too few nonces" in compare(a, a, r_target).sentence()


def test_r_target_is_a_quantile_of_what_is_finite() -> None:
    """So many distances are below it, whatever is not finite among them."""
    a = normal(1, 999, 1.4, 0.03)
    r_target = quantile_r_target([NAN, INF, *a], 0.1)
    assert r_target == pytest.approx(sorted(a)[99])
    assert quantile_r_target([1.25], 0.1) == 1.25


def test_r_target_needs_a_distance_and_a_share() -> None:
    """Either is named."""
    with pytest.raises(EngineError, match="None of 2 distances"):
        quantile_r_target([NAN, INF], 0.1)
    for rate in (0.0, 1.0, NAN):
        with pytest.raises(InvalidRound, match="valid_rate"):
            quantile_r_target([1.0], rate)


def test_other_models_and_dtypes_are_refused() -> None:
    """The sentence has both engines, and what differs."""
    check_same_model(INFO, replace(INFO, engine="vllm", model="another name"))
    other = replace(INFO, engine="vllm-server", model="M", fingerprint="cd" * 32)
    with pytest.raises(
        ModelMismatch, match=r"torch.* embedded \(ababab.*vllm-server.* M \(cdcdcd.*--model"
    ):
        check_same_model(INFO, other)
    check_same_model(INFO, replace(INFO, dtype="float16"), any_dtype=True)
    with pytest.raises(
        ModelMismatch, match=r"torch.*in bfloat16.*vllm.*in float16.*POCQUEUE_DTYPE"
    ):
        check_same_model(INFO, replace(INFO, engine="vllm", dtype="float16"))


class RecordingEngine(Engine):
    """An engine that gives each nonce's number and notes what it was asked."""

    info = INFO

    def __init__(self) -> None:
        self.calls: list[object] = []

    @override
    def values(self, batch: Batch, upcoming: Batch | None = None) -> list[Any]:
        self.calls.append(list(batch.nonces))
        return [float(nonce) for nonce in batch.nonces]

    @override
    def warm_up(self, batch_size: int, seq_len: int) -> None:
        self.calls.append((batch_size, seq_len))

    @override
    def close(self) -> None:
        """Nothing to free."""


def test_an_engine_is_measured_after_one_pass_that_does_not_count() -> None:
    """Every nonce once, each batch timed."""
    engine = RecordingEngine()
    search = make_spec(batch_size=2, seq_len=7)
    found = measure(engine, lambda line: None, search=search, num_nonces=5)
    assert engine.calls == [(2, 7), [0, 1], [2, 3], [4]]
    assert found.values == [0, 1, 2, 3, 4]
    assert len(found.batch_s) == 3
    assert found.info == INFO


def test_speed_is_that_of_the_median_pass() -> None:
    """One slow batch does not count, nor does a short one count less."""
    found = Measurement(info=INFO, values=[], batch_size=32, batch_s=[0.5, 9.0, 0.4])
    assert (found.median_batch_s, found.nonces_per_s) == (0.5, 64)


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0 %"), (0.12345, "12.3 %"), (5e-4, "0.05 %"), (1e-7, "0.00001 %")]
)
def test_shares_are_readable(value: float, text: str) -> None:
    """Three digits, however small."""
    assert share(value) == text


def work_well(on_progress: OnProgress) -> dict[str, int]:
    on_progress("half")
    sys.stdout.write("from Python\n")
    sys.stdout.flush()
    os.write(1, b"from below\n")
    on_progress("whole")
    return {"pid": os.getpid()}


def raise_bounds(_on_progress: OnProgress) -> None:
    raise InvalidRound("seq_len", 9, "1 to 8")


def raise_ours(_on_progress: OnProgress) -> None:
    raise ModelNotFound("There is no such model.")


def raise_other(_on_progress: OnProgress) -> None:
    raise RuntimeError("no luck\nand more")


def get_killed(_on_progress: OnProgress) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leave(_on_progress: OnProgress) -> None:
    os._exit(3)


def test_a_child_answers_and_prints_nothing_on_standard_output(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Progress comes one by one, and what a runtime prints goes to standard error."""
    told: list[str] = []
    answer = run_in_child("It", work_well, told.append)
    assert answer["pid"] != os.getpid()
    with pytest.raises(ProcessLookupError):
        os.kill(answer["pid"], 0)
    assert told == ["half", "whole"]
    shown = capfd.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines() == ["from Python", "from below"]


@pytest.mark.parametrize(
    ("work", "kind", "sentence"),
    [
        (raise_bounds, InvalidRound, "seq_len is 9; allowed: 1 to 8."),
        (raise_ours, ModelNotFound, "There is no such model."),
        (
            raise_other,
            EngineError,
            "It failed (RuntimeError: no luck); POCQUEUE_LOG_LEVEL=DEBUG shows where.",
        ),
        (
            get_killed,
            EngineError,
            "It was killed by SIGKILL before it had an answer. Most often the machine's memory has run out: use a smaller batch or model.",
        ),
        (
            leave,
            EngineError,
            "It ended with code 3 before it had an answer. What it wrote is above.",
        ),
    ],
)
def test_a_child_that_fails_says_so_in_a_sentence(
    work: object, kind: type[PocqueueError], sentence: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """As the same error, and without a traceback."""
    with pytest.raises(kind) as caught:
        run_in_child("It", work, lambda line: None)  # type: ignore[arg-type] # of several types
    assert type(caught.value) is kind
    assert str(caught.value) == sentence
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--a", "llama"], "--a is 'llama'; allowed: torch, vllm, vllm-server."),
        (
            ["--a", "torch@int8"],
            "--a is 'torch@int8'; allowed behind @: bfloat16, float16, float32.",
        ),
        (["--b", ""], "--b is ''; allowed: torch, vllm, vllm-server."),
        (["--nonces", "0"], "--nonces is 0; allowed: a whole number from 1 to 1000000."),
        (["--batch-size", "0"], "--batch-size is 0; allowed: a whole number of at least 1."),
        (
            ["--seq-len", "0"],
            "--seq-len is 0; allowed: a whole number from 1 to the model's limit.",
        ),
        (["--r-target", "0"], "--r-target is 0.0; allowed: a number above 0."),
        (["--r-target", "nan"], "--r-target is nan; allowed: a number above 0."),
        (
            ["--valid-rate", "1"],
            "--valid-rate is 1.0; allowed: a share above 0 and below 1, such as 0.1.",
        ),
        (
            ["--r-target", "1.3", "--valid-rate", "0.1"],
            "--r-target is 1.3 and --valid-rate is 0.1; allowed: one of them.",
        ),
        (
            ["--k-dim", "4"],
            "--k-dim is 4, but the proof is distance; it is for artifact alone: leave it out.",
        ),
        (
            ["--proof", "artifact", "--r-target", "1.3"],
            "--r-target is 1.3, but the proof is artifact; it is for distance alone: leave it out.",
        ),
        (
            ["--proof", "artifact", "--dist-threshold", "3"],
            "--dist-threshold is 3.0; allowed: a number from 0 to 2.",
        ),
        (["--block-hash", ""], "--block-hash is ''; allowed: 1 to 256 printable characters."),
    ],
)
def test_options_are_refused_by_name(arguments: list[str], sentence: str) -> None:
    """Before anything is loaded."""
    done = CliRunner().invoke(app, ["engine", "compare", "--b", "torch", *arguments])
    assert isinstance(done.exception, PocqueueError)
    assert str(done.exception) == sentence


def test_a_vllm_that_is_not_installed_is_named_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not after the other engine has run for minutes."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    done = CliRunner().invoke(app, ["engine", "compare"])
    assert isinstance(done.exception, PocqueueError)
    assert "--b is 'vllm', but vLLM is not installed here" in str(done.exception)
