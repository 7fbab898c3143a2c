"""What a dry run finds: of each step how it stands, and what would be done; nothing is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    """Look at every step, and change nothing.

    Raises:
        DeployError: the server cannot be looked at.
    """
    found = []
    for step in steps:
        try:
            facts = await step.look(host)
        except NotYet as exc:
            found.append(Planned(step, "unknown", str(exc)))
            continue
        except (StepFailed, UnsafeDisk, UnexpectedAnswer) as exc:
            found.append(Planned(step, "stop", str(exc)))
            continue
        if step.is_done(facts):
            found.append(Planned(step, "skip", step.told(facts)))
            continue
        try:
            plan = step.plan(facts)
        except DeployError as exc:
            found.append(Planned(step, "stop", str(exc)))
        else:
            found.append(Planned(step, "change", plan.what, plan))
    return found
