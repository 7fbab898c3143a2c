"""From the name of a model to a folder that transformers can load as a causal language model."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any, NamedTuple

from pocqueue.engine import hub
from pocqueue.engine.base import OnProgress
from pocqueue.engine.fingerprint import fingerprint, read_config
from pocqueue.engine.torch_model.embedded import EMBEDDED, ensure_embedded_model
from pocqueue.errors import ModelNotFound

# What the hub allows: OWNER/NAME, or NAME alone for its oldest models.
_HUB_ID = re.compile(r"(?=.{1,96}$)[A-Za-z0-9][\w.-]*(?:/[\w.-]+)?", re.ASCII)
#: Weights of this size take seconds to hash.
TOLD_FROM_BYTES = 1_000_000_000
_ALLOWED = '"embedded", a folder that has a config.json, or a hub id such as Qwen/Qwen3-0.6B'


class ResolvedModel(NamedTuple):
    """A model on this machine's disk."""

    path: Path  #: absolute path of the folder with config.json and weights
    display_name: str  #: how operators see it: the name they gave, without blanks around it


def resolve_model(name: str, state_dir: Path, on_progress: OnProgress) -> ResolvedModel:
    """Find a model, or make or download it.

    A folder wins over a hub id of the same name. A hub model is downloaded into the hub's own cache,
    unless it is there already and the hub does not answer.

    Args:
        name: "embedded", a local folder (``~`` is expanded), or a hub id.
        state_dir: pocqueue's state folder, for the embedded model.
        on_progress: told what is being done, a line at a time.

    Raises:
        ModelNotFound: there is no such model, or it is not a causal language model.
        EngineError: the embedded model cannot be written.
    """
    name = name.strip()
    if name == EMBEDDED:
        return ResolvedModel(ensure_embedded_model(state_dir).resolve(), name)
    if not name or "\0" in name:
        raise ModelNotFound(f"Model {name!r} is not a name; allowed: {_ALLOWED}.")
    path = Path(name)
    with contextlib.suppress(RuntimeError):  # a user that does not exist leaves the name as it is
        path = path.expanduser()
    if path.is_dir():
        path = path.resolve()
    elif path.exists():
        raise ModelNotFound(f"Model {name!r} is a file; allowed: {_ALLOWED}. Name its folder.")
    elif name.startswith(("/", "./", "../", "~")) or not _HUB_ID.fullmatch(name):
        raise ModelNotFound(
            f"Model {name!r} is not a folder on this machine; allowed: {_ALLOWED}. Check the spelling."
        )
    else:
        path = hub.fetch_from_hub(name, on_progress=on_progress)
    check_causal_lm(name, read_config(path / "config.json"))
    return ResolvedModel(path, name)


def check_causal_lm(name: str, config: dict[str, Any]) -> None:
    """Check that transformers would load this configuration as a causal language model.

    Args:
        name: the model's name for the message.
        config: the contents of config.json.

    Raises:
        ModelNotFound: it is of an unknown type, or made for something else, such as BERT.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    model_type = config.get("model_type")
    known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type) if model_type else None
    classes = {known} if isinstance(known, str) else set(known or ())
    written = config.get("architectures")
    architectures = [str(item) for item in written] if isinstance(written, list) else []
    # BERT and its like are in transformers' table too, as decoders that hardly anyone trained; what
    # the file says that the weights are for decides.
    fits = not architectures or any(
        item in classes or item.endswith(("ForCausalLM", "LMHeadModel")) for item in architectures
    )
    if not classes or not fits:
        what = ", ".join(architectures) or f"model_type {model_type!r}"
        raise ModelNotFound(
            f"Model {name!r} is not a causal language model that transformers can load: its config.json "
            f"says {what}. Name a model for text generation, such as Qwen/Qwen3-0.6B."
        )


def fingerprint_with_progress(
    model: ResolvedModel,
    on_progress: OnProgress,
    told_from_bytes: int = TOLD_FROM_BYTES,
) -> str:
    """Compute a model's fingerprint, telling how far it is if that takes long.

    Args:
        model: its folder and name.
        on_progress: told each tenth, in one line.
        told_from_bytes: weights of less than this size are hashed without a word.

    Raises:
        ModelNotFound: the folder's files are missing, cut or unreadable.
    """
    reported = -1

    def tell(done: int, total: int) -> None:
        nonlocal reported
        tenth = 10 * done // max(total, 1)
        if tenth > reported and total >= told_from_bytes:
            reported = tenth
            on_progress(
                f"Hashing the weights of {model.display_name}: {tenth * 10} % of {total / 1e9:.1f} GB"
            )

    return fingerprint(model.path, on_bytes=tell)
