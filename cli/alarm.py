"""`quarry alarm`: what trucks' manifests show to be wrong, until somebody has seen it."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.office import AsJson, OfficeClient, print_json, print_rows, short_time, with_office

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)


@app.command("list")
@with_office
def list_alarms(
    client: OfficeClient,
    truck: Annotated[str | None, typer.Option(help="Only of this truck.")] = None,
    alarm: Annotated[str | None, typer.Option(help="Only of this name, for example image_mismatch.")] = None,
    acknowledged: Annotated[
        bool, typer.Option("--acknowledged", help="Those that were acknowledged, too.")
    ] = False,
    most: Annotated[int, typer.Option(min=1, max=10_000, help="So many at most.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List alarms, those that began last first."""
    alarms = client.pages("/alarms", most=most, device_id=truck, alarm=alarm, acknowledged=acknowledged)
    if as_json:
        print_json(alarms)
        return
    print_rows(
        (
            (
                one["alarm_id"],
                one["device_id"],
                one["alarm"],
                one["serial"],
                one["detail"],
                one["count"],
                short_time(one["last_seen_at"]),
                one["acknowledged_by"],
            )
            for one in alarms
        ),
        ("alarm", "truck", "what", "ECU", "detail", "seen", "last", "acknowledged"),
        title="Alarms",
        none="There are no alarms.",
    )


@app.command()
@with_office
def ack(
    client: OfficeClient, alarm: Annotated[str, typer.Argument(help="As `quarry alarm list` shows it.")]
) -> None:
    """Say that you have seen an alarm; if it goes on, it comes again."""
    client.call("POST", f"/alarms/{alarm}/acknowledge")
    typer.echo(f"{alarm} is acknowledged.")
