"""The OpenAPI document of the delegation: complete, without a token, and true."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from starlette.testclient import TestClient

from pocqueue.delegation.access import PREFIX
from pocqueue.delegation.app import create_app
from pocqueue.rounds.backend import Backend
from tests.support.delegation_server import BODY, TOKEN, live_gpus, make_delegation
from tests.support.fixtures import SettingsFactory
from tests.support.openapi import statuses_of_generated_requests


@pytest.fixture
def app(backend: Backend, settings_for: SettingsFactory) -> Iterator[FastAPI]:
    """The application at work, with a live GPU, so that sessions do start."""
    live_gpus(backend)
    app = create_app(settings_for(), make_delegation(max_sessions=10_000, auth_failures=1_000_000))
    with TestClient(app):
        yield app


def test_the_document_is_complete(app: FastAPI) -> None:
    """Summary, description, an example of each body and answer, all errors, how to send the token."""
    document = app.openapi()
    assert set(document["components"]["securitySchemes"]) == {"bearer", "query"}
    for path in ("start", "batches/{session_id}", "stop", "status", "health"):
        [operation] = document["paths"][f"{PREFIX}/{path}"].values()
        assert operation["summary"]
        assert operation["description"]
        answers = operation["responses"]
        assert "503" in answers
        if path != "health":
            assert operation["security"] == [{"bearer": []}, {"query": []}]
            assert {"401", "429"} <= set(answers)
        for status, answer in answers.items():
            content = answer["content"]["application/json"]
            name = content["schema"]["$ref"].rpartition("/")[2]
            if status == "200":
                assert path == "health" or document["components"]["schemas"][name]["examples"]
            else:
                assert name == "ErrorAnswer"
                assert content["example"]["detail"].strip()
            if status in {"429", "503"}:
                assert "Retry-After" in answer["headers"]
    for path in ("start", "stop"):
        body = document["paths"][f"{PREFIX}/{path}"]["post"]["requestBody"]
        name = body["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        assert document["components"]["schemas"][name]["examples"]
    # The bare paths are the same routes.
    assert "/start" not in document["paths"]


def test_the_document_has_no_token(app: FastAPI) -> None:
    """Neither ours nor one that somebody might take over."""
    text = json.dumps(app.openapi())
    assert TOKEN not in text
    assert "YOUR-TOKEN" in text


def test_the_examples_are_true(app: FastAPI) -> None:
    """The example of a start is one, but for the token and the model."""
    document = app.openapi()
    [example] = document["components"]["schemas"]["StartBody"]["examples"]
    with TestClient(app) as http:
        body = example | {"auth_token": TOKEN, "params": BODY["params"]}
        reply = http.post(f"{PREFIX}/start", json=body)
        assert reply.status_code == 200, reply.text
        [answer] = document["components"]["schemas"]["StartAnswer"]["examples"]
        assert set(reply.json()) == set(answer)


def test_nothing_that_is_sent_is_our_fault(app: FastAPI) -> None:
    """Generated requests, right and wrong ones: no 5xx, and every answer is as the document says."""
    schema = schemathesis.openapi.from_dict(app.openapi())
    schema.app = app

    def call(case: Any) -> Any:
        # Long waits are tested elsewhere.
        if isinstance(case.query.get("wait"), int | float) and case.query["wait"] <= 30:
            case.query["wait"] = 0
        return case.call(headers={"Authorization": f"Bearer {TOKEN}"})

    assert {200, 404, 422} <= statuses_of_generated_requests(schema, call, max_examples=20)
