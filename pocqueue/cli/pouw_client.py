"""What commands of `pocqueue pouw` ask a node on this machine, and orders that they send as nodes of their own."""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from pocqueue.cli.options import EnvFile, Json
from pocqueue.cli.output import EXIT_FAILED, interruptible, print_json
from pocqueue.cli.pouw_order import BUILT_IN, client_node, order

task_app = typer.Typer(help="Models that the network trains for you.", no_args_is_help=True)

HttpPort = Annotated[
    int | None,
    typer.Option(
        min=0, max=65535, help="Port of the node's HTTP on 127.0.0.1, instead of the setting."
    ),
]

#: 30 days: the longest that `dev` takes.
_MAX_MINUTES = 43_200
#: Of a private task where nothing else is said: chance, the norm that gradients are clipped to, samples of a mini-batch
#: (noise is on their sum, so more of them have less each), and a tau above most of the noise. As `benchmarks.pouw_privacy`.
_DELTA, _MAX_NORM, _PRIVATE_BATCH, _PRIVATE_TAU = 1e-6, 1.0, 512, 0.1


def ask(http_port: int | None, path: str, *, post: bool = False, timeout_s: float = 60.0) -> Any:
    """Return what the node on this machine answers.

    Raises:
        NoAnswer: none answers there, or not in time.
        PouwError: it refuses.
    """
    import ssl

    import httpx

    from pocqueue.pouw.errors import NoAnswer, PouwError
    from pocqueue.settings import PouwSettings

    port = PouwSettings.load().http_port if http_port is None else http_port
    url = f"http://127.0.0.1:{port}/api/{path}"
    # Nothing is encrypted on this machine: without a context of ours each call reads all of its authorities, in 30 ms.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    method = "POST" if post else "GET"
    try:
        reply = httpx.request(method, url, timeout=timeout_s, trust_env=False, verify=context)
        answer = reply.json()
    except (httpx.HTTPError, ValueError):
        raise NoAnswer(
            f"No node answers at 127.0.0.1:{port}: start one with `pocqueue pouw node`, or name its port with "
            "--http-port."
        ) from None
    if reply.status_code != 200:
        raise PouwError(str(answer.get("detail", answer) if isinstance(answer, dict) else answer))
    return answer


def short(hex_id: str) -> str:
    """Return the beginning of an id, enough to tell it from others on a screen."""
    return hex_id[:12]


