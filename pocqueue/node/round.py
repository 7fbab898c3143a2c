"""A round as the chain asked the small node for it, kept as JSON for as long as it has batches to send."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from pocqueue.poc.fields import HttpUrl
from pocqueue.poc.scheme import ProofSearch
from pocqueue.rounds.model_choice import ModelWish

_NOT_OF_THE_SEARCH = {"params", "url", "delegation_url", "delegation_auth_token"}


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
        ours, theirs = (
            (
                (r.block_hash, r.block_height, r.public_key, r.node_id, r.node_count),
                (r.scheme, r.proof.model_dump(exclude={"fraud_threshold"})),
            )
            for r in (self, other)
        )
        return ours == theirs and (self.seq_len, self.wish) == (other.seq_len, other.wish)

    @property
    def wish(self) -> ModelWish:
        """What the request says about its model."""
        known = {
            name for name in ModelWish.__dataclass_fields__ if self.params.get(name) is not None
        }
        return ModelWish(**{name: self.params[name] for name in known})

    @property
    def search(self) -> dict[str, Any]:
        """What is searched, by the names of `RoundSpec`."""
        return self.model_dump(exclude=_NOT_OF_THE_SEARCH)

    def start_body(self) -> dict[str, Any]:
        """Return the body of the delegation API's `start`, without the token (docs/wire.md)."""
        body = self.search
        # No callback URL: the batches are fetched and signed here; a push would go around the key.
        return body | {
            "params": self.params | {"seq_len": body.pop("seq_len")},
            "callback_url": None,
        }
