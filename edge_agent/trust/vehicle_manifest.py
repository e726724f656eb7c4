"""Tells the office, signed, what each ECU holds and what attacks were seen: the vehicle version manifest.

Made at each start, after each update and when something new was refused; sent until it is accepted. What
ECUs hold is what they themselves say; one that did not answer is reported with nothing installed. Alarms
are the gateway's: its own report carries them.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

import httpx
import msgspec
from securesystemslib.signer import Signer

from edge_agent.addresses import UnsafeAddress, check_safe
from edge_agent.clock import boot_s
from edge_agent.errors import StoreFailed
from edge_agent.threads import finish_in_thread
from edge_agent.trust.known_images import KnownImages
from edge_agent.trust.manifest_state import ManifestState
from edge_agent.trust.selection import TruckEcu, TruckEcus
from shared.backoff import Backoff
from shared.errors import ConfigError
from shared.logs import get_log
from shared.messages import Installed
from shared.since_310 import timeout
from shared.trust.uptane.manifest import EcuReport, InstalledImage, make_manifest, say_time

log = get_log("edge_agent.vehicle_manifest")

SEND_WITHIN_S = 60.0
MOST_ANSWER_BYTES = 16 * 1024
TOLD_AGAIN_AFTER_S = 3600.0
"""The same refusal, repeated, makes one manifest in this time."""

REPLAYED = "manifest_replayed"
"""The office's code for a number that it had; the newest one may be repeated."""

SEND_BACKOFF = Backoff(first_s=2.0, most_s=900.0, jitter=0.5)


@dataclass(frozen=True, kw_only=True)
class ManifestOffice:
    """Where manifests go: `POST /api/v1/devices/{device_id}/vehicle-manifest` below `base`, by our token."""

    base: str
    device_id: str
    token: str
    tls: Callable[[], ssl.SSLContext | bool]
    allow_plain: bool = False
    within_s: float = SEND_WITHIN_S

    async def send(self, manifest: bytes) -> str | None:
        """None when the office has it, REPLAYED when it is not new to it, else why not. Never raises."""
        url = f"{self.base.rstrip('/')}/api/v1/devices/{self.device_id}/vehicle-manifest"
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        body = b""
        try:
            address = check_safe(url, allow_plain=self.allow_plain, what="office.url")
            tls = await finish_in_thread(self.tls)
            async with (
                timeout(self.within_s),
                httpx.AsyncClient(verify=tls, timeout=self.within_s, trust_env=False) as client,
                client.stream("POST", address, content=manifest, headers=headers) as answer,
            ):
                if answer.is_success:
                    return None
                async for chunk in answer.aiter_raw():
                    body += chunk
                    if len(body) > MOST_ANSWER_BYTES:
                        break
        except (httpx.HTTPError, TimeoutError, UnsafeAddress, ConfigError) as error:
            return str(error) or type(error).__name__
        if _code_of(body) == REPLAYED:
            return REPLAYED
        return f"the office answered {answer.status_code}: {body[:200].decode(errors='replace')}"


