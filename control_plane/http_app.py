"""The office's HTTP side: the rooms' routers, health, metrics, and the server in this event loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import uvicorn
from fastapi import FastAPI, Response
from pydantic import BaseModel, Field

from control_plane.access import api as access_api
from control_plane.access import certificates_api
from control_plane.access.certificates_api import BrokerForTrucks
from control_plane.access.service import AccessService
from control_plane.body_limit import MOST_BODY_BYTES, BodyLimit
from control_plane.db import Database
from control_plane.dead_letters import api as dead_letters_api
from control_plane.dead_letters.service import DeadLetterService
from control_plane.devices import api as devices_api
from control_plane.devices.service import DeviceService
from control_plane.director.bundle import MOST_BUNDLE_BYTES
from control_plane.director.room import DirectorRoom
from control_plane.errors import Unavailable
from control_plane.firmware import api as firmware_api
from control_plane.firmware import deltas_api, upload
from control_plane.firmware.service import FirmwareService
from control_plane.jobs import api as jobs_api
from control_plane.jobs.service import JobService
from control_plane.local_installs import api as local_installs_api
from control_plane.local_installs.service import LocalInstallService
from control_plane.loops import Wake
from control_plane.metrics import Metrics
from control_plane.storage import files_api
from control_plane.storage.folder import FolderFiles
from control_plane.storage.urls import UrlSigner
from control_plane.web import add_problem_handlers

START_WITHIN_S = 10.0
STOP_WITHIN_S = 5
MOST_REQUESTS_AT_ONCE = 500
DATABASE_ANSWERS_WITHIN_S = 2.0


@dataclass(frozen=True, kw_only=True)
class Rooms:
    """The services that the endpoints are made of. `outbox` wakes the outbox worker."""

    db: Database
    access: AccessService
    devices: DeviceService
    firmware: FirmwareService
    jobs: JobService
    local_installs: LocalInstallService
    letters: DeadLetterService
    files: FolderFiles
    signer: UrlSigner
    metrics: Metrics
    outbox: Wake
    broker: BrokerForTrucks
    director: DirectorRoom | None = None


Parts = Callable[[], dict[str, bool]]
"""Whether each part of the office works now, by its name."""


class Health(BaseModel):
    """`ok`: everything works. `parts` by name; a part that is false is being waited for."""

    ok: bool
    parts: dict[str, bool] = Field(examples=[{"database": True, "mqtt": True, "outbox": True}])


def make_app(rooms: Rooms, parts: Parts) -> FastAPI:
    """The whole HTTP application."""
    app = FastAPI(
        title="Quarry OTA",
        version="1",
        description="Firmware updates for trucks that work beyond good coverage.",
    )
    app.state.authenticate = rooms.access.authenticate
    add_problem_handlers(app)
    app.add_middleware(
        BodyLimit,
        most={
            "/api/v1/firmwares": upload.MOST_BODY_BYTES + MOST_BODY_BYTES,
            deltas_api.PATH: deltas_api.MOST_DELTA_BYTES,
            "/api/v1/image-repository": MOST_BUNDLE_BYTES,
        },
    )
    app.include_router(devices_api.make_router(rooms.devices, rooms.db))
    app.include_router(access_api.make_router(rooms.access, broker=rooms.broker))
    app.include_router(certificates_api.make_router(rooms.access, broker=rooms.broker))
    app.include_router(firmware_api.make_router(rooms.firmware, rooms.files.incoming))
    app.include_router(
        jobs_api.make_router(
            rooms.jobs,
            rooms.db,
            outbox=rooms.outbox,
            metrics=rooms.metrics,
            releases=None if rooms.director is None else rooms.director.release_jobs,
        )
    )
    app.include_router(local_installs_api.make_router(rooms.local_installs))
    app.include_router(dead_letters_api.make_router(rooms.letters))
    app.include_router(files_api.make_router(rooms.files, rooms.signer))
    if rooms.director is not None:
        rooms.director.add_to(app)
    _add_health(app, rooms, parts)
    return app


def _add_health(app: FastAPI, rooms: Rooms, parts: Parts) -> None:
    @app.get("/healthz", tags=["health"])
    async def alive() -> Health:
        """The process lives and its event loop turns."""
        return Health(ok=True, parts={})

    @app.get("/readyz", tags=["health"], responses={503: {"model": Health}})
    async def ready(response: Response) -> Health:
        """Every part works; 503 names the ones that do not."""
        found = {"database": await _answers(rooms.db), **parts()}
        if not all(found.values()):
            response.status_code = 503
        return Health(ok=all(found.values()), parts=found)

    @app.get("/metrics", tags=["health"], response_class=Response)
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(rooms.metrics.as_text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def _answers(db: Database) -> bool:
    try:
        async with asyncio.timeout(DATABASE_ANSWERS_WITHIN_S):
            await db.fetch("SELECT 1")
    except (Unavailable, TimeoutError):
        return False
    return True


class _Server(uvicorn.Server):
    """Leaves the signals to whoever owns the process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def serving(app: FastAPI, listener: socket.socket) -> AsyncIterator[None]:
    """Answer requests while inside; at the end open ones get STOP_WITHIN_S seconds to finish."""
    server = _Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            proxy_headers=False,
            limit_concurrency=MOST_REQUESTS_AT_ONCE,
            timeout_graceful_shutdown=STOP_WITHIN_S,
        )
    )
    async with asyncio.TaskGroup() as group:
        group.create_task(server.serve(sockets=[listener]), name="http")
        async with asyncio.timeout(START_WITHIN_S):
            while not server.started:
                await asyncio.sleep(0.005)
        try:
            yield
        finally:
            server.should_exit = True
