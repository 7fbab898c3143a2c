"""Conf files: what each field may be, and every hostile one refused by line and field."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pocqueue.deploy.conf import FIELDS, Conf, make_private, parse_conf, read_conf
from pocqueue.deploy.errors import ConfError
from pocqueue.deploy.new_conf import write_conf
from tests.deploy.confs import EXAMPLE, PASSWORD, conf, text


def refused(content: str | bytes, folder: Path) -> ConfError:
    """Return why a conf file is refused."""
    data = content if isinstance(content, bytes) else content.encode()
    with pytest.raises(ConfError) as raised:
        parse_conf(data, folder / "node1.conf")
    assert raised.value.exit_code == 2
    assert PASSWORD not in str(raised.value)
    return raised.value


def test_an_example_as_people_write_it(tmp_path: Path) -> None:
    """Quotes, comments and blanks; what is not there has its default, or one made of others."""
    found = conf(tmp_path)
    assert (found.server_ip, found.ssh_port, found.key_name) == ("203.0.113.7", 22, "quick-newton")
    assert (found.hf_home, found.gonka_path) == ("/mnt/ssd/hf", "/mnt/ssd/gonka")
    assert found.public_url == "http://203.0.113.7:8000"
    assert len(found.persistent_peers) == 2
    assert found.keyring_password is not None
    assert found.keyring_password.reveal() == PASSWORD
    assert PASSWORD not in repr(found)
    assert found.folder == tmp_path / "quick-newton"
    assert not found.warnings
    # Every field of the file is one of the value, and the other way round.
    names = {field.name.lower() for field in FIELDS} - {"keyring_password_file"}
    assert names | {"path", "warnings"} == set(Conf.__dataclass_fields__)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("INSTALL", "maybe"),
        ("POCQUEUE_ROLE", "worker,root"),
        ("POCQUEUE_GPUS", "0,0"),
        ("POCQUEUE_GPUS", "1000"),
        ("POCQUEUE_MODEL", "../x"),
        ("KEY_NAME", "a;reboot"),
        ("KEY_NAME", "../x"),
        ("KEY_NAME", "a" * 64),
        ("SERVER_IP", "-oProxyCommand=touch"),
        ("SERVER_IP", "999.1.1.1"),
        ("SERVER_IP", "0.0.0.0"),  # noqa: S104
        ("SERVER_IP", "224.0.0.1"),
        ("SERVER_IP", "::"),
        ("SERVER_IP", "a b"),
        ("SSH_USER", "root;id"),
        ("SSH_PORT", "0"),
        ("SSH_PORT", "65536"),
        ("SSH_PORT", "\uff12\uff12"),
        ("SSH_HOST_KEY", "MD5:aa"),
        ("SSH_JUMP", "-x@y"),
        ("SSH_KEY", "/nowhere/key"),
        ("KEYRING_PASSWORD", "short"),
        ("KEYRING_PASSWORD", '"it\'s long enough"'),
        ("KEYRING_PASSWORD", "back\\\\slash-password"),
        ("KEYRING_PASSWORD", '"' + "x" * 129 + '"'),
        ("ACCOUNT_PUBKEY", "AAAA"),
        ("ACCOUNT_PUBKEY", "BAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8g"),
        ("MODEL_NAME", "$(touch)/x"),
        ("MODEL_NAME", "Qwen/.."),
        ("MODEL_REVISION", "main"),
        ("SEED_API_URL", "ftp://host"),
        ("SEED_API_URL", "http://user:pass@host"),
        ("SEED_API_URL", "http://host/?a=1"),
        ("SEED_API_URL", "http://-host"),
        ("SEED_API_URL", "'http://host/$(id)'"),
        ("NODE_CONFIG_PROFILE", "x2"),
        ("NODE_CONFIG_PROFILE", "nowhere.json"),
        ("VOLUME_DEVICE", "/dev/../etc/passwd"),
        ("VOLUME_DEVICE", "vdc"),
        ("VOLUME_DEVICE", "/dev/vdc;id"),
        ("VOLUME_MOUNT", "/mnt/$(id)"),
        ("VOLUME_MOUNT", "/"),
        ("VOLUME_MOUNT", "/home"),
        ("VOLUME_MOUNT", "/var"),
        ("VOLUME_MOUNT", "/boot/x"),
        ("VOLUME_MOUNT", "/etc/x"),
        ("VOLUME_MOUNT", "/mnt/../etc"),
        ("VOLUME_MOUNT", "/mnt//ssd"),
        ("VOLUME_MOUNT", "mnt/ssd"),
        ("VOLUME_FORMAT", "always"),
        ("HF_HOME", "/opt/hf"),
        ("GONKA_PATH", "/mnt/ssdx/gonka"),
        ("GONKA_REF", "--upload-pack=x"),
        ("GONKA_REF", "a..b"),
        ("PERSISTENT_PEERS", "abc@host:1"),
        ("PRUNING_INTERVAL", "-1"),
        ("STATE_SYNC", "maybe"),
    ],
)
def test_a_field_that_is_not_allowed(field: str, value: str, tmp_path: Path) -> None:
    """Its line and its name are in the message, and nothing else is complained of."""
    content = text(**{field: value})
    [problem] = refused(content, tmp_path).problems
    assert problem.field == field
    assert problem.line == len(content.splitlines())
    assert field in problem.text


@pytest.mark.parametrize(
    ("content", "line", "said"),
    [
        (EXAMPLE + "VOLUME_DEVCE=/dev/vdc\n", 12, "did you mean VOLUME_DEVICE"),
        (EXAMPLE + "\n\nQQQQ=1\n", 14, "no field"),
        (EXAMPLE + "KEY_NAME=other\n", 12, "twice, in line 4"),
        (EXAMPLE + "BROKEN LINE\n", 12, "no NAME=value"),
        (EXAMPLE + "SSH_KEY='open\n", 12, "quote"),
        (EXAMPLE + "SSH_KEY\n", 12, "no ="),
        (EXAMPLE + 'GONKA_REF="a\\nb"\n', 12, "GONKA_REF"),
        (EXAMPLE + 'GONKA_REF="a\nb"\n', 12, "GONKA_REF"),
        (EXAMPLE + "GONKA_REF=a\x00b\n", 12, "GONKA_REF"),
        (EXAMPLE + "GONKA_REF=a\x1b[2Jb\n", 12, "GONKA_REF"),
        ("\ufeff" + EXAMPLE, 1, "byte order mark"),
        (EXAMPLE.replace("\n", "\r\n"), 1, "CR"),
        (EXAMPLE.encode() + b"GONKA_REF=\xff\n", 12, "UTF-8"),
        (EXAMPLE + "#" * 70_000, 0, "64 KiB"),
        (text(KEY_NAME=None), 0, "KEY_NAME is missing"),
        (text(KEY_NAME='""'), 11, "KEY_NAME is missing"),
    ],
)
def test_lines_that_are_not_allowed(
    content: str | bytes, line: int, said: str, tmp_path: Path
) -> None:
    """The line, and what is wrong there."""
    problems = refused(content, tmp_path).problems
    assert (problems[0].line, said in problems[0].text) == (line, True), problems


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    """By line, those of the whole file last."""
    wrong = refused(text(SERVER_IP="x y", KEY_NAME=None, SSH_PORT="0", NO_SUCH="1"), tmp_path)
    assert [problem.field for problem in wrong.problems] == [
        *("SERVER_IP", "SSH_PORT", "NO_SUCH", "KEY_NAME")
    ]


def test_nothing_is_run_or_filled_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands and variables in a password are its characters."""
    monkeypatch.setenv("HOME_OF", "secret")
    for value in ["$(touch x)`id`${HOME_OF}", 'a "b" # ; c  d', "é" * 8, "x" * 128]:
        found = conf(tmp_path, KEYRING_PASSWORD=f"'{value}'")
        assert found.keyring_password is not None
        assert found.keyring_password.reveal() == value


