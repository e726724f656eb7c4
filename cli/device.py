"""`quarry device`: trucks and what is in them."""

from __future__ import annotations

import secrets
from typing import Annotated

import typer

from cli.device_ecus import ecus_app, find_ecus, print_ecus
from cli.local_installs import MOST_BESIDE_A_DEVICE, find_installs, print_installs
from cli.office import AsJson, OfficeClient, print_json, print_rows, short_time, with_office

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)
app.add_typer(ecus_app, name="ecus")

MOST_ALARMS = 20
DeviceId = Annotated[str, typer.Argument(help="The truck's id: 1 to 64 letters, digits, '_' or '-'.")]


def parse_component(text: str) -> dict[str, str]:
    """NAME:KIND:HARDWARE as the API takes it."""
    parts = text.split(":")
    if len(parts) != 3 or not all(parts):
        raise typer.BadParameter(
            f"{text!r} is not NAME:KIND:HARDWARE, for example brake:brake-controller:rev-b"
        )
    return dict(zip(("component", "kind", "hardware"), parts, strict=True))


@app.command()
@with_office
def add(
    client: OfficeClient,
    device_id: DeviceId,
    component: Annotated[
        list[str],
        typer.Option(help="NAME:KIND:HARDWARE of an ECU; once for each.", metavar="NAME:KIND:HARDWARE"),
    ],
    name: Annotated[str, typer.Option(help="What people call the truck.")] = "",
    site: Annotated[str, typer.Option(help="The quarry it works in.")] = "",
    as_json: AsJson = False,
) -> None:
    """Make a truck known: quarry device add truck-001 --component brake:brake-controller:rev-b"""
    body = {
        "device_id": device_id,
        "name": name,
        "site": site,
        "components": [parse_component(one) for one in component],
    }
    made = client.call("POST", "/devices", json=body, headers={"Idempotency-Key": secrets.token_hex(16)})
    if as_json:
        print_json(made)
    else:
        typer.echo(f"{made['device_id']} is known; enrol it with: quarry device token {made['device_id']}")


@app.command()
@with_office
def token(
    client: OfficeClient,
    device_id: DeviceId,
    as_json: AsJson = False,
) -> None:
    """Hand out a one-time enrolment token for a truck; it is shown once and kept nowhere."""
    made = client.call("POST", f"/devices/{device_id}/enrolment-tokens")
    if as_json:
        print_json(made)
    else:
        typer.echo(made["token"])


@app.command()
@with_office
def certificates(
    client: OfficeClient,
    device_id: DeviceId,
    as_json: AsJson = False,
) -> None:
    """The client certificates that a truck was given, the newest first."""
    found = client.call("GET", f"/devices/{device_id}/certificates")["items"]
    if as_json:
        print_json(found)
        return
    print_rows(
        ((one["serial"], one["state"], one["issued_for"], short_time(one["not_after"])) for one in found),
        ("serial", "state", "issued for", "good until (UTC)"),
        title=f"Certificates of {device_id}",
        none=f"{device_id} has been given no certificate.",
    )


@app.command()
@with_office
def revoke(
    client: OfficeClient,
    device_id: DeviceId,
    as_json: AsJson = False,
) -> None:
    """Take certificates, token and password from a truck: it connects nowhere until it is enrolled anew."""
    taken = client.call("POST", f"/devices/{device_id}/revocation")
    if as_json:
        print_json(taken)
    else:
        typer.echo(
            f"{device_id} is revoked ({taken['certificates']} certificates);"
            f" let it in again with: quarry device token {device_id}"
        )


@app.command("list")
@with_office
def list_devices(
    client: OfficeClient,
    site: Annotated[str | None, typer.Option(help="Only this quarry's.")] = None,
    most: Annotated[int, typer.Option(min=1, max=10_000, help="So many at most.")] = 200,
    as_json: AsJson = False,
) -> None:
    """List trucks with what their ECUs hold."""
    devices = client.pages("/devices", most=most, site=site)
    if as_json:
        print_json(devices)
        return
    print_rows(
        (
            (
                one["device_id"],
                one["name"],
                one["site"],
                "online" if one["online"] else "offline",
                short_time(one["last_seen_at"]),
                "\n".join(f"{c['component']} {c['installed_version'] or '?'}" for c in one["components"]),
            )
            for one in devices
        ),
        ("truck", "name", "site", "link", "last seen", "holds"),
        title="Trucks",
        none="No truck is known yet: quarry device add --help",
    )


@app.command()
@with_office
def show(
    client: OfficeClient,
    device_id: DeviceId,
    as_json: AsJson = False,
) -> None:
    """One truck: its components, what each ECU runs by its signed word, its open alarms, and what people
    installed there.
    """
    device = client.call("GET", f"/devices/{device_id}")
    ecus = find_ecus(client, device_id)
    alarms = [] if ecus is None else client.pages("/alarms", most=MOST_ALARMS, device_id=device_id)
    installs = find_installs(client, most=MOST_BESIDE_A_DEVICE, device_id=device_id)
    if as_json:
        print_json({**device, "ecus": ecus, "alarms": alarms, "local_installs": installs})
        return
    link, seen = "online" if device["online"] else "offline", short_time(device["last_seen_at"]) or "never"
    print_rows(
        (
            (
                c["component"],
                c["kind"],
                c["hardware"],
                c["installed_version"],
                (c["installed_sha256"] or "")[:12],
            )
            for c in device["components"]
        ),
        ("component", "kind", "hardware", "version", "SHA-256"),
        title=f"{device['device_id']} {device['name']} ({link}, last seen {seen})",
        none=f"{device_id} has no components.",
    )
    if ecus is not None:
        print_ecus(ecus)
    if installs:
        print_installs(installs, title="Installed by people at the truck")
    for one in alarms:
        typer.echo(
            f"ALARM {one['alarm']} {one['serial']}: {one['detail']} (quarry alarm ack {one['alarm_id']})"
        )
