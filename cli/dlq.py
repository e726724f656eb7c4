"""`quarry dlq`: what could not be handled, until a person decides."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.office import AsJson, OfficeClient, print_json, print_rows, short_time, with_office

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)

LetterId = Annotated[str, typer.Argument(help="As `quarry dlq list` shows it.")]


@app.command("list")
@with_office
def list_letters(
    client: OfficeClient,
    source: Annotated[str | None, typer.Option(help="outbox, bus, status or mqtt.")] = None,
    resolved: Annotated[bool, typer.Option("--resolved", help="Those that were decided on, too.")] = False,
    most: Annotated[int, typer.Option(min=1, max=10_000, help="So many at most.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List dead letters, newest first."""
    letters = client.pages("/dead-letters", most=most, source=source, resolved=resolved)
    if as_json:
        print_json(letters)
        return
    print_rows(
        (
            (
                one["dead_letter_id"],
                one["source"],
                one["device_id"],
                one["reason"],
                short_time(one["created_at"]),
                one["resolution"],
            )
            for one in letters
        ),
        ("letter", "source", "truck", "reason", "since", "decided"),
        title="Dead letters",
        none="There are no dead letters.",
    )


@app.command()
@with_office
def show(client: OfficeClient, letter: LetterId) -> None:
    """One letter with its bytes, as JSON."""
    print_json(client.call("GET", f"/dead-letters/{letter}"))


@app.command()
@with_office
def replay(client: OfficeClient, letter: LetterId) -> None:
    """Handle a letter once more."""
    client.call("POST", f"/dead-letters/{letter}/replay")
    typer.echo(f"{letter} is handled once more.")


@app.command()
@with_office
def drop(client: OfficeClient, letter: LetterId) -> None:
    """Give a letter up; what waits behind it goes on."""
    client.call("POST", f"/dead-letters/{letter}/drop")
    typer.echo(f"{letter} is dropped.")
