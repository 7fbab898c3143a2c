"""Requests that are generated from an OpenAPI document, right and wrong ones, and answers held to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis
import schemathesis
from schemathesis.checks import CHECKS

#: Checks that judge by methods of bare paths, by other tokens than the one that is sent, and by bodies that
#: are right by the document and still refused.
_LEFT_OUT = {"ignored_auth", "unsupported_method", "positive_data_acceptance"}


def statuses_of_generated_requests(
    schema: Any, call: Callable[[Any], Any], *, max_examples: int, skip: tuple[str, ...] = ()
) -> set[int]:
    """Send generated requests: no 5xx, and every answer is as the document says; return the statuses.

    Args:
        schema: of schemathesis.
        call: sends a case, changed if need be, and returns the response.
        max_examples: for each operation.
        skip: paths.
    """
    statuses: set[int] = set()
    checks: Any = CHECKS.get_all()
    left_out = [check for check in checks if check.__name__ in _LEFT_OUT]
    modes = schemathesis.GenerationMode
    for result in schema.get_all_operations():
        operation = result.ok()
        if operation.path in skip:
            continue

        @hypothesis.settings(
            max_examples=max_examples,
            deadline=None,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(
            case=operation.as_strategy(generation_mode=modes.POSITIVE)
            | operation.as_strategy(generation_mode=modes.NEGATIVE)
        )
        def judge(case: Any) -> None:
            response = call(case)
            statuses.add(response.status_code)
            assert response.status_code < 500, (case, response.text)
            case.validate_response(response, excluded_checks=left_out)

        judge()
    return statuses
