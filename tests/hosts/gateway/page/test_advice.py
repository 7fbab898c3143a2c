"""What is said of a node: reasons, and what its owner does about them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pocqueue.hosts.gateway.page.advice import notes_of
from pocqueue.hosts.records import Gpu, Node, NodeStatus

NODE = Node(
    *("n", "w", True, "active", None, None, "rig", "Debian", "key", 2, "0.1", "bubblewrap"),
    *(("test", "command"), "192.0.2.1", 0, 0, "here", "s"),
    gpus=(Gpu("GPU-a"), Gpu("GPU-b")),
)


def said(status: NodeStatus, test: list[Any] | None = None, **changes: Any) -> list[str]:
    """Return each note as one line."""
    node = replace(NODE, **changes)
    notes = notes_of(node, status, test or [], "12:30 UTC", is_owner=True)
    return [" ".join((one.tone, one.gpu, one.about, one.what, one.remedy)) for one in notes]


@pytest.mark.parametrize(
    ("status", "changes", "words"),
    [
        ("online", {}, ()),
        ("busy", {}, ()),
        ("banned", {"state": "banned"}, ("bad", "for good", "forfeited")),
        ("offline", {}, ("bad", "pocqueue agent", "firewall")),
        ("offline", {"key": None, "protocol": 1}, ("bad", "no key", "new token")),
        ("paused", {}, ("warn", "three jobs", "until 12:30 UTC")),
        ("draining", {"state": "draining", "drained_by": "w"}, ("info", "Resume")),
        (
            "draining",
            {"state": "draining", "drained_by": "admin"},
            ("warn", "operator", "nobody else can take that back"),
        ),
        ("online", {"proven": False}, ("warn", "held", "adopt", "revoke")),
        ("online", {"isolation": "none"}, ("bad", "test job alone", "bubblewrap")),
        ("online", {"kinds": ()}, ("info", "told to end")),
    ],
)
def test_each_state_says_what_to_do(
    status: NodeStatus, changes: dict[str, Any], words: tuple[str, ...]
) -> None:
    """One note, with the reason and the remedy; none where all is well."""
    found = said(status, **changes)
    assert len(found) == bool(words)
    assert all(word in found[0] for word in words)


def test_a_self_test_names_its_gpu_and_its_remedy() -> None:
    """What failed is first; what passed is not there; rows of another version are text as they are."""
    rows = [
        {"name": "gpu", "state": "pass", "gpu": "GPU-a"},
        {"name": "gpu_free", "state": "warn", "measured": "1 MiB free", "gpu": "GPU-a"},
        {
            "name": "gpu_memory",
            "state": "fail",
            "measured": "uncorrected errors: 3",
            "wanted": "none",
            "remedy": "reset it",
            "gpu": "GPU-b",
        },
        {"name": "disk_free", "state": "fail"},
        {"state": "skip"},
    ]
    assert said("online", rows) == [
        "bad GPU 1 gpu_memory uncorrected errors: 3; wanted: none reset it",
        "bad  disk_free failed ",
        "warn GPU 0 gpu_free 1 MiB free ",
    ]
    sandbox = [{"name": "sandbox", "state": "fail", "measured": "none found"}]
    assert said("online", sandbox, isolation="none") == ["bad  sandbox none found "]
