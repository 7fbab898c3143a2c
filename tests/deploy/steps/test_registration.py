"""The registration: sent once, and called done by the network's own answer alone."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from pocqueue.deploy.errors import DeployError, StepFailed
from pocqueue.deploy.facts.account import account_address
from pocqueue.deploy.facts.parts import UnexpectedAnswer
from pocqueue.deploy.remote_job import Job
from pocqueue.deploy.steps.registration import Registration, RegistrationFile, participant_url
from tests.deploy.server import Fault
from tests.deploy.steps.on_disk import OnDisk, kinds, on_disk

#: What upstream's API says of an account that the chain does not have: with status 500.
UNKNOWN = '{"error":"rpc error: code = NotFound desc = account not found"}\n'
STEPS = (Registration(tries=2, every_s=0.01), RegistrationFile())


def url(here: OnDisk) -> str:
    """Return where the network is asked."""
    return participant_url(here.host.conf.seed_api_url, here.host.conf.account_pubkey)


def is_new(here: OnDisk) -> None:
    """Have the repository, and a network that does not know the node yet."""
    here.has_project()
    here.fakes.set("participant", account_address(here.host.conf.account_pubkey))
    here.fakes.answer(url(here), UNKNOWN, status=500)


def sent(here: OnDisk) -> list[str]:
    """Return the requests that arrived."""
    return here.fakes.state("registered").splitlines()


async def test_a_node_is_registered_once(tmp_path: Path) -> None:
    """What was said is in registration.txt; a second run changes nothing."""
    async with on_disk(tmp_path) as here:
        is_new(here)
        plan = await here.plan(STEPS[0])
        conf = here.host.conf
        assert plan.is_final
        assert plan.what == (
            f"inferenced register-new-participant {conf.public_url} {conf.account_pubkey} --node-address {conf.seed_api_url}"
        )
        lines = await here.run(*STEPS)
        address = account_address(conf.account_pubkey)
        assert f"[OK] registration: {address} is known to {conf.seed_api_url}" in lines
        file = conf.folder / "registration.txt"
        assert "Participant registration successful." in file.read_text()
        assert conf.account_pubkey in file.read_text()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert kinds(await here.later().run(*STEPS)) == {"[INFO]", "[CHECK]", "[SKIP]"}
        assert sent(here) == [f"{conf.public_url} {conf.account_pubkey}"]


async def test_a_request_that_is_late_is_not_repeated(tmp_path: Path) -> None:
    """It arrived, though its answer did not: the network is asked."""
    async with on_disk(tmp_path) as here:
        is_new(here)
        here.fakes.set("register", "late")
        lines = await here.run(*STEPS)
        assert "[OUTPUT] the network knows it" in lines
        assert len(sent(here)) == 1
        assert "deadline exceeded" in (here.host.conf.folder / "registration.txt").read_text()


async def test_a_request_that_is_refused(tmp_path: Path) -> None:
    """It is no registration, whatever it printed; a later run asks again, and sends it again."""
    async with on_disk(tmp_path) as here:
        is_new(here)
        here.fakes.set("register", "refuse")
        with pytest.raises(StepFailed) as caught:
            await here.run(*STEPS)
        assert caught.value.exit_code_there == 3
        assert "failed to register participant: HTTP 500" in "\n".join(caught.value.tail)
        assert not (here.host.conf.folder / "registration.txt").exists()
        here.fakes.unset("register")
        await here.later().run(*STEPS)
        assert len(sent(here)) == 1


async def test_another_key_of_this_account(tmp_path: Path) -> None:
    """Nothing is sent."""
    async with on_disk(tmp_path) as here:
        is_new(here)
        other = "ApyZAVGwm2gP8ojw8bbvDb1+TgrkyAkZb1UcM4qCbnP4"
        here.fakes.answer(url(here), json.dumps({"pubkey": other}))
        with pytest.raises(StepFailed, match=f"has the key {other.replace('+', '.')}"):
            await here.run(*STEPS)
        assert sent(here) == []


async def test_an_account_that_was_known_before(tmp_path: Path) -> None:
    """By another machine, or for something else: nothing is sent, and a person is to look."""
    async with on_disk(tmp_path) as here:
        is_new(here)
        here.fakes.answer(url(here), json.dumps({"pubkey": here.host.conf.account_pubkey}))
        lines = await here.run(*STEPS)
        assert [line for line in lines if "was known before" in line and line.startswith("[WARN]")]
        assert sent(here) == []
        assert (here.host.conf.folder / "registration.txt").exists()


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (502, "bad gateway"),
        (200, "<html>"),
        (200, '{"pubkey":"AAAA"}'),
        (500, '{"error":"rpc error: code = Unavailable desc = connection refused"}'),
        (502, UNKNOWN),
        (0, ""),
    ],
)
async def test_what_is_not_known_is_not_done(status: int, body: str, tmp_path: Path) -> None:
    """An answer that is none leaves it open: nothing is sent."""
    async with on_disk(tmp_path) as here:
        is_new(here)
        if status:
            here.fakes.answer(url(here), body, status=status)
        else:
            for file in (here.fakes.folder / "set" / "http").iterdir():
                file.unlink()
        with pytest.raises(DeployError) as caught:
            await here.run(*STEPS)
        assert isinstance(caught.value, UnexpectedAnswer if status else StepFailed)
        if isinstance(caught.value, StepFailed):
            assert any("curl: (" in line for line in caught.value.tail)
        assert sent(here) == []


@pytest.mark.parametrize(
    ("answer", "num_sent"),
    [
        ((500, UNKNOWN), 1),
        ((404, '{"error":"account not found"}'), 1),
        ((200, '{"pubkey":""}'), 1),
        ((500, '{"error":"rpc error: code = Unknown desc = nil pointer"}'), 0),
        ((502, UNKNOWN), 0),
        ((200, "<html>"), 0),
        (None, 0),
    ],
)
async def test_the_network_is_asked_once_more_before_it_is_sent(
    answer: tuple[int, str] | None, num_sent: int, tmp_path: Path
) -> None:
    """After the look: what leaves it open then sends nothing, too."""
    async with on_disk(tmp_path) as here:
        is_new(here)
        [job] = (await here.plan(STEPS[0])).actions
        assert isinstance(job, Job)
        if answer:
            here.fakes.answer(url(here), answer[1], status=answer[0])
        else:
            for file in (here.fakes.folder / "set" / "http").iterdir():
                file.unlink()
        said = await here.host.connection.run(job.command)
        assert (said.exit_code, len(sent(here))) == (0 if num_sent else 4, num_sent)
        assert ("nothing was sent" in said.stdout) == (not num_sent)


@pytest.mark.parametrize("pattern", [r"job_start .*4-register", r"job_look .*4-register"])
@pytest.mark.parametrize("drop", ["before", "during", "after"])
async def test_a_connection_that_breaks(pattern: str, drop: str, tmp_path: Path) -> None:
    """One request, however often."""
    async with on_disk(tmp_path) as here:
        is_new(here)
        fault = here.server.fault(Fault(pattern, drop=drop))  # type: ignore[arg-type]
        await here.run_on(*STEPS)
        assert fault.times == 0
        assert len(sent(here)) == 1
        assert "successful" in (here.host.conf.folder / "registration.txt").read_text()
