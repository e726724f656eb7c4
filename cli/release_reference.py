"""`quarry release reference`: a file that stands for a key in a PKCS #11 token or in Vault."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from cli.release_files import write_new
from cli.release_keys import PassphraseFd, secret
from cli.release_options import BEGIN
from control_plane.director.key_references import KeyReference, Opening
from control_plane.director.pkcs11_keys import LIBRARY, public_in_token
from control_plane.director.vault_keys import public_in_vault
from shared.trust.keys import BadKey, load_role_key

reference_app = typer.Typer()


@reference_app.command(rich_help_panel=BEGIN)
def reference(
    signer: Annotated[
        str,
        typer.Argument(help="hsm:KEYID?label=TOKEN of a PKCS #11 token, or vault:KEY of Vault's transit."),
    ],
    out: Annotated[Path, typer.Option(help="Where to write the reference; OUT.pub is the public key.")],
    library: Annotated[
        Path | None, typer.Option(envvar=LIBRARY, help="hsm: the token's PKCS #11 library.")
    ] = None,
    pin_file: Annotated[
        Path | None,
        typer.Option(help="hsm: where the PIN will be read, beside the reference; else it is asked."),
    ] = None,
    address: Annotated[str | None, typer.Option(help="vault: its address, https://HOST:8200.")] = None,
    token_file: Annotated[Path | None, typer.Option(help="vault: where its token lies.")] = None,
    ca_file: Annotated[Path | None, typer.Option(help="vault: who signed its certificate (PEM).")] = None,
    mount: Annotated[str, typer.Option(help="vault: where the transit engine is mounted.")] = "transit",
    passphrase_fd: PassphraseFd = None,
) -> None:
    """Read the public half of a key that lies elsewhere, and write a reference that stands for a key file.

    quarry release reference hsm:2?label=release --library /usr/lib/softhsm/libsofthsm2.so --out targets.json

    What takes a --key, or a public key of a role, takes the reference as well, and so does the office's
    director_key. Files that it names are looked for beside it. It holds no secret.
    """
    made = KeyReference(
        signer=signer,
        public_key="",
        library=_text(library),
        pin_file=_text(pin_file),
        address=address,
        token_file=_text(token_file),
        ca_file=_text(ca_file),
        mount=mount,
    )
    opening = Opening(folder=out.parent)
    match made.scheme:
        case "hsm":
            if library is None:
                raise typer.BadParameter("give --library, the token's PKCS #11 library")
            pem = public_in_token(signer, str(library), lambda: secret(passphrase_fd, f"the PIN of {signer}"))
            version = None
        case "vault":
            pem, version = public_in_vault(made, opening, signer)
        case _:
            raise BadKey(
                f"{signer[:80]!r} is not the address of a key",
                advice="It begins with hsm: (a PKCS #11 token) or vault: (Vault's transit engine).",
            )
    key = load_role_key(pem)
    made = msgspec.structs.replace(made, public_key=pem.decode(), key_version=version)
    said = {name: value for name, value in msgspec.to_builtins(made).items() if value is not None}
    if made.scheme == "hsm":
        del said["mount"]
    write_new(out, msgspec.json.format(msgspec.json.encode(said)) + b"\n", mode=0o600)
    write_new(out.with_name(f"{out.name}.pub"), pem, mode=0o644)
    typer.echo(f"{out} stands for {signer}, key id {key.keyid[:12]}, {key.scheme}")


def _text(path: Path | None) -> str | None:
    return None if path is None else os.fspath(path)
