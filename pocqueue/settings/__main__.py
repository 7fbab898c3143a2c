"""What there is to set, written from the classes: `python -m pocqueue.settings env|markdown`.

`make settings` keeps `config/env.example` and `docs/settings.md` with it; a test says when they are old.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from pydantic.fields import FieldInfo

from pocqueue.settings import ALL
from pocqueue.settings.base import EnvSettings


class Docker(EnvSettings):
    """Docker alone (`compose.yaml`)."""

    redis_password: str = ""
    """password of Redis, required. It becomes part of a URL: use only letters, digits and - . _ ~ (make one: `openssl rand -hex 32`)"""
    compose_profiles: str | None = None
    """workers to start without `--profile` on the command line: `cpu` or `gpu`; not both, they would serve the same queue gpu0"""
    torch_index_url: str | None = None
    """where the GPU image takes torch from beside the default index; for an older driver such as https://download.pytorch.org/whl/cu126"""
    hf_token: str | None = None
    """token for models on the Hugging Face hub that are not public"""
    grafana_admin_password: str | None = None
    """password of Grafana's user admin; `--profile watch` needs it"""
    grafana_port: int = 3000
    """port of Grafana on this machine's loopback"""
    prometheus_port: int = 9091
    """port of Prometheus on this machine's loopback"""


_ENV_HEAD = """\
# Every environment variable of pocqueue, with its default behind `#NAME=`. Made by `make settings`.
# For Docker: cp config/env.example .env, fill in REDIS_PASSWORD, docker compose --profile cpu up
# (or --profile gpu); addresses, ports and folders inside the containers are set by compose.yaml.
# Without Docker: export what you want to change; nothing here is required.
"""
_MARKDOWN_HEAD = """\
# Settings

Environment variables, all optional; `config/env.example` is the same list as a file. What a process needs to
be told can also stand in a file of lines `NAME=value` or `export NAME=value`, which the commands of the small
and the big node take with `--env-file`; the environment goes before the file, and a command's option before
both. This page is made from the classes in `pocqueue/settings/` (`make settings`).
"""

_Row = tuple[str, str | None, str]


def sections() -> Iterator[tuple[str, list[_Row]]]:
    """Return all variables, as (title, rows of name, default and meaning)."""
    for kind in (*ALL, Docker):
        fields = kind.model_fields
        rows = [
            (kind.variable(name), _default(f), str(f.description)) for name, f in fields.items()
        ]
        yield str(kind.__doc__), rows


def env_example() -> str:
    """Return the text of config/env.example."""
    lines = [_ENV_HEAD]
    for title, rows in sections():
        lines.append(f"# ---- {title}\n".replace("`", ""))
        for name, default, meaning in rows:
            off = "" if default == "" else "#"  # empty: to be filled in
            lines.append(f"# {meaning}.\n{off}{name}={default or ''}\n".replace("`", ""))
    return "\n".join(lines)


def markdown() -> str:
    """Return the text of docs/settings.md."""
    lines = [_MARKDOWN_HEAD]
    for title, rows in sections():
        lines.append(f"## {title.rstrip('.')}\n")
        lines.append("| variable | default | what it is |\n| --- | --- | --- |")
        for name, default, meaning in rows:
            lines.append(f"| `{name}` | {f'`{default}`' if default else 'unset'} | {meaning} |")
        lines.append("")
    return "\n".join(lines)


def _default(field: FieldInfo) -> str | None:
    if field.default_factory is not None:
        return str(field.examples[0]) if field.examples else None
    value: Any = field.default
    return None if value is None else str(value).lower() if isinstance(value, bool) else str(value)


if __name__ == "__main__":
    texts = {"env": env_example, "markdown": markdown}
    if sys.argv[1:] not in ([name] for name in texts):
        sys.exit("usage: python -m pocqueue.settings env|markdown")
    sys.stdout.write(texts[sys.argv[1]]())