@task_app.command("submit", short_help="Order a model and pay for it.")
def submit(
    data: Annotated[
        str, typer.Argument(help="digits, words, or a safetensors file with data of your own.")
    ],
    test: Annotated[
        Path | None,
        typer.Option(help="A file with a test part that nobody gets before the training is over."),
    ] = None,
    reward: Annotated[
        float, typer.Option(min=0, help="PAI for a model as good as asked for.")
    ] = 50.0,
    fee: Annotated[float, typer.Option(min=0, help="PAI on top, for the training itself.")] = 5.0,
    name: Annotated[
        str | None,
        typer.Option(
            help="Your name for it, 1 to 64 characters of ASCII [default: DATA and the time]."
        ),
    ] = None,
    architecture: Annotated[
        str | None, typer.Option(help="MLP, CNN or BAG [default: by the data].")
    ] = None,
    widths: Annotated[
        str | None,
        typer.Option(help="Of the model's layers, such as 64,32 [default: the architecture's]."),
    ] = None,
    tau: Annotated[
        float | None,
        typer.Option(
            min=0.000001,
            max=1,
            help="A weight moves when it is pulled so far [default: the architecture's].",
        ),
    ] = None,
    min_accuracy: Annotated[
        float, typer.Option(min=0, max=1, help="Share of right answers asked for.")
    ] = 0.9,
    max_epochs: Annotated[int, typer.Option(min=1, help="Laps of training at most.")] = 100,
    epsilon: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            max=100,
            help="Train privately: as much as this is the most that messages and weights tell of one sample. Noise follows from "
            "it and from --max-epochs; fewer laps take less of it.",
        ),
    ] = None,
    delta: Annotated[
        float | None,
        typer.Option(
            min=1e-12,
            max=0.1,
            help=f"Chance that they tell more, with --epsilon [default: {_DELTA:g}].",
        ),
    ] = None,
    min_miners: Annotated[
        int, typer.Option(min=1, max=16, help="With fewer it does not begin.")
    ] = 1,
    minutes: Annotated[
        float, typer.Option(min=1, max=_MAX_MINUTES, help="It has to be trained within so many.")
    ] = 60.0,
    bootstrap: Annotated[
        list[str] | None,
        typer.Option(help="HOST:PORT of a node [default on dev: 127.0.0.1:8000]."),
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Stay until it is paid out, refunded or refused.")
    ] = False,
    as_json: Json = False,
    env_file: EnvFile = None,
) -> None:
    """Order a model, as a node of its own that leaves again: its reward and fee go into escrow.

    With files it stays until the task is over, as the other nodes have the data from it: images, vectors or words, as the
    file says (docs/pouw.md has its format).

    The account is that of POCQUEUE_POUW_KEY, or of `client-key.pem` in the node's folder; one order of it runs at a time.
    On `dev` it takes what it needs from the faucet. Exit code: 0; 1 if the task was not taken or came to nothing; 2 for
    bad input, or while another order of the account runs; 130 after Ctrl-C.
    """
    from pocqueue.pouw.blockchain import MLTask
    from pocqueue.pouw.errors import ConfigError

    if data not in BUILT_IN and not Path(data).is_file():
        raise ConfigError("data", data, "digits, words, or the path of a file")
    requirements: dict[str, Any] = {
        "min_accuracy": min_accuracy,
        "max_epochs": max_epochs,
        "min_miners": min_miners,
    }
    if architecture is not None:
        requirements["architecture"] = architecture
    if tau is not None:
        requirements["tau"] = tau
    if test is not None:
        _check_test(test)
    if widths is not None:
        requirements["hidden"] = _widths(widths)
    if epsilon is not None:
        private = _private(epsilon, _DELTA if delta is None else delta, max_epochs)
        requirements = {**private, **requirements}
    elif delta is not None:
        raise ConfigError("--delta", delta, "with --epsilon only")
    task = MLTask(
        task_id=name or _name_for(data),
        task_type=BUILT_IN.get(data) or _type_of(Path(data)),
        dataset_hash=data,
        model_requirements=requirements,
        reward_amount=reward,
        deadline=int(time.time() + minutes * 60),
    )
    with interruptible(), client_node(bootstrap or [], reward + fee) as client:
        found = asyncio.run(order(client, task, fee, test, watch=watch))
    if as_json:
        print_json(found)
    if found["state"] in {"refused", "refunded"}:
        raise typer.Exit(EXIT_FAILED)


def _name_for(data: str) -> str:
    """Return a name for an order of data, of signs that the chain takes."""
    return f"{re.sub('[^ -~]', '_', Path(data).stem)[:40]}_{int(time.time())}"


def _widths(text: str) -> list[int]:
    """Return the widths that are listed.

    Raises:
        ConfigError: they are no whole numbers.
    """
    from pocqueue.pouw.errors import ConfigError

    try:
        return [int(width) for width in text.split(",")]
    except ValueError:
        raise ConfigError("--widths", text, "whole numbers with commas, such as 64,32") from None


def _private(epsilon: float, delta: float, max_epochs: int) -> dict[str, Any]:
    """Return what a task has to have so that all of its laps have this epsilon at most.

    Raises:
        ConfigError: no noise that is allowed is enough for so many laps.
    """
    from decimal import Decimal

    from pocqueue.pouw.chain.tasks import MAX_NOISE, PRIVATE_MESSAGES
    from pocqueue.pouw.errors import ConfigError
    from pocqueue.pouw.privacy import least_noise
    from pocqueue.pouw.slots.task import LAP

    num_messages = max_epochs * LAP * PRIVATE_MESSAGES
    noise = least_noise(num_messages, Decimal(repr(delta)), Decimal(repr(epsilon)), MAX_NOISE)
    if noise is None:
        raise ConfigError(
            "--epsilon",
            epsilon,
            f"what a noise of {MAX_NOISE:,} times the norm gives {max_epochs} laps: take more, or a smaller --max-epochs",
        )
    privacy = {
        "noise_multiplier": float(noise),
        "max_norm": _MAX_NORM,
        "epsilon": epsilon,
        "delta": delta,
        "max_messages": PRIVATE_MESSAGES,
    }
    return {"batch_size": _PRIVATE_BATCH, "tau": _PRIVATE_TAU, "privacy": privacy}


def _type_of(path: Path) -> str:
    """Return the type of a task on a file, by what is in it.

    Raises:
        DataError: it is no file of data.
    """
    from pocqueue.pouw.data.parts import read

    file = read(path)
    if file.is_indices:
        return "text_classification"
    return "image_classification" if file.side else "classification"


def _check_test(path: Path) -> None:
    """Raise a DataError unless this is a file with a test part."""
    from pocqueue.pouw.data.parts import TESTING, read

    read(path, TESTING)
