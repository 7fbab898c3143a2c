"""A round as the chain asked the small node for it, and the search for it that is kept on disk."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from pocqueue.delegation.client import RemoteModel
from pocqueue.poc.fields import HttpUrl
from pocqueue.poc.scheme import ProofSearch
from pocqueue.rounds.start import ModelWish
from pocqueue.rounds.store import KEEP_ENDED_MS


class NodeRound(ProofSearch):
    """What to search, with which model, and where the signed batches go.

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
        # What the nonces are and which of them are valid; not how they are computed and sent.
        ours, theirs = (
            {**r.search, "wish": r.wish, "batch_size": None, "fraud_threshold": None}
            for r in (self, other)
        )
        return ours == theirs

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
        params = self.params | {"seq_len": body.pop("seq_len")}
        # No callback URL: the batches are fetched and signed here; a push would go around the key.
        return body | {"params": params, "callback_url": None}


class SearchRequest(BaseModel):
    """A search as it was begun: what it takes to go on with it after a restart, beside its cursor."""

    round: NodeRound
    gpu_count: int
    #: Unix time at which its window closes.
    deadline_s: float
    #: What a big node searches with.
    model: RemoteModel = RemoteModel()
    #: The chain has stopped it; its source may not know yet.
    stopped: bool = False

    @property
    def give_up_s(self) -> float:
        """Unix time up to which its source keeps what it found, and is waited for."""
        return self.deadline_s + KEEP_ENDED_MS / 1000
