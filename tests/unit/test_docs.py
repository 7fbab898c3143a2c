"""What the documents say is what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pocqueue.cli import app
from pocqueue.settings import ENV_PREFIX, Settings

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_readme_lists_every_setting_with_its_meaning() -> None:
    """The table of settings is that of the settings class."""
    table = (ROOT / "README.md").read_text()
    for name, field in Settings.model_fields.items():
        row = rf"^\| `{ENV_PREFIX}{name.upper()}` \| .+ \| {re.escape(str(field.description))} \|$"
        assert re.search(row, table, re.MULTILINE), name
    named = set(re.findall(rf"`{ENV_PREFIX}([A-Z_]+)`", table))
    assert named <= {name.upper() for name in Settings.model_fields}


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
        command = [word for word in words[:2] if re.fullmatch(r"[a-z]+", word)]
        if command[:1] and command[0] not in {"round", "redis", "engine", "vllm"}:
            command = command[:1]
        if "|" in line or "…" in command:
            continue
        shown = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200"})
        assert shown.exit_code == 0, line
        for option in (word for word in words if word.startswith("--")):
            assert option in shown.output, line


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_in_documents_exist(document: Path) -> None:
    """Every path of the repository that is named is there."""
    text = document.read_text()
    paths = re.findall(r"`((?:pocqueue|workers|config|tests|docs|benchmarks)/[\w./-]+)`", text)
    links = re.findall(r"\]\(([\w./-]+)\)", text)
    for path in [*paths, *(str((document.parent / link).relative_to(ROOT)) for link in links)]:
        assert (ROOT / path).exists(), path
