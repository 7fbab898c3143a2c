"""`pocqueue hosts audit` and `pocqueue hosts payout`: what GPU hosts earned."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pocqueue.cli.host_store import open_store
from pocqueue.cli.options import EnvFile, Json
from pocqueue.cli.output import EXIT_FAILED, columns, console, print_json
from pocqueue.words import counted

if TYPE_CHECKING:
    from pocqueue.hosts.store.ledger import Payout


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
        float, typer.Option(min=0.000001, help="HYPER; a wallet with less waits.")
    ] = 0.01,
    batch: Annotated[
        str | None, typer.Option(help="With --csv: write payouts again that were made before.")
    ] = None,
    env_file: EnvFile = None,
) -> None:
    """Show what could be paid out; with --csv take it out of the ledger, to be sent by whoever has the key.

    Nothing is sent from here. What was taken out is paid as far as the ledger goes, also if the file is lost: its
    batch can be written again. Exit code: 2 for bad input.
    """
    from pocqueue.errors import SettingsError
    from pocqueue.hosts.pay import MICRO_PER_HYPER, hyper

    if batch is not None and to_csv is None:
        raise SettingsError("--batch goes with --csv: name the file.")
    if to_csv is not None and str(to_csv) != "-":
        _check_new(to_csv)
    micro = round(at_least * MICRO_PER_HYPER)
    with open_store() as store:
        if to_csv is None:
            rows = [one for one in store.ledger.payable() if one.micro >= micro]
            table = columns("wallet", right=("HYPER",))
            for one in rows:
                table.add_row(one.wallet, hyper(one.micro))
            if rows:
                console().print(table)
            total = hyper(sum(one.micro for one in rows))
            console().print(
                f"{total} HYPER for {counted(len(rows), 'wallet')}; nothing was changed."
            )
            return
        if batch is None:
            made = store.ledger.pay_out(at_least=micro)
        else:
            made = store.ledger.payouts(batch)
            if not made:
                raise SettingsError(f"--batch is {batch!r}; there are no payouts of that name.")
    total = hyper(sum(one.micro for one in made))
    names = {one.batch for one in made}
    said = f"{total} HYPER for {counted(len(made), 'wallet')}" + "".join(
        f", batch {n}" for n in names
    )
    _write(to_csv, made, said)
    console(stderr=True).print(f"{said}.")


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


def _write(path: Path, made: list[Payout], said: str) -> None:
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
            f"{said}: taken out of the ledger, but {path} cannot be written ({exc.strerror}). Write them again "
            "with --csv FILE --batch BATCH."
        ) from None
