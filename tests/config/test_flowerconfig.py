"""config/flowerconfig.py is executed as Flower does it, and a real Flower runs with it."""

from __future__ import annotations

import base64
import copy
import os
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import click
import flower.app
import flower.command
import flower.utils.broker
import flower.views
import pytest
import tornado.options
from celery import Celery
from flower.options import default_options
from flower.views.tasks import TASK_COLUMNS

from pocqueue.rounds.redis_url import RedisUrl
from tests.support.env_example import ROOT
from tests.support.ports import free_port
from tests.support.processes import running, wait_ready
from tests.support.sentinels import failing_over
from tests.support.tls import make_certificate
from tests.support.tls_proxy import tls_proxy

CONF = ROOT / "config" / "flowerconfig.py"


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing from the shell of whoever runs the tests; and Flower's classes are put back afterwards."""
    for name in [n for n in os.environ if n.startswith(("POCQUEUE_", "FLOWER_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(flower.command, "Flower", flower.app.Flower)
    monkeypatch.setattr(flower.views, "Broker", flower.utils.broker.Broker)


def load(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tornado.options.OptionParser:
    """Read command line, file and command line again, as `celery flower` does, into fresh options."""
    options = tornado.options.OptionParser()
    for name, option in vars(default_options)["_options"].items():
        vars(options)["_options"][name] = copy.copy(option)
    monkeypatch.setattr(tornado.options, "options", options)
    argv = ["flower", f"--conf={CONF}", *arguments]
    options.parse_command_line(argv)
    options.parse_config_file(str(CONF), final=False)
    options.parse_command_line(argv)
    return options


def test_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    """With no variable set: loopback, port 5555, bounded memory, nothing written, nothing to click."""
    options = load(monkeypatch)
    assert (options.address, options.port) == ("127.0.0.1", 5555)
    assert not options.basic_auth
    assert options.read_only
    assert not options.persistent
    assert options.max_tasks == 10_000
    assert options.auto_refresh


def test_columns_are_known_to_flower(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower leaves out a column it does not know without a word, so a typing error would hide one."""
    columns = load(monkeypatch).tasks_columns.split(",")
    assert set(columns) <= set(TASK_COLUMNS)
    assert {"name", "kwargs", "state", "received", "started", "runtime", "worker"} <= set(columns)


def test_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Address, port and password come from POCQUEUE_FLOWER_*; a password with a comma stays one."""
    monkeypatch.setenv("POCQUEUE_FLOWER_ADDRESS", "0.0.0.0")  # noqa: S104 - the case under test
    monkeypatch.setenv("POCQUEUE_FLOWER_PORT", "6001")
    monkeypatch.setenv("POCQUEUE_FLOWER_BASIC_AUTH", "me:pass,word")
    options = load(monkeypatch)
    assert (options.address, options.port) == ("0.0.0.0", 6001)  # noqa: S104 - the case under test
    assert options.basic_auth == ["me:pass,word"]
    assert not options.read_only


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "10.1.2.3", "gpu-box", ""])  # noqa: S104
def test_open_bind_is_refused(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Off loopback with no password it does not start, and says what to set."""
    monkeypatch.setenv("POCQUEUE_FLOWER_ADDRESS", address)
    with pytest.raises(click.ClickException, match="POCQUEUE_FLOWER_BASIC_AUTH=user:password"):
        load(monkeypatch)


@pytest.mark.parametrize("argument", ["--address=0.0.0.0", "--address="])
def test_command_line_does_not_get_round_it(monkeypatch: pytest.MonkeyPatch, argument: str) -> None:
    """An address on the command line wins over the file, and is judged like one in it."""
    with pytest.raises(click.ClickException, match="POCQUEUE_FLOWER_ALLOW_OPEN=1"):
        load(monkeypatch, argument)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback_needs_no_password(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Every way to write this machine's own address will do."""
    monkeypatch.setenv("POCQUEUE_FLOWER_ADDRESS", address)
    assert load(monkeypatch).address == address


def test_open_bind_can_be_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in compose.yaml; nothing can be changed through it then."""
    monkeypatch.setenv("POCQUEUE_FLOWER_ADDRESS", "0.0.0.0")  # noqa: S104 - the case under test
    monkeypatch.setenv("POCQUEUE_FLOWER_ALLOW_OPEN", "1")
    assert load(monkeypatch, "--read_only=false").read_only


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("POCQUEUE_FLOWER_BASIC_AUTH", "hunter2"),
        ("POCQUEUE_FLOWER_BASIC_AUTH", "hunter2:"),
        ("POCQUEUE_FLOWER_PORT", "many"),
    ],
)
def test_bad_values_are_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """A bad variable ends in one sentence with its name; a password is not shown."""
    monkeypatch.setenv(name, value)
    with pytest.raises(click.ClickException, match=name) as caught:
        load(monkeypatch)
    assert caught.value.exit_code == 2
    if "AUTH" in name:
        assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "pattern",
    [
        "unix://SOCKET",
        "redis+socket://SOCKET?virtual_host=0",
        "rediss://127.0.0.1:PORT?ssl_ca_certs=CA",
        "rediss://127.0.0.1:PORT?ssl_cert_reqs=none",
    ],
)
async def test_broker_page_reads_every_url(
    redis_socket: Path, pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Queue lengths come by the URL that workers use: a socket, TLS with an authority of one's own."""
    with tls_proxy(str(redis_socket), *make_certificate(tmp_path)) as port:
        words = {"SOCKET": redis_socket, "PORT": port, "CA": tmp_path / "cert.pem"}
        for name, word in words.items():
            pattern = pattern.replace(name, str(word))
        monkeypatch.setenv("POCQUEUE_REDIS_URL", pattern)
        load(monkeypatch)
        await check_page(pattern)


async def test_broker_page_asks_every_sentinel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one may be gone."""
    with failing_over(tmp_path) as servers:
        servers.kill("one")
        monkeypatch.setenv("POCQUEUE_REDIS_URL", servers.url)
        load(monkeypatch)
        await check_page(servers.url)


async def check_page(url: str) -> None:
    """Send two tasks to a queue, and look at the Broker page."""
    with Celery("sender") as app:
        app.conf.update(RedisUrl.parse(url).broker())
        with app.connection_for_write() as connection:
            app.send_task("nothing", queue="gpu0", connection=connection)
            app.send_task("nothing", queue="gpu0", connection=connection)
            shown = connection.as_uri(include_password=True)
    page = flower.views.Broker(shown, broker_options={})
    assert await page.queues(["gpu0", "gpu1"]) == [
        {"name": "gpu0", "messages": 2},
        {"name": "gpu1", "messages": 0},
    ]


#: The query of the tasks page's table: the first ten tasks, by name.
FIRST_TASKS = urllib.parse.urlencode(
    {
        "draw": 1,
        "start": 0,
        "length": 10,
        "order[0][column]": 0,
        "order[0][dir]": "asc",
        "columns[0][data]": "name",
    }
)


def fetch(url: str, credentials: str | None = None) -> str:
    """Return the body of a page, or nothing where there is none yet."""
    request = urllib.request.Request(url)  # noqa: S310 - a loopback address made below
    if credentials:
        token = base64.b64encode(credentials.encode()).decode()
        request.add_header("Authorization", f"Basic {token}")
    try:
        with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310 - see above
            return str(response.read().decode())
    except (urllib.error.URLError, ConnectionError):
        return ""


def queue_length(page: str, queue: str) -> int | None:
    """Read one queue's number of messages from Flower's broker page."""
    row = re.search(rf'<tr id="{queue}">.*?secondary-column">(\d+)</td>', page, flags=re.DOTALL)
    return int(row[1]) if row else None


def test_real_flower_shows_queues_and_tasks(redis_socket: Path, short_dir: Path) -> None:
    """It asks for the password, learns a later worker's queue, shows its tasks and its length."""
    port = free_port()
    url = f"redis+socket://{redis_socket}?virtual_host=0"
    env: dict[str, Any] = {
        **os.environ,
        "TEST_BROKER_URL": url,
        "POCQUEUE_REDIS_URL": url,
        "POCQUEUE_FLOWER_PORT": str(port),
        "POCQUEUE_FLOWER_BASIC_AUTH": "me:secret",
    }
    celery = [sys.executable, "-m", "celery", "-A", "tests.support.broker_app"]
    site = f"http://127.0.0.1:{port}"
    command = [*celery, "flower", f"--conf={CONF}"]
    with running(command, short_dir / "flower.log", env=env, cwd=ROOT) as server:
        wait_ready(lambda: fetch(f"{site}/healthcheck") == "OK", server)
        assert fetch(f"{site}/broker") == ""
        assert fetch(f"{site}/broker", "me:wrong") == ""

        def length() -> int | None:
            return queue_length(fetch(f"{site}/broker", "me:secret"), "gpu3")

        def tasks() -> str:
            return fetch(f"{site}/tasks/datatable?{FIRST_TASKS}", "me:secret")

        assert length() is None
        command = [*celery, "worker", "-P", "solo", "-Q", "gpu3"]
        sender = Celery("sender", broker=url)
        with running(command, short_dir / "worker.log", env=env, cwd=ROOT), sender as app:
            wait_ready(lambda: length() == 0, server)
            shown = "0..511 of round 9b2e6c1e"  # as pocqueue/rounds/scheduler_process.py words it
            app.send_task("broker_app.nothing", kwargsrepr=shown, queue="gpu3")
            wait_ready(lambda: shown in tasks() and "SUCCESS" in tasks(), server)
        with sender as app:
            for _ in range(3):
                app.send_task("broker_app.nothing", queue="gpu3")
            wait_ready(lambda: length() == 3, server)


def test_a_port_that_is_taken_is_said_in_a_sentence() -> None:
    """With the code for bad input, and no traceback."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "-m", "celery", "-A", "pocqueue", "flower", f"--conf={CONF}"],
            env=os.environ
            | {"POCQUEUE_FLOWER_PORT": port, "POCQUEUE_REDIS_URL": "redis://127.0.0.1:1/0"},
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
    assert done.returncode == 2, done.stderr
    assert (
        f"POCQUEUE_FLOWER_PORT is {port} on 127.0.0.1, which cannot be listened on" in done.stderr
    )
    assert "Traceback" not in done.stderr
