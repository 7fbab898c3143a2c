"""A clone of a repository: whether it is the wanted one, at the wanted commit, and without edits of others."""

from __future__ import annotations

import enum
import re
from collections.abc import Collection
from dataclasses import dataclass

from pocqueue.deploy.facts.parts import UnexpectedAnswer, pairs, read_parts
from pocqueue.deploy.words import Command

_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


class CloneState(enum.Enum):
    """How a clone stands to what is wanted, each with what is to be done."""

    MISSING = "there is none: clone it"
    PARTIAL = "an interrupted clone: move it aside and clone it anew"
    OTHER_COMMIT = "another commit: fetch and check out"
    READY = "nothing is to be done"
    FOREIGN = "something else is there: it is not ours to change"
    OTHER_REMOTE = "a clone of another repository: it is not ours to change"
    EDITED = "it has edits of somebody: they are not ours to throw away"
    UNREADABLE = "git refuses it, such as for its owner: see what it says"


@dataclass(frozen=True, slots=True)
class GitFacts:
    """A folder and the clone in it.

    Attributes:
        path: the folder.
        real_path: after all symbolic links.
        exists: there is something.
        is_empty: and nothing in it.
        has_git: it has a `.git`.
        has_index: and files were checked out.
        head: the commit that is checked out; empty: there is none.
        remote: URL of origin.
        edited: tracked files that differ from the commit; None: git cannot say.
    """

    path: str
    real_path: str
    exists: bool
    is_empty: bool
    has_git: bool
    has_index: bool = True
    head: str = ""
    remote: str = ""
    edited: tuple[str, ...] | None = ()


def git_facts(folder: str) -> Command:
    """Return the command that reads them; as the login, whose clone it is."""
    return Command((folder,), script="git_facts", timeout_s=60)


def read_git(path: str, text: str) -> GitFacts:
    """Return what the command said.

    Raises:
        UnexpectedAnswer: something of it is not understood.
    """
    parts = read_parts(text, "folder")
    folder = pairs("stat", parts["folder"].wanted().text)
    if "real" not in folder:
        raise UnexpectedAnswer("readlink", parts["folder"].text, "a path")
    has_git = "git" in folder
    facts = GitFacts(path, folder["real"], "kind" in folder, "entries" not in folder, has_git)
    if not has_git:
        return facts
    for name in ("head", "remote", "status", "top"):
        if name not in parts:
            raise UnexpectedAnswer("The script git_facts", text, f"an answer with {name}")
    head = parts["head"].text.strip() if parts["head"].exit_code == 0 else ""
    if parts["head"].exit_code == 0 and not _COMMIT.fullmatch(head):
        raise UnexpectedAnswer("git rev-parse HEAD", head, "a commit")
    is_readable = parts["top"].exit_code == 0 and parts["status"].exit_code == 0
    return GitFacts(
        path,
        folder["real"],
        exists=True,
        is_empty=False,
        has_git=True,
        has_index="index" in folder,
        head=head,
        remote=parts["remote"].text.strip() if parts["remote"].exit_code == 0 else "",
        # Two letters, a blank, the name; renames as `old -> new`.
        edited=tuple(line[3:].strip('"') for line in parts["status"].lines)
        if is_readable
        else None,
    )


def clone_state(
    facts: GitFacts, remote: str, commit: str, own_files: Collection[str] = ()
) -> CloneState:
    """Return how a clone stands to what is wanted.

    Args:
        facts: of its folder.
        remote: URL that it has to be a clone of.
        commit: 40 hex digits.
        own_files: tracked files that a deployment writes itself, such as ``deploy/join/node-config.json``.
    """
    if facts.real_path != facts.path:
        return CloneState.FOREIGN
    if not facts.exists or (facts.is_empty and not facts.has_git):
        return CloneState.MISSING
    if not facts.has_git:
        return CloneState.FOREIGN
    if facts.remote and _plain(facts.remote) != _plain(remote):
        return CloneState.OTHER_REMOTE
    # A clone has its remote first, then a commit, then files; git cannot say what differs from none.
    if facts.remote and not (facts.head and facts.has_index):
        return CloneState.PARTIAL
    if facts.edited is None or not facts.remote:
        return CloneState.UNREADABLE
    if set(facts.edited) - set(own_files):
        return CloneState.EDITED
    return CloneState.READY if facts.head == commit else CloneState.OTHER_COMMIT


def read_ls_remote(text: str, ref: str) -> str:
    """Return the commit of a tag, a branch or ``HEAD`` from `git ls-remote URL REF REF^{}`.

    Raises:
        UnexpectedAnswer: the repository has none of this name.
    """
    found = {}
    for line in filter(None, text.split("\n")):
        commit, _, name = line.partition("\t")
        if not _COMMIT.fullmatch(commit) or not name:
            raise UnexpectedAnswer("git ls-remote", line, "a commit and its name")
        found[name] = commit
    # Of a tag with a message, the commit that it is of.
    for name in (f"refs/tags/{ref}^{{}}", f"refs/tags/{ref}", f"refs/heads/{ref}", ref):
        if name in found:
            return found[name]
    raise UnexpectedAnswer("git ls-remote", text, f"a tag or branch {ref}")


def _plain(url: str) -> str:
    return url.rstrip("/").removesuffix(".git")
