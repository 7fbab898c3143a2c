"""The registry of engines: loader, kernels and properties by name. Imports none of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineKind:
    """One way to run a model."""

    loader: str  #: function that loads it, as ``module:name``
    kernels: str  #: whose kernels compute it; engines that share them agree bit for bit
    is_remote: bool = False  #: model and devices belong to a server; this process has neither
    spreads: bool = False  #: takes several devices for one model
    package: str = ""  #: extra of pocqueue, and package, without which it cannot be loaded


KINDS = {
    "torch": EngineKind(
        loader="pocqueue.engine.torch_model.loader:load_torch_engine", kernels="torch"
    ),
    "vllm": EngineKind(
        loader="pocqueue.engine.vllm.engine:load_vllm_engine",
        kernels="vllm",
        spreads=True,
        package="vllm",
    ),
    "vllm-server": EngineKind(
        loader="pocqueue.engine.vllm.remote:connect_vllm_server", kernels="vllm", is_remote=True
    ),
}


def is_remote(engine: str) -> bool:
    """Say whether an engine of this name uses a model that a server has; not so for unknown ones."""
    return engine in KINDS and KINDS[engine].is_remote
