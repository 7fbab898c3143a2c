"""What a client orders: a task that the network trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class MLTask:
    """A model to be trained, and what that is worth. Checked by `PoUWNode.submit_task`."""

    task_id: str  #: the client's own name of it, 1 to 64 characters of ASCII, from the space to ~
    task_type: str  #: image_classification, classification, nlp, text_classification
    dataset_hash: str  #: ``digits``, ``words``, or ``0x`` and 64 hex digits
    model_requirements: Mapping[str, Any]  #: architecture, min_accuracy, … (`chain.tasks`)
    reward_amount: float  #: PAI, at most 6 decimals
    deadline: int  #: seconds since 1970

    def to_dict(self) -> dict[str, Any]:
        """Return its fields; a copy."""
        return asdict(self)
