"""Proofs files: the same content as ever, written and read, and refused once it is not whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pocqueue.errors import ProofFileError
from pocqueue.poc.proofs import Proofs
from pocqueue.rounds.proof_file import ProofFile, digest
from pocqueue.rounds.records import ProofEntry
from pocqueue.rounds.spec import RoundState
from tests.support.factories import NOW_MS, make_info, make_spec, make_status

#: Written by the first version of this format.
GOLDEN = (Path(__file__).parents[1] / "data" / "proofs_1.json").read_bytes()


def make_file() -> ProofFile:
    """Make the file that the golden one is of."""
    spec = make_spec(
        block_hash="блок",
        node_id=2,
        node_count=5,
        callback_url="http://secret/",
        customer="main",
        share=2.0,
        model_dtype="float32",
        model_runtime="twin",
        max_nonces=1000,
    )
    status = make_status(
        spec=spec,
        state=RoundState.COMPLETED,
        ended_ms=NOW_MS + 12_345,
        now_ms=NOW_MS + 20_000,
        checked=100,
        valid=3,
        nonfinite=1,
    )
    entries = [
        ProofEntry("1-1", "gpu0", Proofs([12, 2], [0.5, 1e-07])),
        ProofEntry("1-2", "gpu1", Proofs([7], [0.1 + 0.2])),
    ]
    return ProofFile.from_round(status, make_info(), entries)


def test_a_file_is_what_it_always_was(tmp_path: Path) -> None:
    """The same fields and values, hence the same digest; nothing of whoever asked for the round."""
    path = tmp_path / "proofs.json"
    make_file().write(path)
    written = path.read_bytes()
    assert json.loads(written) == json.loads(GOLDEN)
    assert b"secret" not in written
    assert path.stat().st_mode & 0o777 == 0o644
    assert ProofFile.read(path) == ProofFile.parse(GOLDEN, "golden")


def test_a_file_that_was_read_is_the_one_that_was_written() -> None:
    """To the last bit, and as often as one likes."""
    file = make_file()
    read = ProofFile.parse(file.to_bytes(), "a file")
    assert read == file
    assert read.to_bytes() == file.to_bytes()


def test_given_nonces_are_in_the_file() -> None:
    """A reader needs them to know which nonces can be in it."""
    made = make_file()
    spec = make_spec(given_nonces=(7, 2, 12, 100), asked_by="somebody's business", window_s=9.0)
    file = replace(made, spec=spec, result=made.result.model_copy(update={"checked": 4}))
    content = json.loads(file.to_bytes())
    assert content["round"]["given_nonces"] == [7, 2, 12, 100]
    content["proofs"] |= {name: content["round"][name] for name in ("block_hash", "node_id")}
    content["sha256"] = digest(content)
    read = ProofFile.parse(json.dumps(content).encode(), "a file")
    assert read.spec == spec.model_copy(update={"asked_by": None})
    content["proofs"]["nonces"][0] = 3
    content["sha256"] = digest(content)
    with pytest.raises(ProofFileError, match="nonce is 3; allowed: one of those"):
        ProofFile.parse(json.dumps(content).encode(), "a file")


def changed(change: Callable[[dict[str, Any]], object], *, sign: bool = True) -> bytes:
    content = json.loads(GOLDEN)
    change(content)
    if sign:
        content["sha256"] = digest(content)
    return json.dumps(content).encode()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (GOLDEN[:-40], "is cut or no JSON"),
        (b"\xff" + GOLDEN, "is not UTF-8 text"),
        (b"[" * 100_000, "nested too deeply"),
        (GOLDEN.replace(b"0.5]", b"NaN]"), "NaN is no JSON"),
        (GOLDEN.replace(b"0.5]", b"1e999]"), "holds a number that is not finite"),
        (
            GOLDEN.replace(b'"nonces"', b'"nonces": [1], "nonces"'),
            "the field 'nonces' is there twice",
        ),
        (b"{}", "is no proofs file: give a file"),
        (b"[]", "is no proofs file: give a file"),
        (changed(lambda c: c.update(format="pocqueue-proofs/2")), "has format 'pocqueue-proofs/2'"),
        (changed(lambda c: c["proofs"]["dist"].reverse(), sign=False), "was edited or damaged"),
        (changed(lambda c: c["round"].pop("seq_len")), "has no round.seq_len"),
        (changed(lambda c: c["round"].update(r_target=0)), "r_target is 0; allowed: a number"),
        (changed(lambda c: c["round"].update(scheme="chance")), "scheme is 'chance'"),
        (changed(lambda c: c["model"].update(fingerprint="x")), "is wrong at model.fingerprint"),
        (changed(lambda c: c["proofs"].update(dist=["x"] * 3)), "is wrong at proofs.dist.0"),
        (changed(lambda c: c["proofs"].update(node_id=3)), "has proofs of node_id 3"),
        (changed(lambda c: c["proofs"].update(dist=[0.5])), "proofs.dist is 'a list of 1'"),
        (
            changed(lambda c: c["proofs"]["dist"].__setitem__(1, 2.5)),
            "the distance of nonce 7 is 2.5",
        ),
        (changed(lambda c: c["proofs"]["nonces"].__setitem__(1, 2)), "each nonce once"),
        (
            changed(lambda c: c["proofs"]["nonces"].__setitem__(1, 8)),
            "nonce is 8; allowed: a nonce of",
        ),
        (changed(lambda c: c["proofs"]["nonces"].__setitem__(1, 5002)), "below max_nonces, 1000"),
        (changed(lambda c: c["result"].update(valid=2)), "has 3 proofs but says 2 of 100"),
    ],
)
def test_a_file_that_is_not_whole_is_refused(data: bytes, said: str) -> None:
    """One sentence that names the file, what is wrong and what to do."""
    with pytest.raises(ProofFileError) as caught:
        ProofFile.parse(data, "x.json")
    message = str(caught.value)
    assert message.startswith("Proofs file x.json ")
    assert said in message
    assert message.endswith(".")


def test_where_nothing_can_be_read_or_written(tmp_path: Path) -> None:
    """A path that is none is said to be none."""
    for path in (tmp_path, tmp_path / "missing.json"):
        with pytest.raises(ProofFileError, match="Proofs file"):
            ProofFile.read(path)
    for path in (tmp_path, tmp_path / "no" / "folder.json"):
        with pytest.raises(ProofFileError, match="Proofs cannot be written"):
            make_file().write(path)
