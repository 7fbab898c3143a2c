"""The OpenAPI document of the gateway: complete, without a token, and true."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import schemathesis

from tests.hosts.gateway.conftest import ADMIN, Gateway
from tests.hosts.parts import joined
from tests.support.openapi import statuses_of_generated_requests

#: The stricter one about what strangers send.
pytestmark = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


def test_the_document_is_complete(gateway: Gateway) -> None:
    """Each route has a summary and a description, and its errors are one sentence."""
    document = gateway.http.get("/openapi.json").json()
    assert ADMIN not in json.dumps(document)
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert operation["summary"], path
            assert operation["description"], path
            for status, answer in operation["responses"].items():
                if int(status) >= 400 and path not in {"/readyz"}:
                    content = answer["content"]["application/json"]
                    assert content["schema"]["$ref"].endswith("/HostError"), (path, status)
                    assert content["example"]["error"]


def test_nothing_that_is_sent_is_our_fault(make: Callable[..., Gateway]) -> None:
    """Generated requests, right and wrong ones, of an admin: no 5xx, and every answer is as the document says."""
    gateway = make(limits_factor=1e9)
    joined(gateway.store)
    schema = schemathesis.openapi.from_dict(gateway.http.get("/openapi.json").json())

    def call(case: Any) -> Any:
        headers = {"Authorization": f"Bearer {ADMIN}"}
        return case.call(base_url=gateway.url, headers=headers)

    found = statuses_of_generated_requests(schema, call, max_examples=10)
    assert {200, 400, 404, 422} <= found
