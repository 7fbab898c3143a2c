"""`pocqueue deploy stack`: pocqueue itself on a server, and its updates."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from pocqueue.deploy import report
from pocqueue.deploy.begin import Options, begun, is_confirmed
from pocqueue.deploy.conf import Conf
from pocqueue.deploy.engine import run_steps
from pocqueue.deploy.errors import BadUsage
from pocqueue.deploy.facts.stack import StackFacts
from pocqueue.deploy.folder import make_folders
from pocqueue.deploy.lock import local_lock, server_lock, who_we_are
from pocqueue.deploy.log import Log, local_now
from pocqueue.deploy.look import show_checks
from pocqueue.deploy.planning import plan_steps
from pocqueue.deploy.stack.checks import stack_checks
from pocqueue.deploy.stack.compose import FILE, STATE, compose_project
from pocqueue.deploy.stack.steps import Places, Wanted, read_facts, stack_steps
from pocqueue.deploy.stack.units import unit_files, units_of
from pocqueue.deploy.stack.variables import secrets_of, stack_id, variables
from pocqueue.deploy.stack.wheel import Wheel, read_wheel


@dataclass(frozen=True, slots=True)
class StackRun:
    """One run, as the command line asks for it.

    Attributes:
        wheel: of the version; None: the one that is there.
        goes_back: to the version before this one.
        with_redis: start Redis anew, too, as the last one.
        is_dry: say what would be done, and change nothing.
        places: where things are on the server.
        live_s: as of `Wanted`.
        settle_s: as of `Wanted`.
    """

    wheel: Path | None = None
    goes_back: bool = False
    with_redis: bool = False
    is_dry: bool = False
    places: Places = field(default_factory=Places)
    live_s: int = 900
    settle_s: int = 5

    async def __call__(self, conf: Conf, out: Log, options: Options) -> None:
        """Do it.

        Raises:
            DeployError: why it stopped; units that were not reached run as before.
        """
        if not conf.pocqueue_role:
            raise BadUsage(
                "POCQUEUE_ROLE is missing in the conf file: what pocqueue is on this server."
            )
        if self.wheel is not None and self.goes_back:
            raise BadUsage("--wheel and --rollback are two versions: leave one of them.")
        is_compose = conf.pocqueue_run == "compose"
        if is_compose and self.wheel is not None:
            raise BadUsage("--wheel is of systemd: name the image with POCQUEUE_IMAGE.")
        wheel = None if self.wheel is None else read_wheel(self.wheel)
        values = variables(conf, STATE if is_compose else self.places.state)
        for secret in secrets_of(values):
            out.redactor.add(secret)
        units = units_of(conf)
        env_file = f"{self.places.etc}/pocqueue.env"

        def files_of(conf: Conf) -> dict[str, str]:
            if is_compose:
                return {FILE: compose_project(conf, units, values, env_file)}
            return unit_files(units)

        files = files_of(conf)
        make_folders(conf)
        with local_lock(conf.folder):
            async with begun(conf, out, options, is_whole=False) as host:
                out.check("Checking the server...")
                image = (conf.pocqueue_image or "") if is_compose else ""
                facts = await read_facts(host, self.places, units, files, conf.pocqueue_run, image)
                show_checks(out, await stack_checks(host, facts, values), options.ignored)
                folder = self._folder(wheel, facts, image)
                if is_compose and folder != image:
                    files = files_of(replace(conf, pocqueue_image=folder))
                wanted = Wanted(
                    places=self.places,
                    way=conf.pocqueue_run,
                    folder=folder,
                    files=files,
                    wheel=wheel,
                    extras="[hosts,postgres]" if "hosts" in conf.pocqueue_role else "",
                    values=values,
                    units=units,
                    stack_id=stack_id(folder, values, files.values()),
                    live_s=self.live_s,
                    settle_s=self.settle_s,
                )
                steps = stack_steps(wanted, with_redis=self.with_redis)
                planned = await plan_steps(host, steps)
                for line in report.plan_lines(planned) if self.is_dry else ():
                    out.info(line)
                if self.is_dry:
                    return
                for item in planned:
                    if item.state != "skip":
                        out.info(f"{item.step.name}: {item.told}")
                if not await is_confirmed(host, options, f"do you want pocqueue {folder} there?"):
                    return
                who = who_we_are(local_now())
                async with server_lock(host.connection, who, state_dir=options.state_dir):
                    host.memory.clear()
                    await run_steps(host, steps, now=lambda: f"{local_now():%Y-%m-%d %H:%M:%S}")
                out.ok(f"pocqueue {folder}: {', '.join(unit.name for unit in units)}")
                if image and folder != image:
                    out.warn(
                        f"POCQUEUE_IMAGE is {image} still: write {folder} there, or the next run takes that one again."
                    )

    def _folder(self, wheel: Wheel | None, facts: StackFacts, image: str) -> str:
        """Return the version that is to run, or the image.

        Raises:
            BadUsage: there is none.
        """
        if image and self.goes_back:
            if not facts.previous:
                raise BadUsage("There is no image before this one on the server.")
            return facts.previous
        if image:
            return image
        if wheel is not None:
            return wheel.folder
        if self.goes_back:
            if facts.previous not in facts.versions:
                raise BadUsage("There is no version before this one on the server.")
            return facts.previous
        if not facts.current:
            raise BadUsage(
                "pocqueue is not on the server yet: --wheel FILE, which pip wheel --no-deps . makes."
            )
        return facts.current
