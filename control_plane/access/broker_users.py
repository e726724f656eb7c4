"""The broker's accounts as the database has them: one for each truck, or for each certificate."""

from __future__ import annotations

from control_plane.access import store
from control_plane.db import Database
from control_plane.embedded.nats import BrokerUser, truck_user
from shared.certificates import truck_uri

ACCOUNTS_PER_PAGE = 1000


async def broker_users(db: Database, office: BrokerUser, *, by_certificate: bool) -> list[BrokerUser]:
    """All accounts, the office's first."""
    return [office, *await (_by_certificate(db) if by_certificate else _by_name(db))]


async def _by_name(db: Database) -> list[BrokerUser]:
    users: list[BrokerUser] = []
    after = ""
    while True:
        async with db.transaction() as connection:
            page = await store.accounts(connection, after, ACCOUNTS_PER_PAGE)
        users += [truck_user(device_id, mqtt_bcrypt) for device_id, mqtt_bcrypt in page]
        if len(page) < ACCOUNTS_PER_PAGE:
            return users
        after = page[-1][0]


async def _by_certificate(db: Database) -> list[BrokerUser]:
    users: list[BrokerUser] = []
    after = ("", "")
    while True:
        async with db.transaction() as connection:
            page = await store.certificate_accounts(connection, after, ACCOUNTS_PER_PAGE)
        users += [
            truck_user(device_id, mqtt_bcrypt, name=truck_uri(device_id, serial))
            for device_id, serial, mqtt_bcrypt in page
        ]
        if len(page) < ACCOUNTS_PER_PAGE:
            return users
        after = page[-1][:2]
