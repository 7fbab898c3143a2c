"""What a client may ask for: named keys, numbers within bounds, whole on the chain."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from pocqueue.pouw.chain.tasks import Privacy, TaskModel, check_data, parse_requirements
from pocqueue.pouw.errors import InvalidTask
from pocqueue.pouw.slots.task import Noise
from pocqueue.pouw.wire.codec import decode, encode
from pocqueue.pouw.wire.data import DataShape

OWN = "0x" + "a" * 64
VECTORS = DataShape(features=10, num_classes=3, num_train=600, side=0, num_buckets=0)
PIECES = DataShape(features=5, num_classes=2, num_train=100, side=0, num_buckets=50)
SEED = {"architecture": "CNN", "min_accuracy": 0.9, "max_epochs": 100}


def test_a_client_says_what_it_cares_for() -> None:
    """The rest is the model's."""
    model = parse_requirements(SEED, "digits")
    assert model == TaskModel("CNN", (16, 32, 64), 900_000, 100, 64, 300_000, 20_000, 1)
    spec = model.spec(b"i" * 32, "digits")
    assert (spec.learning_rate, spec.tau, spec.id) == (0.3, 0.02, b"i" * 32)


def test_words_are_for_bags() -> None:
    """Where no architecture is given, it is the data's."""
    model = parse_requirements({"hidden": [16], "learning_rate": 2}, "words")
    assert (model.architecture, model.hidden, model.tau) == ("BAG", (16,), 2_000)
    assert model.learning_rate == 2_000_000


def test_a_clients_data_choose_the_architecture() -> None:
    """Whole numbers are embedded, all else is not."""
    assert parse_requirements({}, OWN, VECTORS).architecture == "MLP"
    assert parse_requirements({}, OWN, PIECES).architecture == "BAG"


PRIVACY = {"noise_multiplier": 16, "max_norm": 0.5, "epsilon": 12, "delta": 1e-6}


def test_a_task_may_be_private() -> None:
    """Its epsilon says how many laps it may have at most, if all their slots are full."""
    model = parse_requirements({"privacy": PRIVACY, "max_epochs": 33}, "digits")
    assert model.privacy == Privacy(16_000_000, 500_000, 12_000_000, 1_000_000, 4)
    assert model.privacy.max_laps == 33  # 1,063 messages
    assert model.spec(bytes(32), "digits").noise == Noise(16.0, 0.5, 4)
    assert decode(encode(model), TaskModel) == model
    more = {**PRIVACY, "max_messages": 1}
    assert parse_requirements({"privacy": more, "max_epochs": 132}, "digits").privacy is not None
    with pytest.raises(InvalidTask, match="max_epochs is 34; the privacy's epsilon allows 33 laps"):
        parse_requirements({"privacy": PRIVACY, "max_epochs": 34}, "digits")


@pytest.mark.parametrize(
    ("task_type", "data", "shape", "reason"),
    [
        ("vision", OWN, VECTORS, "task_type is 'vision'; allowed: image_classification, "),
        ("nlp", "digits", None, "allowed for nlp: words"),
        ("classification", OWN, None, "allowed for classification: digits"),
        ("classification", OWN.upper(), VECTORS, "allowed: 0x and 64 digits"),
        ("nlp", OWN, VECTORS, "is whole numbers below num_buckets; these data are not"),
        ("classification", OWN, PIECES, "is float32; these data are not"),
        ("image_classification", OWN, VECTORS, "no images; take the task type classification"),
    ],
)
def test_a_type_of_task_is_about_data_of_its_kind(
    task_type: str, data: str, shape: DataShape | None, reason: str
) -> None:
    """Built in or the client's own."""
    check_data("classification", "digits", None)
    check_data("classification", OWN, VECTORS)
    check_data("text_classification", OWN, PIECES)
    with pytest.raises(InvalidTask, match=reason):
        check_data(task_type, data, shape)


@pytest.mark.parametrize(
    ("requirements", "reason"),
    [
        ({"epochs": 3}, "'epochs'; known are: architecture, hidden, min_accuracy, max_epochs"),
        ({"architecture": "RNN"}, "'RNN'; allowed: MLP, CNN, BAG"),
        ({"architecture": ["CNN"]}, "allowed: MLP, CNN, BAG"),
        ({"architecture": "BAG"}, "BAG trains on words, not on digits"),
        ({"hidden": 64}, "hidden is 64; allowed: a list"),
        ({"hidden": [4096] * 6}, "weights"),
        ({"hidden": [0]}, "1 to 4096"),
        ({"min_accuracy": 1.1}, "min_accuracy is 1.1; allowed: a number from 0.000001 to 1 "),
        ({"min_accuracy": 0}, "0.000001 to 1"),
        ({"min_accuracy": 0.1234567}, "at most 6 decimals"),
        ({"tau": float("nan")}, "tau is nan"),
        ({"tau": 1.000001}, "tau is 1.000001; allowed: a number from 0.000001 to 1 "),
        ({"max_epochs": 2.5}, "max_epochs is 2.5; allowed: a whole number from 1 to 1,000"),
        ({"max_epochs": True}, "max_epochs is True"),
        ({"batch_size": "64"}, "batch_size is '64'"),
        ({"min_miners": 17}, "1 to 16"),
        (
            {"privacy": 3},
            "privacy is 3; allowed: a mapping with noise_multiplier, max_norm, epsilon",
        ),
        ({"privacy": {"sigma": 3}}, "allowed: a mapping with noise_multiplier, max_norm, epsilon"),
        ({"privacy": {"epsilon": 3}}, "no noise_multiplier and no max_norm and no delta; it needs"),
        ({"privacy": PRIVACY, "min_miners": 5, "max_epochs": 1}, "max_messages allows 4"),
        ({"privacy": {**PRIVACY, "delta": 0.2}}, "allowed: a number from 0.000000000001 to 0.1 "),
        (
            {"privacy": {**PRIVACY, "epsilon": 0}},
            "epsilon is 0; allowed: a number from 0.001 to 100 ",
        ),
        ({"privacy": {**PRIVACY, "max_messages": 17}}, "a whole number from 1 to 16"),
        ({"privacy": {**PRIVACY, "noise_multiplier": 0.1}, "max_epochs": 1}, "allows 0 laps"),
    ],
)
def test_what_is_not_allowed_is_said(requirements: dict[str, Any], reason: str) -> None:
    """With its name, its value and what is."""
    with pytest.raises(InvalidTask, match=reason):
        parse_requirements(requirements, "digits")


ANYTHING = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["CNN", "1", ""])
    | st.lists(st.integers())
    | st.dictionaries(
        st.sampled_from(Privacy.__struct_fields__), st.floats(0.1, 16) | st.integers(1, 16)
    )
)


@settings(max_examples=60)
@given(st.dictionaries(st.sampled_from(TaskModel.__struct_fields__), ANYTHING))
def test_whatever_is_asked_for_fits_or_is_refused(requirements: dict[str, Any]) -> None:
    """A model that is taken has canonical bytes within the format's bounds."""
    try:
        model = parse_requirements(requirements, "digits")
    except InvalidTask:
        return
    assert decode(encode(model), TaskModel) == model
