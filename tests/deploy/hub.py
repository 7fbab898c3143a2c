"""The model hub, as far as its fake program and that of HTTP answer for it."""

from __future__ import annotations

import json

from pocqueue.deploy.steps.model import HUB
from tests.deploy.fake_programs import Fakes

#: Of the model, as the fake hub has it.
REVISION = "c" * 40
MODEL = "Qwen/Qwen3-32B-FP8"


def has_listing(fakes: Fakes, revision: str = "main") -> None:
    """Have the hub list the model that its fake program loads."""
    fakes.run("hf", "version")
    source = fakes.folder / "state" / "model"
    siblings = []
    for file in sorted(source.iterdir()):
        command = ["sh", "-c", 'sha256sum < "$1"', "sh", str(file)]
        if file.suffix != ".safetensors":
            command[2] = '{ printf "blob %s\\0" "$(stat -c %s "$1")"; cat "$1"; } | sha1sum'
        name = fakes.run(*command).stdout.split()[0]
        row: dict[str, object] = {
            "rfilename": file.name,
            "size": file.stat().st_size,
            "blobId": "a" * 40,
        }
        siblings.append(
            row
            | (
                {"lfs": {"sha256": name, "size": file.stat().st_size}}
                if len(name) == 64
                else {"blobId": name}
            )
        )
    url = f"{HUB}/api/models/{MODEL}/revision/{revision}?blobs=true"
    fakes.answer(url, json.dumps({"sha": REVISION, "siblings": siblings}))
