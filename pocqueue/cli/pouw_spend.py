"""Commands that spend: coins to another account, a ticket given back.

The transaction is signed here, with the key in the node's folder, and the node that runs on this machine passes it on:
so nobody who only reaches its port can spend anything.
"""

from __future__ import annotations

import re
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pocqueue.cli.options import EnvFile, Json
from pocqueue.cli.output import EXIT_FAILED, console, print_error, print_json
from pocqueue.cli.pouw_client import HttpPort, ask

if TYPE_CHECKING:
    from pocqueue.pouw.wire.transactions import Body

ticket_app = typer.Typer(
    help="The ticket of the node on this machine, and with it its stake.", no_args_is_help=True
)

_LOOK_S = 0.5
#: So long is waited for a block that has it.
_PATIENCE_S = 120.0


def send(
    address: Annotated[str, typer.Argument(help="Account that gets it: 66 hex digits.")],
    amount: Annotated[str, typer.Argument(help="PAI, with at most 6 decimals.")],
    http_port: HttpPort = None,
    as_json: Json = False,
    env_file: EnvFile = None,
) -> None:
    """Send coins of the node's account to another one, and wait until a block has it.

    Exit code: 0; 1 if no block had it within 2 minutes, when it may still be taken, or if another transaction took its
    place; 2 for bad input, or if the node refuses it.
    """
    from pocqueue.pouw.chain.amounts import micro, text
    from pocqueue.pouw.errors import ConfigError
    from pocqueue.pouw.wire.transactions import Transfer

    if not re.fullmatch("0[23][0-9a-fA-F]{64}", address):
        raise ConfigError(
            "address", address, "66 hex digits, a public key as `pocqueue pouw status` shows it"
        )
    try:
        given = micro(amount, "amount")
    except ValueError as exc:
        raise ConfigError(
            "amount", amount, str(exc).partition("allowed: ")[2].rstrip(".")
        ) from None
    _spend(
        http_port, Transfer(bytes.fromhex(address), given), f"{text(given)} to {address}", as_json
    )


@ticket_app.command(
    "release", short_help="Give the ticket back; its stake is free some blocks later."
)
def release(
    ticket: Annotated[
        str | None, typer.Argument(help="Its id [default: the ticket of the node's role].")
    ] = None,
    http_port: HttpPort = None,
    as_json: Json = False,
    env_file: EnvFile = None,
) -> None:
    """Give a ticket of the node's account back, and wait until a block has it.

    Until its stake is free it can still be taken for what was done with it. Exit code: 0; 1 if no block had it within
    2 minutes, when it may still be taken; 2 for bad input, or if there is no such ticket.
    """
    from pocqueue.pouw.errors import ConfigError, PouwError
    from pocqueue.pouw.wire.transactions import Release

    if ticket is None:
        ticket = ask(http_port, "status")["staking_ticket"]
        if ticket is None:
            raise PouwError("The node on this machine has no ticket.")
    if not re.fullmatch("[0-9a-f]{64}", ticket):
        raise ConfigError("ticket", ticket, "64 hex digits, as `pocqueue pouw balance` shows it")
    _spend(http_port, Release(bytes.fromhex(ticket)), f"ticket {ticket} given back", as_json)


def _spend(http_port: int | None, body: Body, what: str, as_json: bool) -> None:
    """Sign a transaction of the node's account, give it to the node, and wait for a block.

    Raises:
        PouwError: the node refuses it, or is another account's.
        typer.Exit: no block had it in time, when it is said that it may still be taken, or one had another of its number.
    """
    from pocqueue.pouw.chain.signatures import account_of, sign_transaction
    from pocqueue.pouw.errors import NoAnswer, PouwError
    from pocqueue.pouw.files import NODE_KEY, account_key, data_dir
    from pocqueue.pouw.flow.life import genesis_of
    from pocqueue.pouw.wire.codec import encode
    from pocqueue.settings import PouwSettings

    settings = PouwSettings.load()
    folder = data_dir(settings)
    key = account_key(settings, folder, NODE_KEY)
    account = account_of(key).hex()
    own = ask(http_port, "status")["public_key"]
    if own != account:
        raise PouwError(
            f"The node on this machine is {own[:12]}, and the key of {folder} is {account[:12]}: name its folder in "
            "POCQUEUE_POUW_DIR."
        )
    found = ask(http_port, f"accounts/{account}")
    signed = sign_transaction(
        key, genesis_of(settings.network).network, found["next_sequence"], found["usual_fee"], body
    )
    with suppress(NoAnswer):  # it may have it all the same
        ask(http_port, f"transactions/{encode(signed).hex()}", post=True)
    balance = _balance_after(http_port, account, signed.sequence)
    if balance is None:
        print_error(
            f"{what}: no block has it after {_PATIENCE_S:g} s. It was sent as transaction {signed.id.hex()} and may "
            "still be taken: do not send it again before `pocqueue pouw balance` shows what became of it."
        )
        raise typer.Exit(EXIT_FAILED)
    taken = ask(http_port, f"transactions/{signed.id.hex()}")
    if taken["height"] is None:
        why = taken["reason"] or "another one of this key has its number."
        print_error(
            f"{what}: it was not done, for transaction {signed.id.hex()} was given up: {why}"
        )
        raise typer.Exit(EXIT_FAILED)
    _tell({"transaction": signed.id.hex(), "balance": balance}, what, as_json)


def _balance_after(http_port: int | None, account: str, sequence: int) -> float | None:
    """Wait for the block that has an account's transaction of this number; return its balance then, None: none has it
    in time, or nobody says so."""
    from pocqueue.pouw.errors import PouwError

    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        with suppress(PouwError):  # what is sent is sent, whether the node is there now or not
            found = ask(http_port, f"accounts/{account}")
            if found["sequence"] > sequence:
                return float(found["balance"])
        time.sleep(_LOOK_S)
    return None


def _tell(found: dict[str, Any], what: str, as_json: bool) -> None:
    if as_json:
        print_json(found)
    else:
        console().print(f"{what}; {found['balance']:,.6f} PAI are left.", soft_wrap=True)
