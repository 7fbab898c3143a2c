"""A guard for tests that call tasks in this process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pocqueue.rounds.redis_server import RedisServer


@pytest.fixture(scope="module", autouse=True)
def no_server_in_the_users_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A task makes Celery read its settings, which start the bundled Redis where a test has named none: it would stay."""
    folder = tmp_path_factory.mktemp("state")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(folder))
        server = RedisServer(folder / "pocqueue")
        yield
        started = server.is_running()
        if started:
            server.stop()
    assert not started, "a test let a process use the user's own state folder"
