"""`pocqueue bench` as a command: what it asks for, prints and refuses. The engine is left out."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from pocqueue.cli import app
from pocqueue.cli.charts import bin_distances, draw_histogram, draw_stages, share_cells
from pocqueue.engine.base import OnProgress
from pocqueue.engine.profiled import MatmulParameters
from pocqueue.errors import InvalidRound, PocqueueError
from pocqueue.measure.bench import ProfileRequest
from pocqueue.measure.profile import MatrixRate, Profile, Sweep, SweepPoint
from pocqueue.rounds.backend import Backend
from pocqueue.settings import Settings
from tests.cli.test_cli_imports import RUNTIMES, loaded
from tests.support.factories import make_gpu, make_info
from tests.support.fixtures import SettingsFactory

SWEEP = Sweep(
    tuple(SweepPoint(size, 0.01 + size / 1000) for size in (1, 2, 4, 8, 16)),
    "It does not fit into the memory",
)


def make_profile(**changes: Any) -> Profile:
    """Make a profile: batches of 32 x 256 in 20 ms, a tenth of the distances below 1."""
    blocks = {f"block-{i}": [(n % 10 + 1) / 5 for n in range(1000)] for i in range(2)}
    fields: dict[str, Any] = {
        "info": make_info(device_name="a [big] GPU"),
        "batch_size": 32,
        "seq_len": 256,
        "engine_s": (0.02,),
        "forward_s": (0.019,),
        "stages_s": {"seeds": 0.0001, "inputs": 0.0005, "forward": 0.018, "distances": 0.0004},
        "parameters": MatmulParameters(440_000_000, 150_000_000),
        "matrix": MatrixRate(600e12, 8192, "bfloat16", 1),
        "distances": blocks,
    }
    return Profile(**(fields | changes))


class Bench:
    """Runs the command on a profile that was made before; keeps what was asked of the engine."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.profile = make_profile()
        self.failure: PocqueueError | None = None
        self.asked: list[tuple[Settings, str, ProfileRequest]] = []
        monkeypatch.setattr("pocqueue.measure.bench.profile_in_child", self._profile)

    def _profile(
        self, settings: Settings, queue: str, request: ProfileRequest, on_progress: OnProgress
    ) -> Profile:
        self.asked.append((settings, queue, request))
        on_progress("Loading [the model]")
        if self.failure is not None:
            raise self.failure
        return self.profile

    def run(self, *argv: str) -> Result:
        """Run it; a failure that is not ours fails the test."""
        done = CliRunner().invoke(app, ["bench", *argv])
        if done.exception is not None and not isinstance(
            done.exception, (PocqueueError, SystemExit)
        ):
            raise done.exception
        return done


