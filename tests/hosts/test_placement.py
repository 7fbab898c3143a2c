"""Which node gets a job."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, strategies as st

from pocqueue.hosts.placement import Candidate, Need, Place, place
from pocqueue.hosts.records import Gpu


def candidate(node_id: str = "n", *, num_gpus: int = 1, **changes: Any) -> Candidate:
    """Return a node that takes everything."""
    fields: dict[str, Any] = {
        "node_id": node_id,
        "wallet": f"wallet of {node_id}",
        "address": f"address of {node_id}",
        "protocol": 2,
        "kinds": ("test", "command", "container"),
        "gpus": tuple(Gpu(f"{node_id}-{n}", vram_mib=24_000) for n in range(num_gpus)),
        "is_known": True,
    }
    return Candidate(**fields | changes)


def test_a_job_that_has_failed_goes_to_somebody_else() -> None:
    """Who can do it and is busy is waited for; where nobody else can, the same owner tries again."""
    need = Need("job", "command", gpus=1)
    failer = candidate("a", is_failers=True, lost_it=True)
    assert chosen(need, failer, candidate("b", score=0.1)) == "b"
    assert place(need, [failer, candidate("b", num_open=1)]) == (
        "All nodes that could do it are busy."
    )
    assert chosen(need, failer, candidate("b", num_gpus=0)) == "a"


def chosen(need: Need, *nodes: Candidate) -> str:
    """Return the node that gets it."""
    found = place(need, nodes)
    assert isinstance(found, Place), found
    return found.node_id


@pytest.mark.parametrize(
    ("changes", "need", "why"),
    [
        ({}, {"only_node": "other"}, "The node that it is for is not connected."),
        ({"kinds": ("test",)}, {}, "No connected node takes jobs of kind command."),
        ({"protocol": 1}, {"has_text": False}, "No connected node takes jobs of kind command."),
        ({"proven": False}, {}, "Only nodes of wallets that have not signed in are connected."),
        ({"refused_it": True}, {}, "The nodes that could do it have refused it; its log says why."),
        ({}, {"gpus": 2}, "No connected node has 2 healthy GPUs."),
        (
            {},
            {"gpus": 1, "vram_mib": 80_000},
            "No connected node has 1 healthy GPU with 80,000 MiB each.",
        ),
        ({"num_open": 1}, {}, "All nodes that could do it are busy."),
        (
            {"num_gpus": 2, "taken": frozenset({"n-0"}), "num_open": 1},
            {"gpus": 2},
            "All nodes that could do it are busy.",
        ),
    ],
)
def test_why_a_job_waits(changes: dict[str, Any], need: dict[str, Any], why: str) -> None:
    """In one sentence for whoever submitted it; with the change taken back it does not wait."""
    assert place(Need("j", "command", **need), [candidate(**changes)]) == why
    assert place(Need("j", "command"), []) == "No node is connected that takes jobs."


def test_the_order_of_nodes() -> None:
    """Not who lost it, the better reputation, the less loaded, the wallet with less work."""
    need = Need("j", "command")
    best = candidate("best")
    for worse in (
        candidate("worse", lost_it=True, score=0.9),
        candidate("worse", score=0.3),
        candidate("worse", num_gpus=4, num_open=1),
    ):
        assert chosen(need, worse, best) == chosen(need, best, worse) == "best"
    more = candidate("more", wallet="rich", num_gpus=2, num_open=1)
    rich = candidate("rich", wallet="rich")
    assert chosen(need, more, rich, best) == "best"


def test_chance_spreads_jobs_over_equals() -> None:
    """A hundred jobs on ten nodes that are alike: each gets some, and always the same ones."""
    nodes = [candidate(f"n{n}") for n in range(10)]
    got = Counter(chosen(Need(f"j{n}", "command"), *nodes) for n in range(100))
    assert set(got) == {node.node_id for node in nodes}
    assert got == Counter(chosen(Need(f"j{n}", "command"), *nodes[::-1]) for n in range(100))


def test_the_smallest_gpus_that_do() -> None:
    """The large ones are kept for jobs that need them; taken ones are left alone."""
    gpus = tuple(Gpu(f"g{gib}", vram_mib=1000 * gib) for gib in (80, 24, 48, 12, 16))
    node = candidate(gpus=gpus, taken=frozenset({"g24"}), num_open=1)
    found = place(Need("j", "command", gpus=2, vram_mib=14_000), [node])
    assert found == Place("n", ("g16", "g48"))


def test_agents_of_today_do_one_job_at_a_time() -> None:
    """However many GPUs they have."""
    node = candidate(num_gpus=8, protocol=1)
    assert chosen(Need("j", "command"), node) == "n"
    busy = replace(node, num_open=1)
    assert place(Need("j", "command"), [busy]) == "All nodes that could do it are busy."


@pytest.mark.parametrize("same", [{"wallet": "sybil"}, {"address": "192.0.2.66"}])
def test_two_hundred_machines_of_one_stranger_get_a_quarter(same: dict[str, Any]) -> None:
    """By wallet or by network address, as soon as there are others; the rest waits for these."""
    nodes = [candidate(f"s{n}", is_known=False, **same) for n in range(200)]
    nodes += [candidate(f"h{n}", is_known=False) for n in range(20)]
    count = Counter[str]()
    for n in range(100):
        found = place(Need(f"j{n}", "command"), nodes)
        if isinstance(found, str):
            assert found == "It waits for nodes with a reputation, or of other owners."
            break
        count[found.node_id[0]] += 1
        nodes = [
            replace(one, num_open=one.num_open + (one.node_id == found.node_id)) for one in nodes
        ]
    assert count["h"] == 20
    assert count["s"] <= sum(count.values()) / 4 + 1


def test_a_single_owner_is_not_held_back() -> None:
    """Where there is nobody else, all of a stranger's nodes work; test jobs always run."""
    nodes = [candidate(f"s{n}", is_known=False, wallet="w", address="a") for n in range(5)]
    for n in range(5):
        found = place(Need(f"j{n}", "command"), nodes)
        assert isinstance(found, Place)
        nodes = [replace(o, num_open=o.num_open + (o.node_id == found.node_id)) for o in nodes]
    crowd = [candidate(f"s{n}", is_known=False, wallet="w", num_open=n > 0) for n in range(50)]
    test = Need("j", "test", only_node="s0")
    assert chosen(test, candidate("other"), *crowd) == "s0"


