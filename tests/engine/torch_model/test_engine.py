"""The torch engine with the real embedded model."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, stdev

import pytest
import torch
from transformers import AutoModelForCausalLM

from pocqueue.engine import Engine, EngineOptions, load_engine
from pocqueue.engine.torch_model.embedded import EMBEDDED_FINGERPRINT, ensure_embedded_model
from pocqueue.engine.torch_model.engine import TorchEngine
from pocqueue.engine.torch_model.loader import load_model
from pocqueue.errors import EngineError, InvalidRound, ModelNotFound, SettingsError
from pocqueue.poc.batch import Batch, batches_of
from pocqueue.poc.gpu_random import (
    compute_distances,
    generate_inputs,
    generate_permutations,
    generate_target,
)
from pocqueue.rounds.spec import RoundSpec
from tests.support.factories import make_spec

SEQ_LEN = 32


@pytest.fixture(scope="module")
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One state folder for the module."""
    return tmp_path_factory.mktemp("state")


def _load(state_dir: Path, dtype: str = "auto", model: str = "embedded") -> Engine:
    options = EngineOptions(model=model, device="cpu", state_dir=state_dir, dtype=dtype)
    return load_engine("torch", options)


@pytest.fixture(scope="module")
def engine(state_dir: Path) -> Engine:
    """The embedded model in its own dtype."""
    return _load(state_dir)


def _config(
    batch_size: int = 32, seq_len: int = SEQ_LEN, block_hash: str = "block", key: str = "key"
) -> RoundSpec:
    return make_spec(block_hash=block_hash, public_key=key, batch_size=batch_size, seq_len=seq_len)


def _many(engine: Engine, config: RoundSpec, count: int) -> list[float]:
    """Compute the distances of nonces 0 … count-1."""
    return [value for batch in batches_of(config, range(count)) for value in engine.values(batch)]


def _inputs(engine: TorchEngine, config: RoundSpec, nonces: range) -> torch.Tensor:
    dtype = {"bfloat16": torch.bfloat16, "float32": torch.float32}[engine.info.dtype]
    dim = engine.info.hidden_size
    return generate_inputs(
        config.block_hash, config.public_key, nonces, dim, config.seq_len, "cpu", dtype
    )


def test_the_engine_says_what_it_is(engine: Engine) -> None:
    """Everything a worker tells the pool."""
    info = engine.info
    assert (info.engine, info.model, info.device) == ("torch", "embedded", "cpu")
    assert (info.dtype, info.hidden_size, info.vocab_size) == ("bfloat16", 128, 1024)
    assert info.max_seq_len == 4096
    assert info.fingerprint == EMBEDDED_FINGERPRINT
    assert info.device_name.endswith(("thread", "threads"))


def test_distances_repeat_bit_for_bit(engine: Engine, state_dir: Path) -> None:
    """In one engine, and in another one on the same device."""
    first = _many(engine, _config(), 64)
    assert _many(engine, _config(), 64) == first
    assert _many(_load(state_dir), _config(), 64) == first


def test_a_distance_does_not_depend_on_its_company(engine: Engine) -> None:
    """In a short batch, or beside other nonces: the same bits."""
    config = _config()
    full = engine.values(Batch.of(config, range(32)))
    for count in (1, 7, 31):
        assert engine.values(Batch.of(config, range(count))) == full[:count]
    others = [nonce if nonce % 3 else 2**40 + nonce for nonce in range(32)]
    mixed = engine.values(Batch.of(config, others))
    assert [mixed[n] for n in range(32) if n % 3] == [full[n] for n in range(32) if n % 3]


def test_a_distance_does_not_depend_on_its_place(engine: Engine) -> None:
    """Bit for bit where this was built; matrix kernels of some processors move the last bit."""
    config = _config()
    full = engine.values(Batch.of(config, range(32)))
    assert engine.values(Batch.of(config, range(31, -1, -1))) == pytest.approx(full[::-1], abs=1e-6)
    alone = [engine.values(Batch.of(config, [nonce]))[0] for nonce in range(0, 32, 5)]
    assert alone == pytest.approx(full[::5], abs=1e-6)


