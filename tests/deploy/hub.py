"""The model hub, as far as its fake program and that of HTTP answer for it."""

from __future__ import annotations

import json
from hashlib import sha1, sha256
from pathlib import Path

from pocqueue.deploy.steps.model import HUB
from tests.deploy.fake_programs import Fakes

#: Of the model, as the fake hub has it.
REVISION = "c" * 40
MODEL = "Qwen/Qwen3-32B-FP8"


def has_listing(fakes: Fakes, revision: str = "main") -> None:
    """Have the hub list the model that its fake program loads."""
    fakes.run("hf", "version")
    siblings = [_row(file) for file in sorted((fakes.folder / "state" / "model").iterdir())]
    url = f"{HUB}/api/models/{MODEL}/revision/{revision}?blobs=true"
    fakes.answer(url, json.dumps({"sha": REVISION, "siblings": siblings}))


def _row(file: Path) -> dict[str, object]:
    """Return what is listed of a file: large ones are named by their SHA-256, others as git names them."""
    content = file.read_bytes()
    row: dict[str, object] = {"rfilename": file.name, "size": len(content), "blobId": "a" * 40}
    if file.suffix == ".safetensors":
        return row | {"lfs": {"sha256": sha256(content).hexdigest(), "size": len(content)}}
    return row | {"blobId": sha1(b"blob %d\0" % len(content) + content).hexdigest()}  # noqa: S324
