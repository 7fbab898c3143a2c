"""`pocqueue hosts audit` and `pocqueue hosts payout`: what GPU hosts earned."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pocqueue.cli.host_store import open_store
from pocqueue.cli.options import EnvFile, Json
from pocqueue.cli.output import EXIT_FAILED, columns, console, print_json
from pocqueue.words import counted

if TYPE_CHECKING:
    from pocqueue.hosts.store.ledger import Batch, Payout


#: Above what anybody can have earned; whole micro-HYPER of it fit into a row.
_MOST_HYPER = 1e12


def audit(as_json: Json = False, env_file: EnvFile = None) -> None:
    """Compare the ledger with what it is about: each attempt's times and pay, each payout.

    Exit code: 0 if all of it agrees, 1 if something differs, 2 if the database cannot be read.
    """
    with open_store() as store:
        found = store.ledger.differences()
    if as_json:
        print_json(found)
    else:
        for sentence in found:
            typer.echo(sentence)
        console(stderr=True).print(f"{counted(len(found), 'difference')}.")
    if found:
        raise typer.Exit(EXIT_FAILED)


def payout(
    to_csv: Annotated[
        Path | None,
        typer.Option(
            "--csv", help="Make the payouts, and write them to this new file; - prints them."
        ),
    ] = None,
    at_least: Annotated[
        float,
        typer.Option(min=0.000001, max=_MOST_HYPER, help="HYPER; a wallet with less waits."),
    ] = 0.01,
    batch: Annotated[
        str | None,
        typer.Option(help="Print payouts that were made before, or with --csv write them again."),
    ] = None,
    made: Annotated[
        bool, typer.Option("--list", help="List what was paid out before, by batch.")
    ] = False,
    env_file: EnvFile = None,
) -> None:
    """Show what could be paid out; with --csv take it out of the ledger, to be sent by whoever has the key.

    Nothing is sent from here. What was taken out is paid as far as the ledger goes, also if the file is lost:
    --list shows its batch, and --batch prints it again. Exit code: 2 for bad input.
    """
    from pocqueue.errors import SettingsError
    from pocqueue.hosts.pay import MICRO_PER_HYPER

    if made and (to_csv is not None or batch is not None):
        raise SettingsError("--list changes nothing: leave --csv and --batch out.")
    if to_csv is not None and str(to_csv) != "-":
        _check_new(to_csv)
    micro = round(at_least * MICRO_PER_HYPER)
    with open_store() as store:
        if made:
            _show_batches(store.ledger.batches())
            return
        if batch is not None:
            rows = store.ledger.payouts(batch)
            if not rows:
                raise SettingsError(
                    f"--batch is {batch!r}; there are no payouts of that name. `pocqueue hosts payout --list` has them."
                )
        elif to_csv is None:
            _show_payable([one for one in store.ledger.payable() if one.micro >= micro])
            return
        else:
            rows = store.ledger.pay_out(at_least=micro)
    # Before the file: whoever loses it, or is killed while it is written, knows what to ask for.
    said = _sum(rows) + (f", batch {rows[0].batch}" if rows else "")
    console(stderr=True).print(f"{said}.")
    _write(to_csv or Path("-"), rows, said)


def _sum(rows: Sequence[Payout]) -> str:
    from pocqueue.hosts.pay import hyper

    return f"{hyper(sum(one.micro for one in rows))} HYPER for {counted(len(rows), 'wallet')}"


def _show_payable(rows: Sequence[Payout]) -> None:
    from pocqueue.hosts.pay import hyper

    table = columns("wallet", right=("HYPER",))
    for one in rows:
        table.add_row(one.wallet, hyper(one.micro))
    if rows:
        console().print(table)
    console().print(f"{_sum(rows)}; nothing was changed.")


def _show_batches(rows: Sequence[Batch]) -> None:
    from pocqueue.hosts.pay import hyper

    table = columns("batch", "when", right=("wallets", "HYPER"))
    for one in rows:
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(one.at_ms / 1000))
        table.add_row(one.id, when, str(one.num), hyper(one.micro))
    if rows:
        console().print(table)
    else:
        console().print("Nothing was paid out yet. `pocqueue hosts payout` shows what could be.")


def _check_new(path: Path) -> None:
    """See before anything is paid that the file can be made.

    Raises:
        SettingsError: it is there already, or cannot be made.
    """
    from pocqueue.errors import SettingsError

    try:
        with path.open("x"):
            pass
        path.unlink()
    except FileExistsError:
        raise SettingsError(
            f"--csv is {str(path)!r}, which is there already: name a new file."
        ) from None
    except OSError as exc:
        raise SettingsError(
            f"--csv is {str(path)!r}, which cannot be written ({exc.strerror})."
        ) from None


def _write(path: Path, made: Sequence[Payout], said: str) -> None:
    from pocqueue.errors import SettingsError
    from pocqueue.hosts.pay import hyper

    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["payout", "wallet", "hyper"])
    rows.writerows([one.id, one.wallet, hyper(one.micro)] for one in made)
    if str(path) == "-":
        typer.echo(text.getvalue(), nl=False)
        return
    try:
        path.write_text(text.getvalue())
    except OSError as exc:
        raise SettingsError(
            f"{said}: taken out of the ledger, but {path} cannot be written ({exc.strerror}). Write it again "
            "with --csv FILE --batch BATCH."
        ) from None
