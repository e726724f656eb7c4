"""`quarry serve`: the office, all roles in one process, until it is told to stop."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from control_plane.app import Office
from control_plane.config import OfficeConfig, load_config
from shared.logs import set_up_logs

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


async def run_office(config: OfficeConfig) -> None:
    """Run until SIGTERM or SIGINT; then stop cleanly, within bounded time."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with Office(config) as office:
        sys.stderr.write(f"office ready: {office.url}, admin token in {office.token_file}\n")
        sys.stderr.flush()
        await stop.wait()


@app.command()
def serve(
    data: Annotated[
        Path,
        typer.Option(
            "--data",
            envvar="QUARRY_DATA",
            help="Folder of everything that it keeps; made (0700) if it is not there.",
        ),
    ] = Path(".quarry/office"),
    http_host: Annotated[str | None, typer.Option(help="Address of the API. [127.0.0.1]")] = None,
    http_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port of the API, 0: any free one. [8080]")
    ] = None,
    mqtt_host: Annotated[str | None, typer.Option(help="Address of the broker. [127.0.0.1]")] = None,
    mqtt_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port of the broker, 0: any free one. [1883]")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file; see control_plane/README.md.")] = None,
) -> None:
    """Run the office: API, broker, database, outbox, scheduler, dispatcher, event processor.

    Logs go to stderr as JSON lines. When everything answers, DATA/endpoints.json says where; the
    admin's token is in DATA/admin-token. Exits 0 after SIGTERM or ^C, 1 when it can't start.
    """
    settings = load_config(
        data=data,
        file=config,
        environment=os.environ,
        http_host=http_host,
        http_port=http_port,
        mqtt_host=mqtt_host,
        mqtt_port=mqtt_port,
    )
    set_up_logs("quarry-office", level=settings.log_level)
    asyncio.run(run_office(settings))
