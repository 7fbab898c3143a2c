"""Gonka's repository on the server, at one commit that is found out once and written down."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pocqueue.deploy.engine import Host, Plan
from pocqueue.deploy.errors import StepFailed
from pocqueue.deploy.facts.git import (
    CloneState,
    GitFacts,
    clone_state,
    git_facts,
    read_git,
    read_ls_remote,
)
from pocqueue.deploy.remote_job import Job
from pocqueue.deploy.steps.mounted import looked, need_mounted
from pocqueue.deploy.words import Command

URL = "https://github.com/gonka-ai/gonka.git"
#: Of tracked files, those that a deployment writes itself.
OWN_FILES = frozenset({"deploy/join/node-config.json"})


@dataclass(frozen=True, slots=True)
class Clone:
    """The clone as it is, and the commit that is wanted."""

    git: GitFacts
    ref: str
    commit: str

    @property
    def state(self) -> CloneState:
        """Return how the one stands to the other."""
        return clone_state(self.git, URL, self.commit, OWN_FILES)


@dataclass(frozen=True, slots=True)
class Repository:
    """The repository is there, at the commit of GONKA_REF."""

    phase: int = 2
    name: str = "gonka repository"

    async def look(self, host: Host) -> Clone:
        """Read the clone; ask its origin for the commit of a tag once."""
        await need_mounted(host)
        path, ref = host.conf.gonka_path, host.conf.gonka_ref or "HEAD"
        git = read_git(path, await looked(host, self.name, git_facts(path)))
        noted = host.journal.get("gonka") or {}
        if re.fullmatch(r"[0-9a-f]{40}", ref):
            return Clone(git, ref, ref)
        if noted.get("ref") == ref:
            return Clone(git, ref, noted["commit"])
        if git.head and host.conf.gonka_ref is None:
            # Made from another machine: "the newest" was found out there, and a node that runs is not moved on.
            return Clone(git, ref, git.head)
        command = Command(("git", "ls-remote", "--", URL, ref, f"{ref}^{{}}"), timeout_s=60)
        return Clone(git, ref, read_ls_remote(await looked(host, self.name, command), ref))

    def told(self, facts: Clone) -> str:
        """Say what is there."""
        return f"{facts.git.path} at {facts.git.head[:12] or 'no commit'}"

    def is_done(self, facts: Clone) -> bool:
        """Say whether it is the wanted commit, without edits of others."""
        return facts.state is CloneState.READY

    def plan(self, facts: Clone) -> Plan:
        """Clone it, or check the commit out; nothing of others is touched.

        Raises:
            StepFailed: something else is there, or it has edits.
        """
        state, path = facts.state, facts.git.path
        notes = {"gonka": {"ref": facts.ref, "commit": facts.commit}}
        if state in (CloneState.MISSING, CloneState.PARTIAL):
            there = "partial" if state is CloneState.PARTIAL else "none"
            command = Command(
                (URL, path, facts.commit, there), script="clone", sudo=True, timeout_s=600
            )
            return Plan(
                f"clone {URL} at {facts.commit[:12]} to {path}",
                (Job("2-clone", command),),
                notes=notes,
            )
        if state is CloneState.OTHER_COMMIT:
            command = Command((path, facts.commit), script="checkout", sudo=True, timeout_s=600)
            what = f"{path}: {facts.git.head[:12]} → {facts.commit[:12]}"
            return Plan(what, (Job("2-checkout", command),), notes=notes)
        edited = (
            f" ({', '.join((facts.git.edited or ())[:5])})" if state is CloneState.EDITED else ""
        )
        raise StepFailed(self.name, f"{path}: {state.value}{edited}.")