def test_distances_agree_with_one_nonce_at_a_time_in_plain_transformers(
    engine: Engine, state_dir: Path
) -> None:
    """DESIGN.md step by step, batch 1, all positions, within the error of bfloat16."""
    model = AutoModelForCausalLM.from_pretrained(
        ensure_embedded_model(state_dir), dtype=torch.bfloat16, attn_implementation="eager"
    ).eval()
    device = torch.device("cpu")
    expected = []
    for nonce in range(16):
        inputs = generate_inputs("block", "key", [nonce], 128, SEQ_LEN, device, torch.bfloat16)
        with torch.no_grad():
            logits = model(inputs_embeds=inputs).logits[:, -1].float()
        permutations = generate_permutations("block", "key", [nonce], 1024, device)
        target = generate_target("block", 1024, device)
        expected.append(float(compute_distances(logits, permutations, target)))
    assert engine.values(Batch.of(_config(), range(16))) == pytest.approx(expected, abs=2e-3)


def test_bfloat16_and_float32_agree_within_a_percent(engine: Engine, state_dir: Path) -> None:
    """The dtype of a run moves its logits by rounding only."""
    exact = _load(state_dir, "float32")
    assert exact.info.dtype == "float32"
    assert isinstance(engine, TorchEngine)
    assert isinstance(exact, TorchEngine)
    config = _config()
    rough = engine.forward(_inputs(engine, config, range(32)))
    fine = exact.forward(_inputs(exact, config, range(32)))
    assert rough.dtype == fine.dtype == torch.float32
    # One part in 256 a step over four layers: 1 to 2 % of the logits, far less of the distance.
    assert float((rough - fine).norm() / fine.norm()) < 0.03
    assert engine.values(Batch.of(config, range(32))) == pytest.approx(
        exact.values(Batch.of(config, range(32))), rel=0.01
    )


def test_the_hidden_state_is_what_the_output_layer_gets(state_dir: Path) -> None:
    """Some proofs read that instead of logits."""
    options = EngineOptions(model="embedded", device="cpu", state_dir=state_dir, dtype="float32")
    model, info = load_model(options, lambda _line: None)
    engine = TorchEngine(model, info)
    inputs = _inputs(engine, _config(), range(4))
    hidden = engine.forward(inputs, "hidden")
    assert hidden.shape == (4, info.hidden_size)
    assert torch.allclose(model.lm_head(hidden), engine.forward(inputs), atol=1e-4)


def test_distances_spread_like_those_of_random_directions(engine: Engine) -> None:
    """Around sqrt(2), with standard deviation 1/sqrt(2 * vocab) = 0.0221."""
    found = _many(engine, _config(seq_len=8), 1024)
    expected = 1 / math.sqrt(2 * 1024)
    assert fmean(found) == pytest.approx(math.sqrt(2), abs=5 * expected / math.sqrt(1024))
    assert stdev(found) == pytest.approx(expected, rel=0.12)
    assert len(set(found)) > 1000


def test_logits_depend_on_every_position_of_the_input(engine: Engine) -> None:
    """Those of two nonces have nothing to do with each other, and the first token reaches the last."""
    assert isinstance(engine, TorchEngine)
    inputs = _inputs(engine, _config(), range(32))
    logits = torch.nn.functional.normalize(engine.forward(inputs), dim=1)
    cosines = (logits @ logits.T).fill_diagonal_(0)
    # All logits lie in the 128 dimensions of the hidden state: 1/sqrt(128) = 0.088 is chance.
    assert float(cosines.std()) == pytest.approx(0.088, abs=0.02)
    changed = inputs.clone()
    changed[:, 0] = -changed[:, 0]
    moved = torch.nn.functional.normalize(engine.forward(changed), dim=1)
    assert float((moved - logits).norm(dim=1).min()) > 0.01


def test_block_and_key_decide_the_distances(engine: Engine) -> None:
    """Another block or another key is another search."""
    found = [
        engine.values(Batch.of(_config(block_hash=block, key=key), [0, 1]))
        for block, key in (("block", "key"), ("block", "kez"), ("bloc", "kkey"))
    ]
    assert len({value for pair in found for value in pair}) == 6


