"""`quarry firmware`: what is published."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.office import AsJson, OfficeClient, print_json, print_rows, short_time, with_office

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)


@app.command("list")
@with_office
def list_firmwares(
    client: OfficeClient,
    kind: Annotated[str | None, typer.Option(help="Only for this kind of ECU.")] = None,
    most: Annotated[int, typer.Option(min=1, max=10_000, help="So many at most.")] = 200,
    as_json: AsJson = False,
) -> None:
    """List published firmware, newest first."""
    found = client.pages("/firmwares", most=most, kind=kind)
    if as_json:
        print_json(found)
        return
    print_rows(
        (
            (
                one["firmware_id"],
                one["kind"],
                one["version"],
                ", ".join(one["hardware"]),
                one["length"],
                one["state"],
                short_time(one["published_at"]),
            )
            for one in found
        ),
        ("firmware", "kind", "version", "hardware", "bytes", "state", "published"),
        title="Firmware",
        none="Nothing is published yet: quarry release document publish --help",
    )


@app.command()
@with_office
def withdraw(
    client: OfficeClient,
    firmware_id: Annotated[str, typer.Argument(help="As `quarry firmware list` shows it.")],
    why: Annotated[str, typer.Option(help="The reason, for those who read it later.")],
    as_json: AsJson = False,
) -> None:
    """Let no new job use a firmware. Trucks that hold it keep it."""
    gone = client.call("POST", f"/firmwares/{firmware_id}/withdraw", json={"why": why})
    if as_json:
        print_json(gone)
    else:
        typer.echo(f"{gone['kind']} {gone['version']} is withdrawn.")
