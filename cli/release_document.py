"""`quarry release document`: one image, one key, one signed document, for trucks and ECUs that take those.

The document is also what an ECU with a verifying bootloader checks: `quarry release add --document`
carries it with the image.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from cli.office import UPLOAD_TIMEOUT_S, AsJson, OfficeClient, print_json, with_office
from cli.release_delta import send_deltas
from cli.release_files import KEY_SECRET_VARIABLE, FileTrouble, read_file, write_new
from shared.release import MAX_IMAGE_BYTES, FirmwareSpec
from shared.trust.document import MAX_DOCUMENT_BYTES, make_document, read_unverified, verify_document
from shared.trust.keys import key_ring, load_signer, new_key

document_app = typer.Typer(
    no_args_is_help=True, help="Signed documents of single firmwares: for trucks without roots, and for ECUs."
)

ImageFile = Annotated[Path, typer.Option("--image", help="The ECU's image: raw binary, as it lies in flash.")]
DocumentFile = Annotated[
    Path, typer.Option("--document", help="The signed document, from `release document sign`.")
]


def passphrase() -> bytes | None:
    """The private key's passphrase from the environment; None when there is none."""
    value = os.environ.get(KEY_SECRET_VARIABLE)
    return value.encode() if value else None


@document_app.command()
def keygen(
    out: Annotated[Path, typer.Option(help="Where to write the private key; the public one is OUT.pub.")],
) -> None:
    """Make an Ed25519 firmware key pair. Keep the private half offline; trucks get the public one.

    With the environment variable QUARRY_KEY_PASSPHRASE set, the private key is encrypted.
    """
    public_file = out.with_name(f"{out.name}.pub")
    if public_file.exists():
        raise FileTrouble(f"{public_file} is there already and is not overwritten")
    private, public = new_key(passphrase())
    write_new(out, private, mode=0o600)
    write_new(public_file, public, mode=0o644)
    sealed = "encrypted" if passphrase() else f"NOT encrypted: set {KEY_SECRET_VARIABLE} to encrypt it"
    typer.echo(f"private key {out} ({sealed}); public key for the trucks {public_file}")


@document_app.command()
def sign(
    image: ImageFile,
    key: Annotated[Path, typer.Option(help="The private key, from `release document keygen`.")],
    kind: Annotated[str, typer.Option(help="The kind of ECU that it is for, for example brake-controller.")],
    hardware: Annotated[list[str], typer.Option(help="A hardware revision that it runs on; once for each.")],
    version: Annotated[str, typer.Option(help="Its version, for example 1.1.0.")],
    counter: Annotated[int, typer.Option(min=0, help="Release counter: a number that only grows per kind.")],
    out: Annotated[Path, typer.Option(help="Where to write the signed document.")],
    days: Annotated[
        int, typer.Option(min=1, max=36_500, help="For how many days it may be installed.")
    ] = 365,
) -> None:
    """Sign an image: its hash, length, ECU kind, hardware and version, with the offline key."""
    content = read_file(image, MAX_IMAGE_BYTES)
    spec = FirmwareSpec(
        kind=kind,
        hardware=tuple(hardware),
        version=version,
        release_counter=counter,
        length=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )
    signer = load_signer(read_file(key, MAX_DOCUMENT_BYTES), passphrase())
    write_new(out, make_document(spec, signer, datetime.now(UTC) + timedelta(days=days)), mode=0o644)
    typer.echo(f"{kind} {version}: {spec.length} bytes, SHA-256 {spec.sha256}, signed in {out}")


@document_app.command()
def show(
    document: DocumentFile,
    public_key: Annotated[
        list[Path] | None, typer.Option(help="Check the signature by this public key; may be given often.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """What a document says. Without --public-key nobody has checked who says so."""
    raw = read_file(document, MAX_DOCUMENT_BYTES)
    if public_key:
        ring = key_ring([read_file(path, MAX_DOCUMENT_BYTES) for path in public_key])
        spec, checked = verify_document(raw, ring, now=datetime.now(UTC)), True
    else:
        spec, checked = read_unverified(raw), False
    facts = {
        "kind": spec.kind,
        "version": spec.version,
        "hardware": list(spec.hardware),
        "release_counter": spec.release_counter,
        "length": spec.length,
        "sha256": spec.sha256,
        "signature_checked": checked,
    }
    if as_json:
        print_json(facts)
        return
    for name, value in facts.items():
        typer.echo(f"{name:<18} {', '.join(value) if isinstance(value, list) else value}")


@document_app.command()
@with_office
def publish(
    client: OfficeClient,
    image: ImageFile,
    document: DocumentFile,
    notes: Annotated[str, typer.Option(help="What changed, for those who read it later.")] = "",
    delta_from: Annotated[
        list[Path] | None,
        typer.Option(
            help="An older image that is published: trucks that run it get the difference; once for each."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Give a signed firmware to the office. Repeating it changes nothing."""
    files = {
        "document": ("document.json", read_file(document, MAX_DOCUMENT_BYTES), "application/json"),
        "image": ("image.bin", read_file(image, MAX_IMAGE_BYTES), "application/octet-stream"),
    }
    made = client.call("POST", "/firmwares", files=files, data={"notes": notes}, timeout=UPLOAD_TIMEOUT_S)
    deltas = send_deltas(client, files["image"][1], delta_from or ())
    if as_json:
        print_json(made | {"deltas": [asdict(one) for one in deltas]} if delta_from else made)
    else:
        typer.echo(f"published {made['kind']} {made['version']} as {made['firmware_id']}")
        for one in deltas:
            typer.echo(str(one))
