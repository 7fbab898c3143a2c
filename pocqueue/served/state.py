"""What the proof routes of a server work on, which comes after them: a server adds routes, then loads its model."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from starlette.types import Scope

from pocqueue.errors import EngineUnavailable
from pocqueue.poc.artifact.bodies import Params
from pocqueue.poc.artifact.refusals import check_model
from pocqueue.served.artifacts import Artifacts
from pocqueue.served.model import ServedModel
from pocqueue.served.prover import Prover
from pocqueue.web.door import Asks, find_token

#: Of the proof routes.
PREFIX = "/api/v1/pow"


@dataclass(eq=False)
class RouteState:
    """What is there so far."""

    artifacts: Artifacts | None = None  #: None until the engine is there, or if it cannot be used
    reason: str = "Engine not available: the server is still starting."  #: why there is none
    names: Collection[str] = ()  #: what the model may be called in requests for artifacts
    tokens: Sequence[str] = ()  #: digest of each token that opens the routes; empty: they are open
    #: Why the model's fingerprint is not known yet, or never will be.
    model_error: str | None = "the model's weights are being hashed"

    def service(self) -> Artifacts:
        """Return what computes artifacts, and has the prover.

        Raises:
            EngineUnavailable: there is nothing; says why.
        """
        if self.artifacts is None:
            raise EngineUnavailable(self.reason)
        return self.artifacts

    def ready(self) -> Prover:
        """Return the prover.

        Raises:
            EngineUnavailable: there is none; says why.
        """
        return self.service().prover

    def asked(self, params: Params) -> Artifacts:
        """Return what computes artifacts, if a request is for what is there.

        Raises:
            ParamsMismatch: it is for another model.
            EngineUnavailable: there is nothing; says why.
        """
        if self.names:
            check_model(params, self.names)
        found = self.service()
        found.prover.model.check_alive()
        return found

    def hashed(self) -> ServedModel:
        """Return the model, whose fingerprint is known.

        Raises:
            EngineUnavailable: there is none, or it is not known; says why.
        """
        prover = self.ready()
        if self.model_error is not None:
            raise EngineUnavailable(f"Engine not available: {self.model_error}.")
        return prover.model

    def find(self, token: str) -> bool | None:
        """Say whether a token is one that opens the routes; None: it is not."""
        return find_token(token, self.tokens) is not None or None

    def asks(self, scope: Scope) -> Asks:
        """Say what is asked for at a path; those of the server's other routes are not ours to guard."""
        # Wherever the server mounts its application, a path that leads here has this in it.
        return Asks.TOKEN if self.tokens and PREFIX in scope["path"] else Asks.NOTHING