class VehicleManifests:
    """Makes and sends them. `installed` asks the ECUs (Acts.installed); `send` is `ManifestOffice.send`."""

    def __init__(
        self,
        *,
        vehicle_id: str,
        ecus: TruckEcus,
        signer: Signer,
        state: ManifestState,
        known: KnownImages,
        installed: Callable[[], Awaitable[Sequence[Installed]]],
        now: Callable[[], datetime],
        send: Callable[[bytes], Awaitable[str | None]],
        backoff: Backoff = SEND_BACKOFF,
        boot_s: Callable[[], float] = boot_s,
    ) -> None:
        self._vehicle_id = vehicle_id
        self._ecus = ecus
        self._signer = signer
        self._state = state
        self._known = known
        self._installed = installed
        self._now = now
        self._send = send
        self._backoff = backoff
        self._boot_s = boot_s
        self._told: dict[str, float] = {}
        self._due = True
        self._wake = asyncio.Event()
        self.last_error: str | None = None

    def update_ended(self) -> None:
        """Something may be installed that was not before."""
        self._due = True
        self._wake.set()

    async def alarm(self, code: str) -> None:
        """A refusal: in the next manifest, which is made for it unless the same was told within an hour.

        Never raises: a disk that takes no alarm must not stop who found it.
        """
        now = self._boot_s()
        told = self._told.get(code)
        if told is not None and now - told < TOLD_AGAIN_AFTER_S:
            return
        try:
            new = await self._state.alarm(code)
        except StoreFailed as error:
            log.error("manifest.alarm_not_kept", code=code, why=error.message)  # noqa: TRY400
            return
        if new:
            log.warning("trust.alarm", code=code)
            self._told = {one: at for one, at in self._told.items() if now - at < TOLD_AGAIN_AFTER_S}
            self._told[code] = now
            self.update_ended()

    async def make(self) -> bytes:
        """A new manifest of what the ECUs say now, on the disk when this returns. Raises StoreFailed."""
        installed = {one.component: one for one in await self._installed()}
        alarms = self._state.state.alarms
        seq, at = await self._state.number(), self._now()
        reports: dict[str, EcuReport] = {}
        for ecu in (self._ecus.gateway, *self._ecus.ecus):
            if ecu.serial not in reports:
                one = self._report(ecu, installed.get(ecu.component), seq, at)
                ours = ecu.serial == self._ecus.gateway.serial
                reports[ecu.serial] = msgspec.structs.replace(one, attacks=alarms) if ours else one
        manifest = make_manifest(
            self._vehicle_id,
            self._ecus.gateway.serial,
            tuple(reports.values()),
            store_id=self._state.state.store_id,
            seq=seq,
            at=at,
            gateway=self._signer,
            ecu_signers={},
        )
        await self._state.put(manifest, alarms)
        return manifest

    async def run(self) -> None:
        """Make and send for ever. One try at a time; between failed ones it rests, or until there is news."""
        tries = 0
        while True:
            self._wake.clear()
            try:
                if self._due:
                    await self._make_due()
                    tries = 0
                self.last_error = await self._send_unsent()
            except StoreFailed as error:
                self.last_error = error.message
            if self.last_error is None and not self._due:
                tries = 0
                await self._wake.wait()
                continue
            log.warning("manifest.not_sent", why=self.last_error, tries=tries + 1)
            try:
                async with timeout(self._backoff.delay_s(tries)):
                    await self._wake.wait()
            except TimeoutError:
                tries += 1

    async def _make_due(self) -> None:
        # Cleared before, so that news that comes meanwhile makes another one.
        self._due = False
        try:
            await self.make()
        except BaseException:
            self._due = True
            raise

    async def _send_unsent(self) -> str | None:
        unsent = self._state.state.unsent
        if unsent is None:
            return None
        why = await self._send(unsent.encode())
        if why is None:
            await self._state.accepted(unsent)
            log.info("manifest.accepted", seq=self._state.state.seq)
        elif why == REPLAYED:
            # The office has seen more of us than our disk has: an older state came back there.
            await self._state.begin_anew()
            self._due = True
        return why

    def _report(self, ecu: TruckEcu, says: Installed | None, seq: int, at: datetime) -> EcuReport:
        return EcuReport(
            serial=ecu.serial,
            kind=ecu.kind if says is None else says.kind,
            hardware=ecu.hardware if says is None else says.hardware,
            installed=None if says is None else self._image(says),
            store_id=self._state.state.store_id,
            seq=seq,
            at=say_time(at),
        )

    def _image(self, says: Installed) -> InstalledImage | None:
        """The image by the ECU's own word; length and counter are 0 where nobody here knows it."""
        if says.sha256 is None:
            return None
        spec = self._known.spec_of(says.sha256)
        if spec is None:
            name = f"{says.kind}/{says.version or 'unknown'}/{says.sha256}.bin"
            return InstalledImage(filename=name[:200], length=0, sha256=says.sha256, release_counter=0)
        return InstalledImage(
            filename=spec.target_path,
            length=spec.length,
            sha256=spec.sha256,
            release_counter=spec.release_counter,
        )


def _code_of(body: bytes) -> str | None:
    try:
        said = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    code = said.get("code") if isinstance(said, dict) else None
    return code if isinstance(code, str) else None
