"""The fleet for other rooms. A method that takes a connection joins its caller's transaction.

Locks: device rows in the order of their ids, and before any job's row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from control_plane.db import Connection, Database
from control_plane.devices import store
from control_plane.devices.model import (
    MOST_COMPONENTS,
    Component,
    DeviceRecord,
    NewComponent,
    by_name,
    registered,
    reported,
)
from control_plane.errors import Conflict, Invalid, NotFound, StaleVersion
from shared.ids import check_id
from shared.logs import get_log
from shared.messages import Hello, Manifest

__all__ = ["Component", "DeviceRecord", "DeviceService", "NewComponent"]

log = get_log("control_plane.devices")

MOST_STORES = 1000
"""Agent databases of one device that get a number. A truck that loses one a day is far below it."""


class DeviceService:
    """Devices and what they say of themselves."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def create(
        self,
        connection: Connection,
        *,
        device_id: str,
        name: str = "",
        site: str = "",
        components: Sequence[NewComponent] = (),
        by: str,
    ) -> DeviceRecord:
        """Register a truck. Raises BadId, Invalid (components) or Conflict (device_exists)."""
        check_id(device_id, "device_id")
        _check_components(components)
        if not await store.insert(connection, device_id=device_id, name=name, site=site):
            raise Conflict(
                f"there is a device {device_id} already",
                code="device_exists",
                advice="Choose another id, or change the one that is there.",
            )
        await store.put_components(connection, device_id, [registered(None, new) for new in components])
        log.info("devices.device_created", device_id=device_id, by=by)
        return _found(await store.get(connection, device_id), device_id)

    async def get(self, device_id: str) -> DeviceRecord:
        """One device. Raises NotFound."""
        async with self._db.transaction() as connection:
            return _found(await store.get(connection, device_id), device_id)

    async def page(
        self,
        *,
        site: str | None = None,
        online: bool | None = None,
        after: str | None = None,
        limit: int = 50,
    ) -> list[DeviceRecord]:
        """Devices by their ids, those behind `after`."""
        async with self._db.transaction() as connection:
            return await store.page(connection, site=site, online=online, after=after, limit=limit)

    async def change(
        self,
        device_id: str,
        expected_version: int,
        *,
        name: str | None = None,
        site: str | None = None,
        components: Sequence[NewComponent] | None = None,
        by: str,
    ) -> DeviceRecord:
        """Change what is given; `components` replaces the whole list.

        Raises NotFound, StaleVersion or Invalid.
        """

        async def act(connection: Connection) -> DeviceRecord:
            old = _found(await store.get(connection, device_id, lock=True), device_id)
            if old.version != expected_version:
                raise StaleVersion(f"{device_id} has version {old.version}, not {expected_version}")
            if components is not None:
                _check_components(components)
                before = by_name(old.components)
                await store.drop_components(
                    connection, device_id, before.keys() - {new.component for new in components}
                )
                await store.put_components(
                    connection,
                    device_id,
                    [registered(before.get(new.component), new) for new in components],
                )
            await store.update(
                connection,
                device_id,
                name=old.name if name is None else name,
                site=old.site if site is None else site,
            )
            return _found(await store.get(connection, device_id), device_id)

        device = await self._db.run(act)
        log.info("devices.device_changed", device_id=device_id, version=device.version, by=by)
        return device

    async def lock_for_job(self, connection: Connection, device_id: str) -> DeviceRecord:
        """The device, its row locked until the caller's transaction ends. Raises NotFound."""
        return _found(await store.get(connection, device_id, lock=True), device_id)

    async def store_numbers(
        self, connection: Connection, pairs: Iterable[tuple[str, str]]
    ) -> dict[tuple[str, str], int]:
        """Numbers of (device_id, store_id), from 1 in the order of first sight; for ever the same.

        New ones are numbered now. Unknown devices are left out, and so is a store of a device that has
        MOST_STORES already.
        """
        wanted = sorted(set(pairs))
        numbers = await store.stores(connection, wanted)
        missing = [pair for pair in wanted if pair not in numbers]
        if not missing:
            return numbers
        known = await store.lock_many(connection, {device_id for device_id, _ in missing})
        refused = []
        for device_id, store_id in missing:
            if device_id not in known:
                continue
            number = await store.add_store(connection, device_id, store_id, MOST_STORES)
            if number is None:
                refused.append((device_id, store_id))
                continue
            log.info("devices.store_numbered", device_id=device_id, store_id=store_id, store_no=number)
            numbers[device_id, store_id] = number
        if refused:
            # Numbered by somebody else while the lock was waited for, or one too many.
            numbers |= await store.stores(connection, refused)
            for device_id, store_id in refused:
                if (device_id, store_id) not in numbers:
                    log.error("devices.stores_exceeded", device_id=device_id, store_id=store_id)
        return numbers

    async def heard(self, connection: Connection, device_id: str, hello: Hello, at: datetime) -> bool:
        """A truck said hello, or its last will did; `at` is the office's time of it.

        False for an unknown device. One that is older than the newest heard changes nothing.
        """
        if not await store.lock_many(connection, [device_id]):
            return False
        await self.store_numbers(connection, [(device_id, hello.store_id)])
        await store.heard(
            connection,
            device_id,
            online=hello.online,
            agent_version=hello.agent_version,
            features=hello.features,
            at=at,
        )
        return True

    async def take_manifest(self, connection: Connection, device_id: str, manifest: Manifest) -> bool:
        """What a truck says is installed. False for an unknown device.

        Only the newest by (store number, seq) counts; an older one or a repeat changes nothing. What is
        registered of a component is kept; where the truck says otherwise, that stands beside it. A
        component that is not in the manifest stays as it was last reported. A manifest of a store that
        gets no number can't be put in order, so it is ignored too.
        """
        device = await store.get(connection, device_id, lock=True)
        if device is None:
            return False
        numbers = await self.store_numbers(connection, [(device_id, manifest.store_id)])
        store_no = numbers.get((device_id, manifest.store_id))
        if store_no is None:
            return True
        if (store_no, manifest.seq) <= await store.newest_manifest(connection, device_id):
            log.info("devices.old_manifest_ignored", device_id=device_id, store_no=store_no, seq=manifest.seq)
            return True
        await store.manifest_taken(connection, device_id, store_no, manifest.seq)
        before = by_name(device.components)
        after = dict(before)
        for said in manifest.components:
            if said.component not in after and len(after) >= MOST_COMPONENTS:
                log.error("devices.components_exceeded", device_id=device_id, component=said.component[:64])
                continue
            after[said.component] = reported(before.get(said.component), said, manifest.at)
        changed = [one for name, one in after.items() if one != before.get(name)]
        await store.put_components(connection, device_id, changed)
        if any(_told(one) != _told(before.get(one.component)) for one in changed):
            await store.touch(connection, device_id)
        for one in changed:
            _log_reported(device_id, before.get(one.component), one)
        return True

    async def which_online(self, connection: Connection, device_ids: Iterable[str]) -> set[str]:
        """Those of these devices that are connected, as far as is known."""
        return await store.online(connection, set(device_ids))

    async def installed_images(
        self, connection: Connection, device_ids: Iterable[str], *, feature: str
    ) -> dict[tuple[str, str], str]:
        """By (device_id, component), the SHA-256 of the image that was last reported; left out where none
        was, and devices whose newest hello does not name the feature.
        """
        return await store.installed(connection, set(device_ids), feature)


