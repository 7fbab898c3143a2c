"""`pocqueue vllm serve`: a vLLM server with the proof routes, in one short line."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser
from collections.abc import Mapping
from typing import Annotated

import typer

app = typer.Typer(help="A vLLM server with the proof routes.", no_args_is_help=True)

#: What an operator gives a vLLM that loads no endpoint plugins as ``--middleware``; see ``served/middleware.py``.
MIDDLEWARE = "pocqueue.served.middleware.PoCMiddleware"


@app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def serve(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Folder or hub id, as `vllm serve` takes it.")],
) -> None:
    """Serve a model with vLLM, and proof rounds on it. All other options are passed on to vLLM.

    Short for: VLLM_PLUGINS=pocqueue vllm serve MODEL --worker-extension-cls
    pocqueue.engine.vllm.worker.PoCWorker; before vLLM 0.26, which loads no plugins, with --middleware
    pocqueue.served.middleware.PoCMiddleware in their place
    """
    from pocqueue.engine.vllm.versions import find_vllm, has_endpoint_plugins

    plugins = has_endpoint_plugins(find_vllm())
    argv, env = vllm_command(model, context.args, os.environ, plugins=plugins)
    # In place of this process: signals, exit code and terminal are the server's own.
    os.execve(argv[0], argv, env)  # noqa: S606 - a fixed program, and no shell


def vllm_command(
    model: str, args: list[str], environ: Mapping[str, str], *, plugins: bool = True
) -> tuple[list[str], dict[str, str]]:
    """Return program, arguments and environment of the server.

    The server is started as a module: the command `vllm` of builds that are not named vllm, such as
    the one for the CPU, looks for its own version and fails.

    Args:
        model: folder or hub id.
        args: of vLLM, beside it.
        environ: of this process.
        plugins: whether this vLLM loads endpoint plugins; if not, its middleware is ours.

    Raises:
        SettingsError: the arguments name another worker extension, or options come before the model; or,
            without plugins, a setting has a value that is not allowed.
    """
    from pocqueue.engine.base import EXTENSION
    from pocqueue.errors import SettingsError
    from pocqueue.settings import Settings

    if model.startswith("-"):
        # What is not known here may take a value or not, so only the first word can be the model.
        raise SettingsError(
            f"The model is {model!r}; allowed: a folder or a hub id, before all options, as in "
            "`pocqueue vllm serve MODEL --port 8001`."
        )
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    names = ("--worker-extension-cls", "--worker_extension_cls")
    parser.add_argument(*names, dest="given", nargs="?", const="", default=EXTENSION)
    if (given := parser.parse_known_args(args)[0].given) != EXTENSION:
        raise SettingsError(
            f"--worker-extension-cls is {given!r}; allowed: {EXTENSION}, which this command adds. "
            "A class that extends it can be served with `vllm serve` itself."
        )
    env, ours = dict(environ), ["--worker-extension-cls", EXTENSION]
    if plugins:
        named = [name for name in environ.get("VLLM_PLUGINS", "").split(",") if name]
        env["VLLM_PLUGINS"] = ",".join(named if "pocqueue" in named else [*named, "pocqueue"])
    else:
        if not any(MIDDLEWARE in arg for arg in args):
            ours += ["--middleware", MIDDLEWARE]
        # The server reads it before the middleware begins; the plugin sets it in time by itself.
        env.setdefault("FORWARDED_ALLOW_IPS", Settings.load().trusted_proxies or "")
    argv = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    return [*argv, *ours, *args], env