def test_values_that_people_have(tmp_path: Path) -> None:
    """IPv6, names, ports, other folders."""
    found = conf(
        tmp_path, SERVER_IP="2001:db8::1", SSH_JUMP="me@gate.example:2222", SSH_PORT="2200"
    )
    assert found.public_url == "http://[2001:db8::1]:8000"
    assert found.server == "ubuntu@[2001:db8::1]:2200"
    assert found.ssh_jump == ("me", "gate.example", 2222)
    found = conf(tmp_path, VOLUME_MOUNT="/data/disk1/", SEED_API_URL="https://Seed.example/base/")
    assert (found.hf_home, found.seed_api_url) == ("/data/disk1/hf", "https://Seed.example/base")
    [warning] = conf(tmp_path, MODEL_NAME="other/model").warnings
    assert "Qwen/" in warning


def test_a_password_comes_from_a_private_file(tmp_path: Path) -> None:
    """Beside the conf file; one that others can read is refused."""
    file = tmp_path / "password"
    file.write_text(PASSWORD + "\n")
    file.chmod(0o600)
    found = conf(tmp_path, KEYRING_PASSWORD=None, KEYRING_PASSWORD_FILE="password")
    assert found.keyring_password is not None
    assert found.keyring_password.reveal() == PASSWORD
    file.chmod(0o644)
    content = text(KEYRING_PASSWORD=None, KEYRING_PASSWORD_FILE="password")
    assert "0600" in str(refused(content, tmp_path))
    file.chmod(0o600)
    assert "leave one" in str(refused(text(KEYRING_PASSWORD_FILE="password"), tmp_path))


