"""A truck of a chaos run: all of it can be cut, killed, filled and set wrong, and is put right again."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from control_plane.embedded import child
from edge_agent.update.kept import KeptImages
from shared.messages import CommandTarget
from sim.chaos.plan import Fault, Kind
from sim.link import Link
from sim.mqtt_doubles import Doubler
from sim.power import Power
from sim.power_disk import Loss
from sim.scenarios.desk import Firmware
from sim.scenarios.office import OfficeProcess
from sim.scenarios.truck import AGENT_DATA, DemoTruck, Factory, Product

DAY_S = 86400.0
LINK_BYTES_PER_S = 64 * 1024


class ChaosTruck(DemoTruck):
    """A truck whose agent is `sim.chaos.agent`. `library` is sim/power.c compiled; None: no recording.

    `crashes` are exit codes of the agent that no fault explains.
    """

    def __init__(
        self,
        folder: Path,
        device_id: str,
        office: OfficeProcess,
        *,
        products: Sequence[Product],
        factory: Factory,
        library: Path | None,
    ) -> None:
        super().__init__(
            folder, device_id, office, products=products, factory=factory, link_bytes_per_s=LINK_BYTES_PER_S
        )
        self.doubles = False
        self.doublers: list[Doubler] = []
        self._mqtt = Link(office.mqtt_host, office.mqtt_port, make_filter=self._doubler)
        self._library = library
        self._power: Power | None = None
        self._kill_file = folder / "kill-at"
        self._log = folder / "agent.log"
        self._read_to = 0
        self._told: dict[str, Counter[str]] = {}
        self._dying = False
        self._disk_is_full = False
        self.crashes: list[int] = []
        self.starts = 0

    async def keep_factory_images(self, firmware: Mapping[str, Firmware]) -> None:
        """What a field engineer leaves on the gateway: the way back of its ECUs from the first release on."""
        images = self._folder / AGENT_DATA / "images"
        kept = KeptImages(images)
        for component, one in firmware.items():
            path = images / f"{one.spec.sha256}.bin"
            path.parent.mkdir(exist_ok=True, mode=0o700)
            path.write_bytes(one.image)
            target = CommandTarget(
                component=component,
                version=one.spec.version,
                sha256=one.spec.sha256,
                length=one.spec.length,
                document=one.document.decode(),
                url="kept",
            )
            await kept.keep(target, str(path))

    def _doubler(self) -> Callable[[bytes], bytes]:
        made = Doubler(lambda: self.doubles)
        self.doublers.append(made)
        return made

    # --- its agent --------------------------------------------------------------------------------

    def start_agent(self) -> None:
        """Start it, or start it again, as a service manager does."""
        env = None
        if self._library is not None:
            if self._power is None:
                self._power = Power(self._library, self._folder / AGENT_DATA, self._folder)
            self._power.on()
            env = self._power.environment()
        command = [sys.executable, "-P", "-m", "sim.chaos.agent", str(self._config), str(self._kill_file)]
        self._agent = child.start(command, log=self._log, env=env)
        self.starts += 1
        self._dying = False

    @property
    def is_dead(self) -> bool:
        """Whether its agent has ended."""
        return self._agent is None or self._agent.poll() is not None

    def revive(self) -> None:
        """What a service manager does when the agent has ended by itself."""
        if self.is_dead and not self._dying:
            assert self._agent is not None
            # With a full disk it may not even be able to begin.
            if not self._disk_is_full:
                self.crashes.append(self._agent.returncode)
            self.start_agent()

    def kill_at_point(self, name: str) -> None:
        """Let it end itself when it passes the kill point of this name."""
        self._dying = True
        part = self._kill_file.with_suffix(".part")
        part.write_text(name)
        part.replace(self._kill_file)

    def kill_at_act(self, count: int) -> None:
        """Let it be killed instead of an act on its disk, so many later."""
        assert self._power is not None
        self._dying = True
        self._power.kill_at(self._power.acts + count)

    def spare(self) -> None:
        """It need not die any more. What has died meanwhile is dead."""
        self._kill_file.unlink(missing_ok=True)
        if self._power is not None:
            self._power.kill_at(0)
        if not self.is_dead:
            self._dying = False

    async def fall(self, fault: Fault) -> None:
        """Its agent dies by this fault, if it is not dead yet, and is started again."""
        self._dying = True
        if not self.is_dead:
            await self.kill_agent()
        self.spare()
        assert self._agent is not None
        await asyncio.to_thread(self._agent.wait)
        if fault.kind is Kind.POWER_ALL:
            await asyncio.to_thread(self.cycle_ecus)
        if fault.kind in {Kind.POWER_ALL, Kind.POWER_GATEWAY} and self._power is not None:
            await asyncio.to_thread(self._power.cut, list(Loss)[fault.seed % len(Loss)], fault.seed)
        if fault.kind is Kind.CLOCK_RESTART:
            self.set_clock(fault.clock_s)
        self.start_agent()

    # --- its surroundings -------------------------------------------------------------------------

    def cycle_ecus(self, component: str | None = None) -> None:
        """Cut the power of one ECU or of all, and give it back. Blocks until they have booted."""
        for name, mcu in self.bench.mcus.items():
            if component in {None, name}:
                mcu.power_cycle()

    def set_clock(self, by_s: float | None) -> None:
        """Let its wall clock be so wrong; None: in 1970."""
        assert self._power is not None
        self._power.shift_clock(DAY_S - time.time() if by_s is None else by_s)

    def fill_disk(self, room_bytes: int) -> None:
        """Let its data folder's files grow by so much and no more; -1: as they like."""
        assert self._power is not None
        self._disk_is_full = room_bytes >= 0
        self._power.fill_disk(room_bytes)

    def calm(self) -> None:
        """All is well with it from now on; its agent runs."""
        self.spare()
        self.restore_link()
        self.doubles = False
        self.lag(0.0)
        if self._power is not None:
            self.fill_disk(-1)
            self._power.shift_clock(0.0)
        if self.is_dead:
            self.start_agent()

    def lag(self, seconds: float) -> None:
        """Delay what goes over its links."""
        self._http.lag_s = self._mqtt.lag_s = seconds

    # --- what it said -----------------------------------------------------------------------------

    def told(self, job_id: str) -> Counter[str]:
        """Steps of a job that its journal holds, by its log, which is no part of its data folder."""
        with self._log.open("rb") as file:
            file.seek(self._read_to)
            text = file.read()
        text = text[: text.rfind(b"\n") + 1]
        self._read_to += len(text)
        for line in text.splitlines():
            if b"updater.job_moved" not in line:
                continue
            try:
                said = json.loads(line)
            except ValueError:
                # Torn off by a kill; the next life's first line may follow on it.
                continue
            if said.get("step") is not None:
                self._told.setdefault(said["job_id"], Counter())[said["step"]] += 1
        return self._told.get(job_id, Counter())

    @property
    def set_aside(self) -> list[str]:
        """Damaged databases that the agent has put away: a power cut must make none."""
        return sorted(path.name for path in (self._folder / AGENT_DATA).glob("*.damaged-*"))
