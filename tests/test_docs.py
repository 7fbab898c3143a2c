"""What the documents say is what there is."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from pocqueue.cli import app
from pocqueue.deploy.conf import FIELDS
from pocqueue.rounds.redis_url import RedisUrl
from pocqueue.settings import ALL

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


#: Every variable of ours, and every field of a server's conf file.
VARIABLES = {kind.variable(name) for kind in ALL for name in kind.model_fields}
VARIABLES |= {field.name for field in FIELDS}
#: All that `pocqueue` can be told, made once: it takes longer than to read a document.
COMMANDS: Any = get_command(app)


@pytest.mark.parametrize(
    ("kind", "path"), [("env", "config/env.example"), ("markdown", "docs/settings.md")]
)
def test_lists_of_settings_are_those_of_the_classes(kind: str, path: str) -> None:
    """Variables, defaults and meanings; `make settings` writes both files."""
    command = [sys.executable, "-m", "pocqueue.settings", kind]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert (ROOT / path).read_text() == done.stdout


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_variables_in_documents_exist(document: Path) -> None:
    """No document names a variable that nobody reads."""
    named = re.findall(r"`((?:POCQUEUE|DELEGATION)_[A-Z_]+)(?:=[^`]*)?`", document.read_text())
    assert set(named) <= VARIABLES


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_in_documents_exist(document: Path) -> None:
    """Every `pocqueue …` command line that is shown has its command, and its options."""
    text = document.read_text()
    fenced = re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)
    spans = re.findall(r"`(pocqueue [^`\n]+)`", text)
    code = [line.strip() for block in fenced for line in block.splitlines()] + spans
    lines = [line.removeprefix("pocqueue ") for line in code if line.startswith("pocqueue ")]
    for line in lines:
        words = line.partition("#")[0].split()
        place: Any = COMMANDS
        for word in words:
            if not (hasattr(place, "commands") and re.fullmatch(r"[a-z]+", word)):
                break
            assert word in place.commands, line
            place = place.commands[word]
        if "|" in line:
            continue
        known = {name for one in place.params for name in (*one.opts, *one.secondary_opts)}
        assert {word for word in words if word.startswith("--")} <= known | {"--help"}, line


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_tests_in_documents_exist(document: Path) -> None:
    """Every `test_…` that a document calls a proof is there, by that name."""
    named = set(re.findall(r"`(test_[a-z0-9_]+)`", document.read_text()))
    have = set[str]()
    for path in (ROOT / "tests").rglob("test_*.py") if named else ():
        have |= set(re.findall(r"def (test_\w+)\(", path.read_text()))
    assert named - have == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_in_documents_exist(document: Path) -> None:
    """Every path of the repository that is named is there."""
    text = document.read_text()
    paths = re.findall(r"`((?:pocqueue|workers|config|tests|docs|benchmarks)/[\w./-]+)`", text)
    links = re.findall(r"\]\(([\w./-]+)\)", text)
    for path in [*paths, *(str((document.parent / link).relative_to(ROOT)) for link in links)]:
        assert (ROOT / path).exists(), path


def test_the_documented_unit_starts_with_its_variables() -> None:
    """No line of it has a `%` that systemd would take for a specifier, and the URL of its file can be read."""
    text = (ROOT / "docs" / "operating.md").read_text()
    blocks = re.findall(r"```\n(.*?)```", text, re.DOTALL)
    [unit] = [block for block in blocks if "[Service]" in block]
    assert set(re.findall(r"%.", unit)) <= {"%i", "%%"}
    [path] = re.findall(r"^EnvironmentFile=(.*)$", unit, re.MULTILINE)
    [variables] = [block for block in blocks if path in block and block != unit]
    [url] = re.findall(r"^POCQUEUE_REDIS_URL=(.*)$", variables, re.MULTILINE)
    assert "%" in url
    assert RedisUrl.parse(url).options.password == "p@ssw/ord"


def test_the_page_in_russian_has_what_the_english_one_has() -> None:
    """As many sections, rows of tables and points of lists, and the same commands."""
    pages = [(ROOT / "docs" / name).read_text() for name in ("deploy.md", "deploy.ru.md")]
    for form in (r"(?m)^## ", r"(?m)^\| ", r"(?m)^- ", r"(?m)^```"):
        english, russian = (len(re.findall(form, page)) for page in pages)
        assert english == russian, form
    commands = [set(re.findall(r"(?m)^(pocqueue .*?) *(?:#|$)", page)) for page in pages]
    assert commands[0] == commands[1]