def _told(one: Component | None) -> tuple[object, ...]:
    """What makes a new version when it changes: all but when it was said."""
    if one is None:
        return ()
    return (
        *(one.kind, one.hardware, one.reported_kind, one.reported_hardware),
        *(one.installed_version, one.installed_sha256, one.in_bootloader),
    )


def _log_reported(device_id: str, old: Component | None, new: Component) -> None:
    if old is None:
        log.info(
            "devices.component_discovered",
            device_id=device_id,
            component=new.component,
            kind=new.kind,
            hardware=new.hardware,
        )
    elif new.differs and (old.reported_kind, old.reported_hardware) != (
        new.reported_kind,
        new.reported_hardware,
    ):
        log.warning(
            "devices.component_differs",
            device_id=device_id,
            component=new.component,
            kind=new.kind,
            hardware=new.hardware,
            reported_kind=new.reported_kind,
            reported_hardware=new.reported_hardware,
        )


def _check_components(components: Sequence[NewComponent]) -> None:
    names = [one.component for one in components]
    if len(names) > MOST_COMPONENTS:
        raise Invalid(f"a device has at most {MOST_COMPONENTS} components", fields={"components": "too many"})
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise Invalid(f"components are named twice: {', '.join(twice)}", fields={"components": "named twice"})


def _found(device: DeviceRecord | None, device_id: str) -> DeviceRecord:
    if device is None:
        raise NotFound(f"there is no device {device_id[:80]}", code="unknown_device")
    return device
