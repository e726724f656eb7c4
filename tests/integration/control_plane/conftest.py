"""The rooms access, devices, firmware and storage behind real HTTP handling, on a real database.

The broker is a list of what it was told; the real one stands in test_embedded_nats.py.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from control_plane.access import api as access_api
from control_plane.access import certificates_api
from control_plane.access.accounts import OfficeAccount
from control_plane.access.authority import Authority, load_authority
from control_plane.access.certificates import CertificateService
from control_plane.access.certificates_api import BrokerForTrucks
from control_plane.access.service import AccessService
from control_plane.body_limit import BodyLimit
from control_plane.config import OfficeConfig
from control_plane.db import Database
from control_plane.devices import api as devices_api
from control_plane.devices.service import DeviceService
from control_plane.embedded.nats import BrokerUser
from control_plane.firmware import api as firmware_api
from control_plane.firmware.service import FirmwareService
from control_plane.firmware.upload import MOST_BODY_BYTES
from control_plane.storage import files_api
from control_plane.storage.folder import FolderFiles
from control_plane.storage.urls import UrlSigner
from control_plane.web import add_problem_handlers

OFFICE_URL = "http://office.test"


class _Broker:
    def __init__(self, told: list[list[BrokerUser]]) -> None:
        self._told = told

    async def set_users(self, users: Iterable[BrokerUser]) -> None:
        self._told.append(list(users))


@pytest.fixture
def broker_told() -> list[list[BrokerUser]]:
    """Every list of accounts that the broker was given, in order."""
    return []


@pytest.fixture
def office_account() -> OfficeAccount:
    return OfficeAccount(user="quarry.office", password="p" * 43, client_id="quarry-office-1")


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The office's own certificate authority."""
    return load_authority(OfficeConfig(data=tmp_path_factory.mktemp("authority")))


@pytest.fixture
def moved() -> list[timedelta]:
    """By how much the clock of certificates is moved: its only item, which a test may change."""
    return [timedelta()]


@pytest.fixture
def certificates(authority: Authority, moved: list[timedelta]) -> CertificateService:
    """Certificates are good for 90 days and renewable for 30 more."""
    return CertificateService(
        authority,
        life=timedelta(days=90),
        grace=timedelta(days=30),
        clock=lambda: datetime.now(UTC) + moved[0],
    )


@pytest.fixture
def access(
    database: Database,
    broker_told: list[list[BrokerUser]],
    office_account: OfficeAccount,
    certificates: CertificateService,
) -> AccessService:
    return AccessService(
        database, _Broker(broker_told), office=office_account.broker_user(), certificates=certificates
    )


@pytest.fixture
def devices(database: Database) -> DeviceService:
    return DeviceService(database)


@pytest.fixture
def unix_time() -> list[float]:
    """The time by which URLs are signed and judged; a test may move it."""
    return [1_800_000_000.0]


@pytest.fixture
def signer(unix_time: list[float]) -> UrlSigner:
    return UrlSigner(b"k" * 32, OFFICE_URL, clock=lambda: unix_time[0])


@pytest.fixture
async def files(tmp_path: Path, signer: UrlSigner) -> FolderFiles:
    files = FolderFiles(tmp_path / "firmware", signer)
    await files.prepare()
    return files


@pytest.fixture
def firmwares(database: Database, files: FolderFiles) -> FirmwareService:
    return FirmwareService(database, files)


@pytest.fixture
def rooms_app(
    database: Database,
    access: AccessService,
    devices: DeviceService,
    firmwares: FirmwareService,
    files: FolderFiles,
    signer: UrlSigner,
) -> FastAPI:
    app = FastAPI()
    add_problem_handlers(app)
    app.add_middleware(BodyLimit, most={"/api/v1/firmwares": MOST_BODY_BYTES})
    app.state.authenticate = access.authenticate
    told = BrokerForTrucks(host="broker.test", port=1883)
    app.include_router(access_api.make_router(access, broker=told))
    app.include_router(certificates_api.make_router(access, broker=told))
    app.include_router(devices_api.make_router(devices, database))
    app.include_router(firmware_api.make_router(firmwares, files.incoming))
    app.include_router(files_api.make_router(files, signer))
    return app


@pytest.fixture
async def admin_token(access: AccessService, tmp_path: Path) -> str:
    return await access.ensure_admin_token(tmp_path / "admin-token")


@pytest.fixture
async def anyone(rooms_app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client without any token."""
    transport = httpx.ASGITransport(app=rooms_app)
    async with httpx.AsyncClient(transport=transport, base_url=OFFICE_URL) as client:
        yield client


@pytest.fixture
async def operator(rooms_app: FastAPI, admin_token: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client with the admin's token."""
    transport = httpx.ASGITransport(app=rooms_app)
    async with httpx.AsyncClient(
        transport=transport,
        base_url=OFFICE_URL,
        headers={"Authorization": f"Bearer {admin_token}"},
    ) as client:
        yield client
