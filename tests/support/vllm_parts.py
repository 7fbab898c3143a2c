"""The real vLLM on the CPU for tests: a small model with a tokenizer, and server processes.

A missing vLLM skips these tests on a laptop and fails them in CI (`need_vllm`).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import httpx
import pytest

from pocqueue.engine.torch_model.embedded import CONFIG, ensure_embedded_model
from pocqueue.processes import child_exec
from tests.support.commands import without_settings
from tests.support.ports import free_port
from tests.support.waiting import wait_until

#: Generous: two cores may be busy with everything else of a CI run.
START_TIMEOUT_S = 1500.0


def need_vllm() -> None:
    """Skip the tests of this module where vLLM is not installed; in CI it must be."""
    if find_spec("vllm") is None and not os.environ.get("CI"):
        pytest.skip("vLLM is not installed; `make test` installs it", allow_module_level=True)


def served_model(folder: Path) -> Path:
    """Make a folder with the embedded model's weights and a tokenizer of the words w0 … w1023."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    target = folder / "model"
    shutil.copytree(ensure_embedded_model(folder), target)
    vocab = {f"w{i}": i for i in range(CONFIG["vocab_size"])}
    words = Tokenizer(WordLevel(vocab, unk_token="w0"))
    words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="w0", eos_token="w1", pad_token="w2"
    ).save_pretrained(target)
    return target


class VllmServer:
    """A real vLLM server process with the plugin. A context manager that ends it.

    Args:
        model: folder of the model.
        log: file for its output.
        env: beside the environment of the tests.
        args: more arguments of the server.
    """

    def __init__(self, model: Path, log: Path, env: dict[str, str], *args: str) -> None:
        self.port = free_port()
        self.log = log
        clean = without_settings()
        self._env = clean | {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"} | env
        self._argv = [
            # Ends with the tests, however they end: a server that is left over decodes for long.
            *(sys.executable, "-I", "-S", child_exec.__file__, str(os.getpid())),
            *(sys.executable, "-m", "pocqueue", "vllm", "serve", str(model)),
            *("--host", "127.0.0.1", "--port", str(self.port)),
            *("--max-model-len", "1024", "--kv-cache-memory-bytes", str(64 << 20)),
            *("--served-model-name", "tiny", "--max-num-seqs", "64"),
            *args,
        ]
        self.url = f"http://127.0.0.1:{self.port}"
        # A fresh connection each time: the server closes those that wait for 5 s, maybe just as one is used again.
        self.client = httpx.Client(
            base_url=self.url,
            timeout=300,
            trust_env=False,
            limits=httpx.Limits(max_keepalive_connections=0),
        )
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            # Before it is stopped: what it said last may be why.
            sys.stderr.write(self.tail())
        self.stop()
        self.client.close()

    def start(self) -> None:
        """Start it and wait until it answers."""
        with self.log.open("ab") as log:
            # A session of its own: its engine is a process below it, and goes with it.
            self.process = subprocess.Popen(
                self._argv,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        wait_until(self._answers, START_TIMEOUT_S, "the vLLM server")

    def stop(self) -> None:
        """End it as an operator would; kill what is left of its session."""
        process, self.process = self.process, None
        if process is None:
            return
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=120)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=120)

    def pow(self, method: str, route: str, body: Any = None) -> httpx.Response:
        """Call a proof route."""
        return self.client.request(method, f"/api/v1/pow/{route}", json=body)

    def status(self) -> dict[str, Any]:
        """Return the status of the proof round."""
        answer: dict[str, Any] = self.pow("GET", "status").raise_for_status().json()
        return answer

    def completion(self, prompt: str, max_tokens: int = 8) -> httpx.Response:
        """Ask for a greedy completion."""
        body = {"model": "tiny", "prompt": prompt, "max_tokens": max_tokens, "temperature": 0}
        return self.client.post("/v1/completions", json=body | {"ignore_eos": True})

    def stream(self, prompt: str, max_tokens: int, begun: threading.Event) -> Iterator[str]:
        """Ask for a greedy completion piece by piece; set `begun` at the first."""
        body = {"model": "tiny", "prompt": prompt, "max_tokens": max_tokens, "temperature": 0}
        options = {"ignore_eos": True, "stream": True}
        with self.client.stream("POST", "/v1/completions", json=body | options) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    begun.set()
                    yield json.loads(line.removeprefix("data: "))["choices"][0]["text"]

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.tail()
        try:
            return self.client.get("/health", timeout=60).status_code == 200
        except httpx.TransportError:
            return False

    def tail(self) -> str:
        """Return the end of its output."""
        return self.log.read_text(errors="replace")[-5000:]
