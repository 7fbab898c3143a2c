"""What a dry run finds: of each step how it stands, and what would be done; nothing is."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pocqueue.deploy.engine import Host, NotYet, Plan, Step
from pocqueue.deploy.errors import DeployError, StepFailed, UnsafeDisk
from pocqueue.deploy.facts.parts import UnexpectedAnswer


@dataclass(frozen=True, slots=True)
class Planned:
    """What a dry run found of one step.

    Attributes:
        state: ``skip``, ``change``, ``stop`` (it must not be done) or ``unknown``.
        told: how it stands, what is going to change, why not, or until when.
        plan: of a change.
    """

    step: Step
    state: str
    told: str
    plan: Plan | None = None


async def plan_steps(host: Host, steps: Sequence[Step]) -> list[Planned]:
    """Look at every step, at all of them at once, and change nothing.

    Raises:
        DeployError: the server cannot be looked at.
    """
    looks = await asyncio.gather(*(step.look(host) for step in steps), return_exceptions=True)
    found = [_planned(step, look) for step, look in zip(steps, looks, strict=True)]
    if any(item.state == "stop" for item in found):
        # What cannot be read now may be read by the run.
        host.memory.clear()
    return found


def _planned(step: Step, facts: Any) -> Planned:
    """Return what is to be done.

    Args:
        step: that was looked at.
        facts: what is so, or the error that came of the look.
    """
    if isinstance(facts, NotYet):
        return Planned(step, "unknown", str(facts))
    if isinstance(facts, StepFailed | UnsafeDisk | UnexpectedAnswer):
        return Planned(step, "stop", str(facts))
    if isinstance(facts, BaseException):
        raise facts
    if step.is_done(facts):
        return Planned(step, "skip", step.told(facts))
    try:
        plan = step.plan(facts)
    except DeployError as exc:
        return Planned(step, "stop", str(exc))
    return Planned(step, "change", plan.what, plan)
