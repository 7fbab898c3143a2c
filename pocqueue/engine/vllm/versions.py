"""Which versions of vLLM the proof can be made with, and all that differs between them.

| from | what |
| --- | --- |
| 0.26 | a server takes its routes from an endpoint plugin; before that, from a middleware class |
| 0.26 | a layer's blocks are [heads, tokens, content]; before that, on CUDA, [2, tokens, heads, head size] |
| 0.29 | a layer says how many tokens a state of its cache covers; before that, those of one have classes of their own |
| 0.32 | an engine starts where standard output is no file |

Whatever else is used of vLLM is the same in all of them; docs/vllm.md says which ones were run. Nothing here imports
vLLM: the command line asks as well, and a version that is none of these may fail on import.
"""

from __future__ import annotations

import contextlib
import re
import runpy
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pocqueue.errors import EngineError

#: The first version, and the first that is too new: what the extra `vllm` of pyproject.toml says.
FIRST, BEYOND = (0, 25, 1), (0, 33)
#: In words.
ALLOWED = "0.25.1 to 0.32"
#: Sizes by which a dimension is known again in a shape.
_BLOCKS, _TOKENS = 1013, 16 * 1009


def find_vllm() -> Path:
    """Return the folder of the package vllm that is installed here.

    Raises:
        EngineError: there is none, or `check_version` refuses it.
    """
    spec = find_spec("vllm")
    if spec is None or spec.origin is None:
        raise EngineError("vLLM is not installed here: pip install 'pocqueue[vllm]'.")
    folder = Path(spec.origin).parent
    file = folder / "_version.py"
    check_version(str(runpy.run_path(str(file))["version"]) if file.exists() else "dev")
    return folder


def check_version(version: str) -> None:
    """Check that the proof can be made with this version of vLLM.

    Builds from sources without their tags do not know their version (dev, 0.0.0, 0.1.dev5): they are taken for one.

    Raises:
        EngineError: it cannot.
    """
    numbers = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", version)
    release = tuple(int(number or 0) for number in numbers.groups()) if numbers else (0, 0)
    if release >= (0, 2) and not FIRST <= release < BEYOND:
        raise EngineError(
            f"vLLM is {version}; allowed: {ALLOWED}. Proofs were not tried with this one: pip install "
            "'pocqueue[vllm]' brings one that they were tried with."
        )


def has_endpoint_plugins(folder: Path) -> bool:
    """Say whether servers of a package vllm take routes from an endpoint plugin."""
    return (folder / "plugins" / "endpoint_plugins").is_dir()


def keeps_each_token(spec: Any) -> bool:
    """Say whether a layer of this ``AttentionSpec`` keeps one state of each token."""
    return bool(getattr(spec, "tokens_per_state", 1) == 1)


def has_tokens_third(backend: Any, spec: Any, cache: Any) -> bool:
    """Say whether a layer's cache is [blocks, …, tokens of a block, …], tokens third.

    Args:
        backend: vLLM's class for the layer's attention.
        spec: the layer's ``AttentionSpec``.
        cache: the layer's tensor.
    """
    if not hasattr(backend, "get_kv_cache_shape"):
        return bool(cache.dim() == 4)  # [blocks, heads, tokens, content], whatever the backend
    shape = backend.get_kv_cache_shape(_BLOCKS, _TOKENS, spec.num_kv_heads, spec.head_size)
    return len(shape) == cache.dim() and (shape[0], shape[2]) == (_BLOCKS, _TOKENS)


@contextlib.contextmanager
def file_as_stdout() -> Iterator[None]:
    """Have standard output be a file within the block, as it is not in a worker of Celery.

    vLLM turns it off by its number while it sets up devices.
    """
    try:
        sys.stdout.fileno()
    except (AttributeError, OSError):
        with (
            open(1, "w", encoding="utf-8", closefd=False) as file,
            contextlib.redirect_stdout(file),
        ):
            yield
    else:
        yield
