"""`quarry device ecus`: which ECUs a truck has, by serial, and what each of them runs.

The director selects releases by this list, and holds trucks' signed manifests against it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cli.office import AsJson, OfficeClient, OfficeRefused, print_json, print_rows, short_time, with_office
from cli.release_files import read_file
from shared.trust.keys import load_role_key

ecus_app = typer.Typer(
    no_args_is_help=True, help="A truck's ECUs: register them, see what each of them runs."
)

GATEWAY = "gateway"
"""The serial of a gateway whose agent names no other (`trust.gateway_serial`)."""

MOST_KEY_BYTES = 4000
DeviceId = Annotated[str, typer.Argument(help="The truck.")]


@ecus_app.command("set")
@with_office
def set_ecus(
    client: OfficeClient,
    device_id: DeviceId,
    ecu: Annotated[
        list[str] | None,
        typer.Option(
            help="An ECU; once for each, all of them. PUBKEY is a PEM file, for an ECU that signs its own"
            " reports. Without any: the truck's components, each with its name as its serial.",
            metavar="SERIAL:KIND:HARDWARE[:PUBKEY]",
        ),
    ] = None,
    gateway: Annotated[
        str, typer.Option(help="The gateway's serial, as its agent has it (trust.gateway_serial).")
    ] = GATEWAY,
    gateway_key: Annotated[
        Path | None,
        typer.Option(
            help="PEM of the key that signs its manifests; else as the truck tells it when it is enrolled."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Register all ECUs of a truck; what is there is replaced.

    quarry device ecus set truck-001 --ecu SN-0017:brake-controller:rev-b --ecu SN-0018:hoist:rev-a

    What each ECU is expected to run begins anew, so the same list again changes nothing.
    """
    ecus = [parse_ecu(one) for one in ecu] if ecu else _components(client, device_id)
    body: dict[str, Any] = {"primary_serial": gateway, "ecus": ecus}
    if gateway_key is not None:
        pem = read_file(gateway_key, MOST_KEY_BYTES)
        load_role_key(pem)
        body["gateway_key"] = pem.decode()
    known = find_ecus(client, device_id)
    if known is not None and _same(known, body):
        made = known
    else:
        headers = {} if known is None else {"If-Match": f'"{known["version"]}"'}
        made = client.call("PUT", f"/devices/{device_id}/ecus", json=body, headers=headers)
    if as_json:
        print_json(made)
    else:
        typer.echo(f"{device_id} has {len(made['ecus'])} ECUs (version {made['version']})")


@ecus_app.command("show")
@with_office
def show_ecus(client: OfficeClient, device_id: DeviceId, as_json: AsJson = False) -> None:
    """The ECUs of a truck and what each of them runs, by its own signed word.

    The JSON is also what `quarry release usb --truck` reads.
    """
    found = client.call("GET", f"/devices/{device_id}/ecus")
    if as_json:
        print_json(found)
    else:
        print_ecus(found)


def print_ecus(found: dict[str, Any]) -> None:
    """A table of a truck's ECUs, and what of its reports is not as registered."""
    said = short_time(found["manifest_at"]) or "never"
    print_rows(
        ((one["serial"], one["kind"], one["hardware"], *_holds(one)) for one in found["ecus"]),
        ("ECU", "kind", "hardware", "runs", "counter", "since"),
        title=f"ECUs (manifest: {said})",
        none="No ECU is registered.",
    )
    if found["unregistered"]:
        typer.echo(f"The truck reports besides: {', '.join(found['unregistered'])}")
    if found["metadata_versions"]:
        trusted = ", ".join(f"{name} {version}" for name, version in found["metadata_versions"].items())
        typer.echo(f"It trusts metadata: {trusted}")


def find_ecus(client: OfficeClient, device_id: str) -> dict[str, Any] | None:
    """A truck's ECUs; None where none are registered, or the office has no director."""
    try:
        return client.call("GET", f"/devices/{device_id}/ecus")
    except OfficeRefused as refused:
        if refused.code in {"ecus_not_registered", "not_found"}:
            return None
        raise


def parse_ecu(text: str) -> dict[str, str | None]:
    """SERIAL:KIND:HARDWARE[:PUBKEY] as the API takes it; PUBKEY is a file. Raises FileTrouble or BadKey."""
    serial, *rest = text.split(":", 3)
    if len(rest) < 2 or not all((serial, *rest)):
        raise typer.BadParameter(
            f"{text!r} is not SERIAL:KIND:HARDWARE[:PUBKEY], for example SN-0017:brake-controller:rev-b"
        )
    public_key: str | None = None
    if len(rest) == 3:
        pem = read_file(Path(rest[2]), MOST_KEY_BYTES)
        load_role_key(pem)
        public_key = pem.decode()
    return {"serial": serial, "kind": rest[0], "hardware": rest[1], "public_key": public_key}


def _components(client: OfficeClient, device_id: str) -> list[dict[str, str | None]]:
    device = client.call("GET", f"/devices/{device_id}")
    return [
        {"serial": one["component"], "kind": one["kind"], "hardware": one["hardware"], "public_key": None}
        for one in device["components"]
    ]


def _same(known: dict[str, Any], body: dict[str, Any]) -> bool:
    fields = ("serial", "kind", "hardware", "public_key")

    def plain(ecus: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
        return sorted(tuple(one[field] for field in fields) for one in ecus)

    return (
        known["primary_serial"] == body["primary_serial"]
        and body.get("gateway_key", known["gateway_key"]) == known["gateway_key"]
        and plain(known["ecus"]) == plain(body["ecus"])
    )


def _holds(ecu: dict[str, Any]) -> tuple[object, ...]:
    held = ecu["holds"]
    if held is None:
        return "not reported", "", ""
    parts = (held["filename"] or "no valid image").split("/")
    version = parts[1] if len(parts) == 3 else parts[-1]
    doubt = "" if held["believed"] else " (not believed)"
    return f"{version}{doubt}", held["release_counter"], short_time(held["first_seen_at"])
