"""`pocqueue node key …`: the small node's signing key."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pocqueue.cli.options import EnvFile, Json
from pocqueue.cli.output import print_json

app = typer.Typer(
    help="The signing key of the small node: secp256k1, readable by its owner only.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_UNSET = "; unset: POCQUEUE_NODE_KEY, or node-key.pem in the state folder."


@app.command(short_help="Make a key.")
def new(
    out: Annotated[Path | None, typer.Option(help=f"New file{_UNSET}")] = None,
    as_json: Json = False,
    env_file: EnvFile = None,
) -> None:
    """Make a key in a new file of mode 0600, and print its public key. No file is overwritten."""
    from pocqueue.node.keys import SigningKey

    path = _path(out)
    if out is None:
        _make_folder(path.parent)
    key = SigningKey.generate()
    key.save_pem(path)
    if as_json:
        print_json({"path": str(path), "public_key": key.public_hex})
        return
    typer.echo(f"Signing key: {path}")
    typer.echo(f"Public key:  {key.public_hex}")
    typer.echo("Keep a copy of the file in a safe place: nobody can make this key again.")


@app.command(short_help="Print the public key.")
def show(
    key: Annotated[Path | None, typer.Option(help=f"Its file{_UNSET}")] = None,
    as_json: Json = False,
    env_file: EnvFile = None,
) -> None:
    """Print the public key, by which receivers know the node.

    The secret is never printed.
    """
    from pocqueue.node.keys import SigningKey

    path = _path(key)
    public_hex = SigningKey.load(path).public_hex
    if as_json:
        print_json({"path": str(path), "public_key": public_hex})
        return
    typer.echo(public_hex)


def _path(given: Path | None) -> Path:
    if given is not None:
        return given.expanduser().absolute()
    from pocqueue.node.keys import key_path
    from pocqueue.settings import NodeSettings, Settings

    return key_path(Settings.load(), NodeSettings.load())


def _make_folder(folder: Path) -> None:
    from pocqueue.errors import KeyFileError

    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as exc:
        raise KeyFileError(
            f"The folder {folder} of the signing key cannot be made ({exc.strerror}): give another "
            "file with --out, or set POCQUEUE_STATE_DIR to another folder."
        ) from None
