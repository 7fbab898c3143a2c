"""Which GPUs an image is built for: what its tag tells, and no more than that."""

from __future__ import annotations

import pytest

from pocqueue.deploy.facts.image import built_for, computing_image

REPOSITORY = "ghcr.io/product-science/mlnode"


@pytest.mark.parametrize(
    ("tag", "capabilities", "runs"),
    [
        ("3.0.8", ["9.0"], True),
        ("3.0.12-post6", ["8.0", "9.0"], True),
        ("3.0.12-post6", ["8.0", "10.0"], False),
        ("3.0.12", ["12.0"], False),
        ("3.0.12", ["7.0"], None),
        ("3.0.12-blackwell", ["10.0"], True),
        ("3.0.12-post6-blackwell", ["9.0"], None),
        ("3.0.12-post6-blackwell-sm120", ["12.0"], True),
        ("3.0.12-post6-blackwell-sm120", ["10.0"], None),
        ("3.0.14-cu129", ["10.0"], True),
        ("3.0.14-cu129", ["12.0"], None),
        ("3.0.120", ["9.0"], None),
        ("latest", ["9.0"], None),
        ("3.0.12", [], None),
    ],
)
def test_what_a_tag_tells(tag: str, capabilities: list[str], runs: bool | None) -> None:
    """Of all GPUs of a server; a digest behind it changes nothing."""
    for image in (f"{REPOSITORY}:{tag}", f"{REPOSITORY}:{tag}@sha256:{'0' * 64}"):
        assert built_for(image).runs_on(capabilities) is runs


@pytest.mark.parametrize(
    "image", ["", "mlnode", f"{REPOSITORY}@sha256:00", "a.b:5000/other:3.0.12"]
)
def test_an_image_without_such_a_tag_tells_nothing(image: str) -> None:
    """Nor one of another name."""
    assert built_for(image).runs_on(["9.0"]) is None


def test_the_image_that_computes() -> None:
    """By its name; a registry of that name is none."""
    assert computing_image(["mlnode.example/nginx:1", f"{REPOSITORY}:3"]) == f"{REPOSITORY}:3"
    assert computing_image(["nginx:1"]) == ""