GPU_SIZES = st.lists(st.integers(0, 3), max_size=4)


@given(
    st.lists(
        st.tuples(
            GPU_SIZES, st.integers(0, 3), st.integers(0, 4), st.integers(1, 2), st.booleans()
        ),
        max_size=6,
    ),
    st.integers(0, 3),
    st.integers(0, 3),
)
def test_whatever_there_is_a_place_is_a_good_one(
    rows: list[tuple[list[int], int, int, int, bool]], num_gpus: int, vram_gb: int
) -> None:
    """It has the GPUs, none of them is taken or too small, and the node has a slot left; else a sentence."""
    nodes = []
    for n, (sizes, num_taken, num_open, protocol, proven) in enumerate(rows):
        gpus = tuple(Gpu(f"{n}-{k}", vram_mib=1000 * size) for k, size in enumerate(sizes))
        taken = frozenset(gpu.uuid for gpu in gpus[:num_taken])
        nodes.append(
            candidate(
                f"n{n}",
                gpus=gpus,
                taken=taken,
                num_open=num_open,
                protocol=protocol,
                proven=proven,
            )
        )
    found = place(Need("j", "command", num_gpus, 1000 * vram_gb), nodes)
    if isinstance(found, str):
        assert found.endswith(".")
        return
    [node] = [node for node in nodes if node.node_id == found.node_id]
    assert node.proven
    assert node.num_open < node.slots
    assert len(set(found.gpu_uuids)) == num_gpus
    assert not set(found.gpu_uuids) & node.taken
    sizes_by_uuid = {gpu.uuid: gpu.vram_mib or 0 for gpu in node.gpus}
    assert all(sizes_by_uuid[uuid] >= 1000 * vram_gb for uuid in found.gpu_uuids)
