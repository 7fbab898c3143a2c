"""Whole rounds through real processes, when everything goes well."""

from __future__ import annotations

from aiohttp import web

from pocqueue.rounds.spec import RoundState
from tests.support.stack import Stack


def test_two_workers_check_every_nonce_exactly_once(stack: Stack) -> None:
    """The counted nonce indices are 0 to N - 1, and both GPUs had their part."""
    round_id = stack.start(max_nonces=2005)
    assert stack.wait_over(round_id).state is RoundState.COMPLETED
    stack.check_exactly_once(round_id, 2005)
    status = stack.status(round_id)
    assert {entry.queue for entry in stack.backend.store.iter_proofs(status)} == {"gpu0", "gpu1"}


def test_nodes_of_one_network_never_overlap(stack: Stack) -> None:
    """Node 2 of 3 checks the nonces 2, 5, 8, …"""
    round_id = stack.start(max_nonces=100, node_id=2, node_count=3)
    stack.wait_over(round_id)
    assert sorted(stack.nonces(round_id)) == list(range(2, 302, 3))


def test_only_nonces_below_r_target_are_kept(stack: Stack) -> None:
    """The stream has just the valid ones; the counters have both."""
    everything = stack.start(max_nonces=256, block_hash="same block")
    stack.wait_over(everything)
    entries = list(stack.backend.store.iter_proofs(stack.status(everything)))
    dist = {n: d for e in entries for n, d in e.proofs}
    # Between two of them: a distance of another batch may differ in its last bit.
    r_target = sum(sorted(dist.values())[49:51]) / 2
    some = stack.start(max_nonces=256, block_hash="same block", r_target=r_target)
    status = stack.wait_over(some)
    assert (status.checked, status.valid) == (256, 50)
    assert sorted(stack.nonces(some)) == sorted(n for n, d in dist.items() if d < r_target)


def test_two_rounds_share_the_gpus_equally(stack: Stack) -> None:
    """Rounds that run at the same time get the same share of GPU time."""
    rounds = stack.start(), stack.start()
    stack.wait(lambda: min(stack.checked(rounds)) > 0, "both at work")
    before = stack.checked(rounds)
    stack.wait(lambda: sum(stack.checked(rounds)) > sum(before) + 3000, "3,000 nonces")
    first, second = (now - then for now, then in zip(stack.checked(rounds), before, strict=True))
    assert max(first, second) / min(first, second) < 1.25


def test_a_round_ends_at_its_deadline(stack: Stack) -> None:
    """Nothing is counted after the deadline, and what was counted before it is there."""
    round_id = stack.start_that_expires(1, 2.5)
    status = stack.wait_over(round_id)
    assert status.state is RoundState.EXPIRED
    stamps = [
        int(entry.cursor.partition("-")[0]) for entry in stack.backend.store.iter_proofs(status)
    ]
    assert status.created_ms <= min(stamps) <= max(stamps) < status.deadline_ms
    nonces = stack.nonces(round_id)
    assert len(nonces) == len(set(nonces)) == status.checked == status.valid
    assert sum(b - a for a, b in stack.backend.store.coverage(round_id)) == status.checked


def test_stop_ends_a_round_at_once(stack: Stack) -> None:
    """After stop nothing more is counted, and the GPUs are free for the next round."""
    round_id = stack.start()
    stack.wait_checked(round_id, 100)
    stack.backend.store.close(round_id, RoundState.STOPPED, "test")
    stopped = stack.status(round_id)
    following = stack.start(max_nonces=64)
    assert stack.wait_over(following).state is RoundState.COMPLETED
    assert stack.status(round_id).checked == stopped.checked
    assert len(stack.nonces(round_id)) == stopped.checked


async def test_callbacks_deliver_every_valid_nonce_once(stack: Stack) -> None:
    """A receiver that fails twice in the beginning still gets each valid nonce exactly once."""
    received: list[int] = []
    failures = iter([500, 503])

    async def generated(request: web.Request) -> web.Response:
        if code := next(failures, None):
            return web.Response(status=code)
        body = await request.json()
        assert body["public_key"] == "key"
        received.extend(body["nonces"])
        return web.Response()

    import asyncio

    receiver = web.Application()
    receiver.router.add_post("/hook/generated", generated)
    runner = web.AppRunner(receiver)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        port = runner.addresses[0][1]
        url = f"http://127.0.0.1:{port}/hook"
        round_id = stack.start(max_nonces=400, callback_url=url)
        await asyncio.to_thread(stack.wait, lambda: len(received) >= 400, "400 nonces")
        await asyncio.to_thread(
            stack.wait,
            lambda: stack.backend.callbacks.progress(round_id).delivered == 400,
            "the last confirmation",
        )
        assert sorted(received) == list(range(400))
    finally:
        await runner.cleanup()
