"""A client of a running small node, for operators and for trials."""

from __future__ import annotations

from typing import Any

import httpx
from typing_extensions import override

from pocqueue.closing import Closing
from pocqueue.errors import NodeAway, NodeError


class NodeClient(Closing):
    """Asks one small node; a context manager.

    Args:
        url: of the node.
        timeout_s: seconds for one request.
    """

    def __init__(self, url: str, timeout_s: float = 5.0) -> None:
        self.url = url.rstrip("/")
        # No proxy of the environment: the node is next to whoever asks.
        self._http = httpx.Client(timeout=timeout_s, trust_env=False)

    @override
    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def status(self) -> dict[str, Any]:
        """Return how the node stands.

        Raises:
            NodeAway: nobody listens there.
            NodeError: there is no small node, or it cannot say.
        """
        found = self._ask("GET", "/status", None, "cannot say how it stands")
        if not isinstance(found.get("outbox"), dict):
            raise self._no_node(200)
        return found

    def post(self, path: str, body: Any = None) -> dict[str, Any]:
        """Post to a route below ``/api/v1/pow``; return the answer.

        Raises:
            NodeError: there is no small node, or it refuses; says why.
        """
        return self._ask("POST", path, body, "refuses")

    def _ask(self, method: str, path: str, body: Any, if_refused: str) -> dict[str, Any]:
        try:
            reply = self._http.request(method, f"{self.url}/api/v1/pow{path}", json=body)
            found = reply.json()
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, RecursionError) as exc:
            # An answer that is no JSON is not a small node's, whatever the decoder says of it.
            reason = str(exc) if isinstance(exc, httpx.HTTPError | httpx.InvalidURL) else ""
            error = NodeAway if isinstance(exc, httpx.ConnectError) else NodeError
            raise error(
                f"No small node answers at {self.url} ({reason or type(exc).__name__}): start one with "
                "`pocqueue node serve`, or give its --url."
            ) from None
        if reply.status_code == 200 and isinstance(found, dict):
            return found
        detail = found.get("detail") if isinstance(found, dict) else None
        if reply.status_code == 404 or not isinstance(detail, str):
            raise self._no_node(reply.status_code)
        raise NodeError(f"The small node at {self.url} {if_refused}: {detail}")

    def _no_node(self, status: int) -> NodeError:
        return NodeError(
            f"What answers at {self.url} is no small node (HTTP {status}): give the --url of one."
        )