def test_many_blocks_in_turn_keep_their_own_targets(engine: Engine) -> None:
    """Also after their target has fallen out of the engine's memory."""
    blocks = [f"block {number}" for number in range(12)]

    def run() -> list[list[float]]:
        return [engine.values(Batch.of(_config(4, 8, block), [0, 1])) for block in blocks]

    assert run() == run()


def test_bounds_are_checked_before_anything_runs(engine: Engine) -> None:
    """No nonces is an empty answer; what is too long or too many is refused."""
    assert engine.values(Batch.of(_config(), [])) == []
    with pytest.raises(InvalidRound, match=r"seq_len is 4097; allowed: 1 to 4096"):
        engine.values(Batch.of(_config(seq_len=4097), [0]))
    with pytest.raises(InvalidRound, match="nonces"):
        engine.values(Batch.of(_config(batch_size=2), [0, 1, 2]))
    with pytest.raises(InvalidRound, match="seq_len"):
        engine.warm_up(1, 5000)
    assert len(engine.values(Batch.of(_config(batch_size=1, seq_len=1), [3]))) == 1


def test_logits_that_are_not_finite_come_back_as_nan(state_dir: Path) -> None:
    """Dropping them is the caller's decision."""
    options = EngineOptions(model="embedded", device="cpu", state_dir=state_dir)
    model, info = load_model(options, lambda _line: None)
    with torch.no_grad():
        model.lm_head.weight[5, 5] = math.inf
    broken = TorchEngine(model, info)
    assert all(math.isnan(value) for value in broken.values(Batch.of(_config(4, 8), [0, 1])))


def test_a_closed_engine_says_so(state_dir: Path) -> None:
    """Closing twice is fine; computing after it is not."""
    engine = _load(state_dir)
    engine.warm_up(2, 8)
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.values(Batch.of(_config(), [0]))


def test_loading_reports_its_steps(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """In our words, through the callback, with nothing printed by anyone."""
    lines: list[str] = []
    options = EngineOptions(model="embedded", device="cpu", state_dir=tmp_path)
    load_engine("torch", options, lines.append)
    assert lines[0] == "Loading embedded on cpu"
    assert lines[-1].startswith("Loaded embedded on cpu (")
    assert lines[-1].endswith(" in bfloat16")
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")


def test_a_copy_of_the_folder_is_the_same_model(
    engine: Engine, state_dir: Path, tmp_path: Path
) -> None:
    """Loaded by path, it has the same fingerprint and the same distances."""
    copy = tmp_path / "copy"
    shutil.copytree(ensure_embedded_model(state_dir), copy)
    other = _load(state_dir, model=str(copy))
    assert other.info.model == str(copy)
    assert other.info.fingerprint == engine.info.fingerprint
    assert other.values(Batch.of(_config(), range(4))) == engine.values(
        Batch.of(_config(), range(4))
    )


def test_options_are_checked_before_loading(tmp_path: Path) -> None:
    """Nothing is written for an engine that cannot be."""
    options = EngineOptions(model="embedded", device="cpu", state_dir=tmp_path, tensor_parallel=2)
    with pytest.raises(SettingsError, match="PARALLEL is 2; allowed with engine torch: 1"):
        load_engine("torch", options)
    assert list(tmp_path.iterdir()) == []


def _more_layers(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["num_hidden_layers"] = 5
    config.pop("layer_types", None)
    (folder / "config.json").write_text(json.dumps(config))


def _other_width(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 256}))


def _nonsense_setting(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": "wide"}))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_more_layers, "lacks 11 of its weights, such as model.layers.4."),
        (_other_width, "cannot be loaded by transformers"),
        (_nonsense_setting, "cannot be loaded by transformers"),
    ],
)
def test_weights_that_do_not_fit_the_configuration_are_refused(
    state_dir: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
    words: str,
) -> None:
    """Never filled up with random numbers; one line of message and nothing printed."""
    folder = tmp_path / "model"
    shutil.copytree(ensure_embedded_model(state_dir), folder)
    damage(folder)
    with pytest.raises(ModelNotFound) as caught:
        _load(tmp_path, model=str(folder))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""
