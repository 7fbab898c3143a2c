"""`GET /metrics` of the delegation service: who may read it, and what it says of this process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr

from pocqueue.delegation.app import create_app
from pocqueue.delegation.customers import TokensFile, tokens_path
from pocqueue.rounds.backend import Backend
from pocqueue.rounds.redis_server import RedisServer
from pocqueue.settings import DelegationSettings
from tests.support.factories import make_gpu, make_spec
from tests.support.fixtures import SettingsFactory

TOKEN = "a-token-of-the-tests"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture
def client(backend: Backend, settings_for: SettingsFactory) -> Iterator[TestClient]:
    """The service on an empty Redis."""
    delegation = DelegationSettings(auth_token=SecretStr(TOKEN))
    with TestClient(create_app(settings_for(), delegation)) as client:
        yield client


def test_a_token_is_asked_for(client: TestClient) -> None:
    """As by the status: the pool is nobody else's business. Wrong ones are counted."""
    assert client.get("/metrics").status_code == 401
    wrong = {"Authorization": "Bearer wrong-token-of-the-tests"}
    assert client.get("/metrics", headers=wrong).status_code == 401
    page = client.get("/metrics", headers=BEARER)
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/plain; version=")
    assert "\npocqueue_auth_failures_total 1.0\n" in page.text
    assert TOKEN not in page.text


def test_it_is_the_operators_alone(backend: Backend, settings_for: SettingsFactory) -> None:
    """Public status does not open it, nor does a customer's token: it has everybody's figures."""
    delegation = DelegationSettings(auth_token=SecretStr(TOKEN), public_status=True)
    with TestClient(create_app(settings_for(), delegation)) as client:
        assert client.get("/metrics").status_code == 401
        settings = settings_for()
        token = TokensFile(tokens_path(settings, delegation)).add("other")
        customer = {"Authorization": f"Bearer {token}"}
        assert client.get("/metrics", headers=customer).status_code == 401
        assert client.get("/metrics", headers=BEARER).status_code == 200


def test_pool_sessions_and_requests_are_on_it(client: TestClient, backend: Backend) -> None:
    """Requests by route, whichever of its two paths was used, and never by session."""
    assert backend.pool.beat(make_gpu()) is None
    session_id = backend.store.create(make_spec(customer="main"))
    for prefix in ("", "/api/v1/delegation"):
        answer = client.get(f"{prefix}/batches/{session_id}", headers=BEARER)
        assert answer.status_code == 200
    assert client.get("/no/such/path", headers=BEARER).status_code == 404
    page = client.get("/metrics", headers=BEARER).text
    assert '\npocqueue_sessions{state="active"} 1.0\n' in page
    assert '\npocqueue_gpus{state="live"} 1.0\n' in page
    count = "\npocqueue_delegation_request_seconds_count"
    assert f'{count}{{route="/batches/{{session_id}}",status="2xx"}} 2.0\n' in page
    assert f'{count}{{route="other",status="4xx"}} 1.0\n' in page
    assert "\nprocess_cpu_seconds_total " in page
    assert session_id not in page


def test_redis_away_shows_on_the_page(
    own_backend: Backend, own_redis: RedisServer, settings_for: SettingsFactory
) -> None:
    """The process still answers for itself."""
    delegation = DelegationSettings(auth_token=SecretStr(TOKEN))
    settings = settings_for(redis_url=SecretStr(own_redis.url))
    with TestClient(create_app(settings, delegation)) as client:
        own_redis.stop()
        page = client.get("/metrics", headers=BEARER)
    assert page.status_code == 200
    assert "\npocqueue_up 0.0\n" in page.text
    assert "pocqueue_gpus" not in page.text
