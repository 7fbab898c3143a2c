"""The one place that reads the environment: every variable of ours, typed and explained, a module a prefix.

`docs/settings.md` and `config/env.example` are made from these classes (`make settings`).
"""

from __future__ import annotations

import functools

from pocqueue.settings.delegation import MIN_TOKEN_LENGTH, DelegationSettings
from pocqueue.settings.node import NodeSettings
from pocqueue.settings.shared import Settings

__all__ = [
    "ALL",
    "DELEGATION_PREFIX",
    "ENV_PREFIX",
    "MIN_TOKEN_LENGTH",
    "NODE_PREFIX",
    "DelegationSettings",
    "NodeSettings",
    "Settings",
    "settings",
]

#: Every class of settings, in the order in which they are explained.
ALL = (Settings, DelegationSettings, NodeSettings)
ENV_PREFIX = Settings.model_config["env_prefix"]
DELEGATION_PREFIX = DelegationSettings.model_config["env_prefix"]
NODE_PREFIX = NodeSettings.model_config["env_prefix"]


@functools.cache
def settings() -> Settings:
    """Return this process's settings, read from the environment on first use."""
    return Settings.load()