@pytest.fixture
def bench(
    backend: Backend,
    child_env: dict[str, str],
    settings_for: SettingsFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Bench:
    """The command on an empty pool."""
    for name in ("POCQUEUE_REDIS_URL", "POCQUEUE_STATE_DIR"):
        monkeypatch.setenv(name, child_env[name])
    return Bench(monkeypatch)


def test_the_table_has_what_was_measured(bench: Bench) -> None:
    """Rates, their ratio, share of the matrix rate, stages; progress goes to standard error."""
    done = bench.run()
    assert done.exit_code == 0
    assert "Loading [the model]" in done.stderr
    lines = done.stdout.splitlines()
    engine = next(line.split() for line in lines if line.startswith("engine "))
    assert engine == ["engine", "1,600.0", "20.00", "ms", "360.93", "TFLOP/s", "60.15", "%"]
    assert any(line.split()[:4] == ["forward", "pass", "alone", "1,684.2"] for line in lines)
    assert "engine / forward pass     0.950" in done.stdout
    assert "a [big] GPU" in done.stdout
    assert "600.00 TFLOP/s, measured with 8192 x 8192 matrices" in done.stdout
    assert "2 x (440,000,000 parameters x 256 positions + 150,000,000" in done.stdout
    assert "528,000 nonces at this rate" in done.stdout
    assert "valid" not in done.stdout
    assert "best batch size" not in done.stdout
    stages = {line.split()[1]: line.split()[-2] for line in lines if line.endswith(" %")}
    assert stages["inputs"] == "2.50"
    assert stages["rest"] == "5.00"


def test_the_defaults_of_what_is_measured(bench: Bench) -> None:
    """Five seconds a figure, a round's own shape, eight blocks, queue gpu0, the settings' model."""
    bench.run()
    [(settings, queue, request)] = bench.asked
    assert (settings.model, queue) == ("embedded", "gpu0")
    assert (request.batch_size, request.round.seq_len, request.seconds) == (None, 256, 5.0)
    assert request.max_batch is None
    assert len(set(request.blocks)) == 8


def test_options_reach_the_engine(bench: Bench) -> None:
    """Model, queue, shape, time and sweep."""
    bench.run(
        *("--model", "other", "--queue", "rack.gpu3", "--seq-len", "8", "--batch-size", "16"),
        *("--seconds", "2", "--sweep", "--max-batch", "64"),
    )
    [(settings, queue, request)] = bench.asked
    assert (settings.model, queue) == ("other", "rack.gpu3")
    assert (request.batch_size, request.round.seq_len, request.seconds) == (16, 8, 2.0)
    assert request.max_batch == 64
    bench.run("--sweep")
    assert bench.asked[-1][2].max_batch == 1024


def test_a_sweep_says_which_batch_size_to_give_a_round(bench: Bench) -> None:
    """And why it went no further."""
    bench.profile = make_profile(sweep=SWEEP)
    done = bench.run("--sweep")
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["16", "615.4", "26.00", "ms", "best"] in rows
    assert ["8", "444.4", "18.00", "ms"] in rows
    assert "Give it to a round with --batch-size 16 (1 to 4096)" in done.stdout
    assert "tried than 16: It does not fit into the memory." in done.stdout


def test_a_window_is_estimated_from_the_sampled_distances(bench: Bench) -> None:
    """Expectation and interval, of the rate and of the number."""
    done = bench.run("--r-target", "0.3")
    assert "10.00 % of 2,000 samples are below 0.3; 95 % interval" in done.stdout
    assert "2 blocks differ by 0.00 % beyond chance" in done.stdout
    assert "52,800 in a window; 95 % interval" in done.stdout
    found = json.loads(bench.run("--r-target", "0.3", "--json").stdout)
    assert found["window"]["num_valid"] == pytest.approx(52_800)
    assert found["window"]["num_valid_low"] < 52_800 < found["window"]["num_valid_high"]
    assert found["window"]["rate_low"] < 0.1 < found["window"]["rate_high"]
    bench.profile = make_profile(distances={"block": [0.1] * 5})
    assert "one block only" in bench.run("--r-target", "0.3").stdout


def test_json_is_all_there_is_on_standard_output(bench: Bench) -> None:
    """With the figures of the table."""
    bench.profile = make_profile(sweep=SWEEP)
    found = json.loads(bench.run("--sweep", "--json").stdout)
    assert found["nonces_per_s"] == pytest.approx(1600)
    assert found["ratio"] == pytest.approx(0.95)
    assert found["share_of_rate"] == pytest.approx(1600 * 225.58e9 / 600e12, rel=1e-3)
    assert found["stages_s"]["forward"] == 0.018
    assert found["sweep"]["best_batch_size"] == 16
    assert (found["window_s"], found["nonces_per_window"]) == (330.0, 528_000)
    assert (found["window"], found["shared_with"]) == (None, [])


def test_of_a_server_only_calls_are_measured(bench: Bench) -> None:
    """It says so in one sentence, and draws no stages that it does not know."""
    bench.profile = make_profile(forward_s=(), stages_s={}, parameters=None, matrix=None)
    done = bench.run()
    assert "all but whole engine calls: the model is in a server" in done.stdout
    assert "1,600.0" in done.stdout
    for word in ("forward pass", "matrix rate", "work of a nonce", "permutation"):
        assert word not in done.stdout


def test_shares_that_are_bounds_or_unknown_say_so(bench: Bench) -> None:
    """A mixture of experts that does not say how many are active, and packed weights."""
    bench.profile = make_profile(parameters=MatmulParameters(10, 20, True))
    assert "all experts counted, so shares are upper bounds" in bench.run().stdout
    bench.profile = make_profile(parameters=None)
    assert "unknown: the model's weights are packed" in bench.run().stdout


def test_gpus_that_share_a_model_are_counted_together(bench: Bench) -> None:
    """One of them is measured."""
    bench.profile = make_profile(matrix=MatrixRate(1200e12, 8192, "bfloat16", 2))
    assert "1.20 PFLOP/s" in (shown := bench.run().stdout)
    assert "on the first of 2 GPUs, times 2" in shown


def test_the_command_itself_needs_no_runtime() -> None:
    """The engine has a process of its own; this one only asks and prints."""
    code = "import pocqueue.cli.bench, pocqueue.cli.charts, pocqueue.measure.bench"
    assert not loaded(f"{code}, pocqueue.measure.valid_rate") & set(RUNTIMES)


def test_stages_that_overlap_say_by_how_much(bench: Bench) -> None:
    """What is hidden is in no engine call."""
    bench.profile = make_profile(engine_s=(0.0185,))
    assert "an engine call 18.50 ms: 0.50 ms run beside something else" in bench.run().stdout


def test_a_worker_on_the_same_device_is_warned_of(bench: Bench, backend: Backend) -> None:
    """Of this host and this queue, or the CPU, which all share; of no other."""
    host = Settings().host_name
    on_gpu = make_info(device="cuda:0")
    for queue, gpu_host, info in (
        ("gpu0", host, on_gpu),
        ("gpu1", host, make_info(device="cuda:1")),
        ("gpu2", host, make_info(device="cpu")),
        ("far.gpu0", "far", on_gpu),
    ):
        backend.pool.beat(make_gpu(queue, host=gpu_host, info=info))
    done = bench.run("--json")
    assert json.loads(done.stdout)["shared_with"] == ["gpu0", "gpu2"]
    assert "A live worker of the pool may use this device, too (gpu0, gpu2)" in done.stderr
    assert json.loads(bench.run("--queue", "gpu1", "--json").stdout)["shared_with"] == [
        "gpu1",
        "gpu2",
    ]


def test_a_worker_of_the_same_server_is_warned_of(
    bench: Bench, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it runs; a worker with an engine of its own is none of that."""
    backend.pool.beat(make_gpu("far.gpu0", host="far", info=make_info(engine="vllm-server")))
    backend.pool.beat(make_gpu("gpu0", host=Settings().host_name))
    monkeypatch.setenv("POCQUEUE_ENGINE", "vllm-server")
    assert json.loads(bench.run("--json").stdout)["shared_with"] == ["far.gpu0"]


def test_a_pool_that_is_away_is_not_waited_for(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The warning is all that it is asked for."""
    monkeypatch.setenv("POCQUEUE_REDIS_URL", "redis://127.0.0.1:1")
    done = bench.run("--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["shared_with"] == []


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (("--seconds", "0"), "--seconds is 0.0; allowed: seconds from 0.1 to 60."),
        (("--seconds", "nan"), "--seconds is nan; allowed: seconds from 0.1 to 60."),
        (("--max-batch", "8"), "--max-batch is 8, which is for --sweep: give that, too."),
        (
            ("--sweep", "--max-batch", "5000"),
            "--max-batch is 5000; allowed: a whole number from 1 to 4096.",
        ),
        (("--batch-size", "0"), "--batch-size is 0; allowed: a whole number of at least 1."),
        (("--r-target", "0"), "--r-target is 0.0; allowed: a number above 0."),
        (("--queue", "io"), "--queue is 'io'; allowed: gpuN or HOST.gpuN, such as gpu0."),
    ],
)
def test_bad_options_are_refused_before_anything_is_loaded(
    bench: Bench, argv: tuple[str, ...], sentence: str
) -> None:
    """One sentence that names the option as it was typed."""
    done = bench.run(*argv)
    assert str(done.exception) == sentence
    assert bench.asked == []


def test_what_the_engine_refuses_has_the_options_name(bench: Bench) -> None:
    """The limit of a model is known once it is loaded."""
    bench.failure = InvalidRound("seq_len", 5000, "1 to 4096, the limit of model embedded")
    done = bench.run("--seq-len", "5000")
    assert str(done.exception).startswith("--seq-len is 5000; allowed: 1 to 4096")


@pytest.mark.parametrize("seconds", [(1.0, 1.0, 1.0), (0.0, 1e-9, 5.0), (3.0, 2.0, 0.0, 7.0)])
def test_the_cells_of_a_bar_are_all_shared_out(seconds: tuple[float, ...]) -> None:
    """In proportion, to less than one cell."""
    cells = share_cells(seconds, 100)
    assert sum(cells) == 100
    for part, num in zip(seconds, cells, strict=True):
        assert abs(num - 100 * part / sum(seconds)) < 1


def test_stages_can_be_told_apart_without_colours() -> None:
    """Each has a cell of its own, in ASCII too."""
    for plain in (False, True):
        lines = draw_stages(make_profile(), 60, plain=plain).plain.splitlines()
        assert len(lines[0]) == 60
        assert len({line[0] for line in lines[1:]}) == 5
        assert set(lines[0]) <= {line[0] for line in lines[1:]}
        assert not plain or lines[0].isascii()


def test_a_histogram_has_r_target_between_two_of_its_bins() -> None:
    """A bin is valid as a whole or not at all; what is no finite number is in none."""
    distances = [0.1, 0.2, 0.3, 0.5, 0.5, float("nan"), float("inf")]
    bins = bin_distances(distances, 0.3, 4)
    assert sum(count for edge, count in bins if edge < 0.3) == 2
    assert sum(count for edge, count in bins if edge >= 0.3) == 3
    assert 0.3 in dict(bins)
    for plain in (False, True):
        text = draw_histogram(distances, 0.3, 60, plain=plain).plain
        assert "r_target 0.300000: 28.57 % below" in text
        assert text.splitlines()[-1] == "2 more are no finite numbers"
        assert not plain or text.isascii()


def test_a_histogram_of_equal_distances_has_one_bar() -> None:
    """A model that ignores its input."""
    assert [count for _, count in bin_distances([1.0] * 5, 1.0)] == [0, 5]
