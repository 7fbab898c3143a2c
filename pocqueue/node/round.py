"""A round as the chain asked the small node for it, and the search for it that is kept on disk."""

from __future__ import annotations

import time
from typing import Any

from pydantic import BaseModel, Field, PrivateAttr
from typing_extensions import override

from pocqueue.delegation.client import RemoteModel
from pocqueue.poc.fields import HttpUrl
from pocqueue.poc.scheme import DEFAULT, ProofSearch
from pocqueue.rounds.start import ModelWish
from pocqueue.rounds.store import KEEP_ENDED_MS


class NodeRound(ProofSearch):
    """What to search, with which model, and where the batches go.

    The bounds are those of a round (`poc/search.py`). Limits of the model are checked when the
    search begins.
    """

    #: The request's own `params`, passed on as they came: the big node checks them.
    params: dict[str, Any] = Field(default_factory=dict)
    #: Base of the callbacks; `/generated` and `/validated` are appended.
    url: HttpUrl
    #: Big node of this round alone; None: that of the settings.
    delegation_url: HttpUrl | None = None
    delegation_auth_token: str | None = Field(default=None, repr=False)

    @property
    def own_big_node(self) -> tuple[str, str] | None:
        """URL and token of the big node of this round alone, if it names both."""
        if self.delegation_url and self.delegation_auth_token:
            return self.delegation_url, self.delegation_auth_token
        return None

    def is_same_search(self, other: NodeRound) -> bool:
        """Say whether another request asks for what this one asks for already."""
        return self._searched() == other._searched()

    def sends_the_same(self, other: NodeRound) -> bool:
        """Say whether a nonce that went out for one of two requests is not to go out for the other."""
        # It is the same proof whatever the target was; and another receiver has not got it.
        ours, theirs = ((r._searched("r_target"), r.url.rstrip("/")) for r in (self, other))
        return ours == theirs

    def _searched(self, *left_out: str) -> dict[str, Any]:
        """What the nonces are and which of them are valid; not how they are computed and sent."""
        how = {"batch_size", "fraud_threshold", "dist_threshold", "p_mismatch", *left_out}
        return {k: v for k, v in self.search.items() if k not in how} | {"wish": self.wish}

    @property
    def wish(self) -> ModelWish:
        """What the request says about its model."""
        return ModelWish(**{name: self.params.get(name) for name in ModelWish.__dataclass_fields__})

    @property
    def search(self) -> dict[str, Any]:
        """What is searched, by the names of `RoundSpec`."""
        return self.model_dump(exclude={"params", "url", "delegation_url", "delegation_auth_token"})

    def start_body(self) -> dict[str, Any]:
        """Return the body of the delegation API's `start`, without the token (docs/wire.md)."""
        body = self.search
        if self.scheme != DEFAULT:
            body["proof"] = self.scheme
        params = self.params | {"seq_len": body.pop("seq_len")}
        # No callback URL: the batches are fetched and signed here; a push would go around the key.
        return body | {"params": params, "callback_url": None}


class SearchRequest(BaseModel):
    """A search as it was begun: what it takes to go on with it after a restart, beside its cursor."""

    round: NodeRound
    gpu_count: int
    #: Seconds of its window.
    window_s: float = 3600.0
    #: For so many seconds of it the receiver takes what is found; None: for all of them.
    stage_s: float | None = None
    #: Unix time at which that closes; for the next run of this program. This one has `left_s`.
    deadline_s: float
    #: What a big node searches with.
    model: RemoteModel = RemoteModel()
    #: The chain has stopped it; its source may not know yet.
    stopped: bool = False
    #: The same by the monotonic clock, which nobody sets.
    _closes_at: float = PrivateAttr()

    @override
    def model_post_init(self, _context: object) -> None:
        # Of what an earlier run has written; if the clock was set back since then, no window grows.
        self._closes_at = time.monotonic() + min(self.deadline_s - time.time(), self.window_s)

    @classmethod
    def begin(
        cls, node_round: NodeRound, window_s: float, stage_s: float | None = None
    ) -> SearchRequest:
        """Return a search on one GPU whose window begins now."""
        return cls(
            round=node_round,
            gpu_count=1,
            window_s=window_s,
            stage_s=stage_s,
            deadline_s=time.time() + window_s,
        )

    @property
    def left_s(self) -> float:
        """Seconds until its window closes; below 0 afterwards."""
        return self._closes_at - time.monotonic()

    @property
    def taken_s(self) -> float:
        """Seconds for which what is found is still taken; below 0 afterwards."""
        beyond_s = 0.0 if self.stage_s is None else self.window_s - self.stage_s
        return self.left_s - max(0.0, beyond_s)

    @property
    def is_forgotten(self) -> bool:
        """Whether its source keeps nothing any more of what it found, and is not waited for."""
        return self.left_s < -KEEP_ENDED_MS / 1000
