"""`--env-file`: a config.env as operators have it, and everything that may be wrong with one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pocqueue.env_file import load_env_file
from pocqueue.errors import SettingsError


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a test writes its file; what it sets is taken back."""
    for name in [name for name in os.environ if name.startswith("PQ_TEST_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    return tmp_path / "config.env"


def test_lines_as_people_write_them(path: Path) -> None:
    """With and without export, quoted, empty, with comments, with a reference to a line above."""
    path.write_text(
        "# Токен\n"
        "export PQ_TEST_A=my-secure-token-123\n"
        'PQ_TEST_B="two words"  # why\n'
        "\n"
        "export PQ_TEST_C=\n"
        "#export PQ_TEST_D=1\n"
        "PQ_TEST_E=http://host:${PQ_TEST_F}\n"
        "export PQ_TEST_G\r\n"
        "PQ_TEST_H=' padded '\n",
        encoding="utf-8",
    )
    os.environ["PQ_TEST_F"] = "9090"
    load_env_file(path)
    found = {name: os.environ.get(f"PQ_TEST_{name}") for name in "ABCDEGH"}
    assert found == {
        "A": "my-secure-token-123",
        "B": "two words",
        "C": "",
        "D": None,
        "E": "http://host:9090",
        "G": None,
        # Kept, so that the settings can name them.
        "H": " padded ",
    }


def test_the_environment_wins(path: Path) -> None:
    """Also where it has an empty value."""
    path.write_text("PQ_TEST_A=file\nPQ_TEST_B=file\n")
    os.environ |= {"PQ_TEST_A": "environment", "PQ_TEST_B": ""}
    load_env_file(path)
    assert (os.environ["PQ_TEST_A"], os.environ["PQ_TEST_B"]) == ("environment", "")


def test_a_mark_of_windows_editors_is_no_part_of_the_first_name(path: Path) -> None:
    """It cannot be seen, and the first variable would be lost without a word."""
    path.write_bytes(b"\xef\xbb\xbfPQ_TEST_A=1\r\n")
    load_env_file(path)
    assert os.environ["PQ_TEST_A"] == "1"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"A=1\nthis is no hunter2\n", "whose line 2 is no assignment"),
        (b"A=1\n\n# why\n\n  \r\n  =hunter2\n", "whose line 6 is no assignment"),
        (b"A=1\nPORT:hunter2\n", "whose line 2 is no assignment"),
        (b"A=1\nB=hunter2\0\n", "whose line 2 is no assignment"),
        (b"A=1\n'B=hunter2'=1\n", "whose line 2 is no assignment"),
        (b"\xff\xfe", "it is not UTF-8 text"),
        (None, "No such file"),
    ],
)
def test_a_bad_file_is_named(path: Path, content: bytes | None, said: str) -> None:
    """Without what is in it; nothing of it is set."""
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError) as caught:
        load_env_file(path)
    assert f"--env-file is {str(path)!r}" in str(caught.value)
    assert said in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert "A" not in os.environ