def test_files_that_are_none(tmp_path: Path) -> None:
    """A folder and a named pipe end the reading, and are not waited for; a readable password is warned of."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (tmp_path, pipe, tmp_path / "missing"):
        with pytest.raises(ConfError):
            read_conf(path)
    file = tmp_path / "node1.conf"
    file.write_text(EXAMPLE)
    file.chmod(0o644)
    assert "chmod 600" in read_conf(file).warnings[0]
    file.chmod(0o600)
    assert not read_conf(file).warnings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("KEYRING_PASSWORD", "longenough' # rest"),
        ("KEYRING_PASSWORD", "back\\\\slash1"),
        ("ADMIN_KEYS", "a' #b"),
    ],
)
def test_a_value_that_would_come_back_as_another_is_not_written(
    name: str, value: str, tmp_path: Path
) -> None:
    """A quote in it ends it early; half a password is none."""
    fields = dict(line.split("=", 1) for line in text().splitlines() if "=" in line)
    values = {key: given.split('"')[1] if '"' in given else given for key, given in fields.items()}
    write_conf(tmp_path / "good.conf", values)
    with pytest.raises(ConfError, match=f"{name} .*; allowed: ") as caught:
        write_conf(tmp_path / "bad.conf", values | {name: value})
    assert value not in str(caught.value)
    assert not (tmp_path / "bad.conf").exists()


def test_a_file_that_others_can_read_is_made_private(tmp_path: Path) -> None:
    """If that is asked for: a warning is gone then; a link is not followed."""
    path = tmp_path / "node1.conf"
    path.write_text(EXAMPLE)
    path.chmod(0o644)
    [warning] = read_conf(path).warnings
    assert "--fix-modes" in warning
    link = tmp_path / "link.conf"
    link.symlink_to(path)
    with pytest.raises(ConfError, match="its mode cannot be made 0600"):
        make_private(link)
    make_private(path)
    assert not read_conf(path).warnings
    assert path.stat().st_mode & 0o777 == 0o600
