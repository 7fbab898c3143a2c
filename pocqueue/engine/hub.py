"""Models from the Hugging Face hub: bounded in time without a network, errors of one sentence."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from pocqueue.engine.base import OnProgress
from pocqueue.errors import ModelNotFound

#: How long the hub may take to say whether it has a model before the local cache decides, in seconds.
ANSWER_TIMEOUT_S = 6.0
_REPORT_EVERY_S = 1.0
#: Configuration, tokenizer and weights; nothing in folders below (other formats, other precisions).
_WANTED = ["*.json", "*.safetensors"]
_UNWANTED = ["*/*"]


def fetch_from_hub(
    repo_id: str,
    *,
    on_progress: OnProgress,
    endpoint: str | None = None,
    cache_dir: Path | None = None,
    timeout_s: float = ANSWER_TIMEOUT_S,
) -> Path:
    """Download a model into the hub's cache, or find it there if the hub does not answer.

    Args:
        repo_id: OWNER/NAME or NAME.
        on_progress: told how many bytes are there, once a second.
        endpoint: the hub's URL; None takes ``HF_ENDPOINT`` or huggingface.co.
        cache_dir: the hub's cache folder; None takes ``HF_HOME``'s.
        timeout_s: how long to wait for the hub's first answer, name resolution included.

    Returns:
        The folder of the snapshot. One from the cache has a config.json; weights are checked by who reads them.

    Raises:
        ModelNotFound: the hub has no such model or refuses it, or cannot be reached and the model is
            not in the cache, or the download broke off.
    """
    from huggingface_hub import snapshot_download

    on_progress(f"Asking the hub for {repo_id}")
    refusal = _ask(repo_id, endpoint, timeout_s)

    if refusal is not None:
        folder = cached_folder(repo_id, ["config.json"], cache_dir=cache_dir)
        if folder is None:
            raise ModelNotFound(refusal)
        return folder

    def download(patterns: list[str]) -> Path:
        return Path(
            snapshot_download(
                repo_id,
                endpoint=endpoint,
                cache_dir=cache_dir,
                allow_patterns=patterns,
                ignore_patterns=_UNWANTED,
                tqdm_class=_progress_bar(repo_id, on_progress),
            )
        )

    try:
        path = download(_WANTED)
        if not any(path.glob("*.safetensors")):
            path = download([*_WANTED, "*.bin"])
    except Exception as exc:
        # The hub's client has no common base class for what can go wrong on the way (its HTTP library
        # changed between its versions); all of it means that the model is not here.
        raise ModelNotFound(_sentence(repo_id, exc)) from exc
    return path


def cached_folder(
    repo_id: str,
    names: Iterable[str],
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
) -> Path | None:
    """Return the folder of a model's snapshot in the hub's cache that has one of these files; None: none has.

    What else the repository has need not be there: tokenizers, pictures, weights in other formats.

    Args:
        repo_id: OWNER/NAME or NAME.
        names: of files, in the order in which they are looked for.
        revision: branch, tag or commit; None: the main branch.
        cache_dir: the hub's cache folder; None takes ``HF_HOME``'s.
    """
    from huggingface_hub import try_to_load_from_cache

    found = (try_to_load_from_cache(repo_id, name, cache_dir, revision) for name in names)
    return next((Path(path).parent for path in found if isinstance(path, str)), None)


def _ask(repo_id: str, endpoint: str | None, timeout_s: float) -> str | None:
    """Ask the hub whether it has a model: None for yes, else a sentence on why it cannot be had.

    In a thread of its own, because a name server that does not answer blocks for as long as the
    system's resolver likes, whatever the HTTP timeout. A daemon, so that it never delays the exit.
    """
    from huggingface_hub import HfApi

    answer: Future[Any] = Future()

    def ask() -> None:
        try:
            answer.set_result(HfApi(endpoint=endpoint).model_info(repo_id, timeout=timeout_s))
        except Exception as exc:  # noqa: BLE001 - carried to the caller by the future
            answer.set_exception(exc)

    threading.Thread(target=ask, name="pocqueue-hub", daemon=True).start()
    try:
        error = answer.exception(timeout_s)
    except TimeoutError as exc:
        error = exc
    return None if error is None else _sentence(repo_id, error)


def _sentence(repo_id: str, error: BaseException) -> str:
    """Put into one or two sentences why a model cannot be had from the hub."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    if isinstance(error, GatedRepoError):
        why = "the hub wants its terms accepted first. Do that on its page and set HF_TOKEN."
    elif isinstance(error, RepositoryNotFoundError):
        why = (
            "the hub has no such public model. Check the spelling (a folder with a config.json, "
            "or a hub id such as Qwen/Qwen3-0.6B), or set HF_TOKEN for a private one."
        )
    elif isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        why = f"the hub answered with HTTP status {status}. Try again, or name a local folder."
    else:
        why = (
            f"cannot be downloaded from the hub ({type(error).__name__}). Check the network, or name "
            'a local folder that has a config.json, or use the model "embedded".'
        )
    return f"Model {repo_id!r} is not a folder on this machine and {why}"


def _progress_bar(repo_id: str, on_progress: OnProgress) -> type[Any]:
    """Make a tqdm class that reports bytes to ``on_progress`` and draws nothing."""
    from huggingface_hub.utils.tqdm import tqdm

    last_report = 0.0

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs |= {"file": io.StringIO(), "disable": False}
            super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]

        def display(self, *_args: Any, **_kwargs: Any) -> None:
            """Draw nothing."""

        def update(self, n: float | None = 1) -> None:
            nonlocal last_report
            super().update(n)
            now = time.monotonic()
            if self.unit == "B" and self.total and now - last_report >= _REPORT_EVERY_S:
                last_report = now
                done, total = self.n / 1e9, self.total / 1e9
                on_progress(f"Downloading {repo_id}: {done:.2f} of {total:.2f} GB")

    return Bar
