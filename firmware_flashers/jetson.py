"""The gateway's own A/B update: an image into the passive slot, a switch, a reboot, and the way back.

The order that makes a torn slot never boot: if the next boot might be from the passive slot, it is switched
back to the running one first; then the note that the slot holds something is taken away; then it is
written, synced, and read back from the drive; only then the note says that it is good, and only such a
slot is switched to. Each step may be repeated after a crash at any point.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from msgspec.structs import replace

from firmware_flashers.base import (
    BadImage,
    Capabilities,
    FirmwareImage,
    FlashError,
    Identity,
    NotProved,
    OnProgress,
    Progress,
    WrongEcu,
    no_progress,
)
from firmware_flashers.commands import run
from firmware_flashers.jetson_settings import JetsonSettings, Slot, with_word
from firmware_flashers.jetson_slots import (
    Content,
    Note,
    alone,
    hash_slot,
    is_same,
    judge_room,
    judge_unmounted,
    read_note,
    read_text,
    write_note,
    write_slot,
)
from shared.logs import get_log
from shared.release import Incompatible
from shared.since_310 import timeout
from shared.states import Step

log = get_log("firmware_flashers")
T = TypeVar("T")

POLL_S = 0.25
STOP_S = 30.0
_VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+_-]{0,63}")


class UnknownSlot(FlashError):
    """Which slot runs can't be told: nothing is written or switched."""

    code = "unknown_slot"
    retryable = False
    advice = "Correct current_slot_command, current_slot_pattern and the slots in the agent's configuration."


class JetsonFlasher:
    """A `Flasher` of the machine that it runs on. Steps run one at a time, blocking work in threads."""

    def __init__(self, settings: JetsonSettings) -> None:
        self._settings = settings
        self._turn = asyncio.Lock()

    @property
    def capabilities(self) -> Capabilities:
        """Two slots; reverts by itself where there is something to confirm."""
        return Capabilities(
            slots=2,
            self_reverting=self._settings.confirm_command is not None,
            anti_rollback=False,
            trust_class=self._settings.trust_class,
            isolated_bus=False,
        )

    async def identify(self) -> Identity:
        """What runs; the hash is that of the slot, as far as the note says what is in it."""
        async with self._step(), _untouched():
            running, _ = await self._slots()
            version = await self._version()
            known = (await self._note()).proved.get(running.name)
            if known is None or known.version != version:
                return self._identity(version, None)
            holds = await self._holds(running, known.length, known.sha256)
            return self._identity(version, known.sha256 if holds else None)

    async def stage(self, image: FirmwareImage, *, progress: OnProgress = no_progress) -> None:
        """Put the image into the passive slot and read it back; nothing to do where it runs or is already."""
        async with self._step():
            async with _untouched():
                await self._off_loop(lambda _: self._judge(image))
                running, passive = await self._slots()
                await self._off_loop(lambda _: judge_room(passive.path, image.spec.length))
                await self._off_loop(lambda _: judge_unmounted(passive.path))
                note = await self._note()
                runs = await self._runs(running, image)
                if runs and note.staged == running.name:
                    return
                if not runs and note.staged == running.name != note.previous:
                    raise FlashError(
                        f"slot {running.name} is not confirmed yet; {passive.name} is the way back",
                        code="not_confirmed",
                        advice="Confirm the running image or go back to the one before, then try again.",
                    )
                note = await self._disarm(note, running, passive)
            if not runs:
                note = await self._fill(passive, image, note, progress)
            staged = running if runs else passive
            await self._write(replace(note, staged=staged.name, previous=running.name, confirmed=None))

    async def activate(self) -> None:
        """Switch to the staged slot and reboot; done at once where it already runs."""
        async with self._step():
            note = await self._note()
            running, passive = await self._slots()
            if note.staged == running.name:
                return
            known = note.proved.get(passive.name)
            if note.staged != passive.name or known is None:
                raise FlashError(
                    f"{self._settings.component}: no slot holds a proved image to switch to",
                    code="nothing_staged",
                    retryable=False,
                    advice="Stage the image first.",
                    touched=False,
                )
            if not await self._holds(passive, known.length, known.sha256):
                raise NotProved(f"slot {passive.name} no longer holds what was written to it")
            await self._switch_and_reboot(note, passive)

    async def verify(self, image: FirmwareImage) -> Identity:
        """The running slot's own content and version; NotProved "rolled_back" where the old slot runs."""
        async with self._step(), _untouched():
            running, passive = await self._slots()
            spec, note = image.spec, await self._note()
            version = await self._version()
            if not await self._holds(running, spec.length, spec.sha256):
                if note.staged == passive.name or await self._holds(passive, spec.length, spec.sha256):
                    raise NotProved(
                        f"slot {running.name} with version {version} runs, not {passive.name} with "
                        f"{spec.version}: rolled back",
                        code="rolled_back",
                        advice="Look at the new image's boot log: it did not come up, or was not confirmed.",
                    )
                raise NotProved(f"slot {running.name} does not hold {spec.kind} {spec.version}")
            if version != spec.version:
                raise NotProved(f"slot {running.name} says version {version}, not {spec.version}")
            return self._identity(version, spec.sha256)

    async def confirm(self) -> None:
        """Tell the boot loader that the running slot is good, if it is the staged one."""
        async with self._step():
            note = await self._note()
            running, _ = await self._slots()
            if note.staged not in (None, running.name):
                raise NotProved(
                    f"slot {running.name} runs, not {note.staged}: nothing is confirmed", code="rolled_back"
                )
            if self._settings.confirm_command is not None:
                await run(self._settings.confirm_command, timeout_s=self._settings.command_s)
            await self._write(replace(note, staged=None, previous=None, confirmed=running.name, armed=False))

    async def revert(self) -> None:
        """Back to the slot that ran before `stage`. Raises FlashError after `confirm`."""
        async with self._step():
            note = await self._note()
            running, passive = await self._slots()
            if note.staged is None and note.confirmed is not None:
                raise FlashError(
                    f"slot {note.confirmed} is confirmed: there is nothing to go back to",
                    code="no_way_back",
                    retryable=False,
                    advice="Flash the older image as a new one, if that is wanted.",
                    touched=False,
                )
            if note.staged == running.name and note.previous == passive.name:
                known = note.proved.get(passive.name)
                if known is not None and not await self._holds(passive, known.length, known.sha256):
                    raise NotProved(f"slot {passive.name} no longer holds {known.version}", touched=False)
                await self._switch_and_reboot(note, passive)
                if self._settings.reboot_command is None:
                    return
                running, passive = await self._slots()
                if running.name != note.previous:
                    raise NotProved(
                        f"slot {running.name} still runs, not {note.previous}", code="not_reverted"
                    )
            note = await self._disarm(await self._note(), running, passive)
            await self._write(replace(note, staged=None, previous=None))

    def _judge(self, image: FirmwareImage) -> None:
        spec = image.spec
        try:
            spec.check_fits(kind=self._settings.kind, hardware=self._settings.hardware)
        except Incompatible as error:
            raise WrongEcu(error.message, touched=False) from error
        if len(image.data) != spec.length or hashlib.sha256(image.data).hexdigest() != spec.sha256:
            raise BadImage(f"the bytes are not those of {spec.kind} {spec.version}", touched=False)

    async def _fill(self, slot: Slot, image: FirmwareImage, note: Note, progress: OnProgress) -> Note:
        """Write and read back; returns the note that says so."""
        spec = image.spec
        content = Content(version=spec.version, length=spec.length, sha256=spec.sha256)
        if note.proved.get(slot.name) == content and await self._holds(slot, spec.length, spec.sha256):
            return note
        rest = {name: known for name, known in note.proved.items() if name != slot.name}
        note = replace(note, proved=rest, staged=None, previous=None)
        await self._write(note)
        if self._settings.unbootable_command is not None:
            command = with_word(self._settings.unbootable_command, slot)
            await run(command, timeout_s=self._settings.command_s)
        report = self._reporter(progress, Step.WRITING, spec.length)
        await self._off_loop(lambda stop: write_slot(slot.path, image.data, interrupt=stop, report=report))
        report = self._reporter(progress, Step.READING_BACK, spec.length)
        found = await self._off_loop(
            lambda stop: hash_slot(slot.path, spec.length, interrupt=stop, report=report)
        )
        if found != spec.sha256:
            raise NotProved(f"slot {slot.name} reads back as {found}, written was {spec.sha256}")
        log.info("flasher.slot_written", component=self._settings.component, slot=slot.name, sha256=found)
        return replace(note, proved=rest | {slot.name: content})

    async def _disarm(self, note: Note, running: Slot, passive: Slot) -> Note:
        """Make sure that the next boots are from the running slot, which is the one to stay with.

        A slot that is switched to counts as untried until it is confirmed, the running one too: two power
        cuts between these two commands would end in the other slot. To take the other one out of the choice
        has no such gap.
        """
        if not note.armed:
            return note
        settings = self._settings
        confirm = [] if settings.confirm_command is None else [settings.confirm_command]
        if settings.unbootable_command is not None:
            commands = [*confirm, with_word(settings.unbootable_command, passive)]
        else:
            commands = [with_word(settings.switch_command, running), *confirm]
        for command in commands:
            await run(command, timeout_s=settings.command_s)
        note = replace(note, armed=False)
        await self._write(note)
        return note

    async def _switch_and_reboot(self, note: Note, slot: Slot) -> None:
        settings = self._settings
        before = await self._boot_id()
        await self._write(replace(note, armed=True))
        await run(with_word(settings.switch_command, slot), timeout_s=settings.command_s)
        if settings.reboot_command is None:
            return
        await run(settings.reboot_command, timeout_s=settings.command_s)
        log.info("flasher.reboot_begun", component=settings.component, slot=slot.name)
        try:
            async with timeout(settings.reboot_s):
                # On the gateway itself this process ends here, with the system that it runs on.
                while await self._boot_id() == before:
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise FlashError(
                f"{settings.component} has not rebooted within {settings.reboot_s:g} s",
                code="not_rebooted",
                advice="Reboot the gateway; what was begun is then finished.",
            ) from None

    async def _slots(self) -> tuple[Slot, Slot]:
        """(running, passive). Raises UnknownSlot unless the answer names exactly one of the two."""
        settings = self._settings
        said = await run(settings.current_slot_command, timeout_s=settings.command_s)
        names = re.findall(settings.current_slot_pattern, said, re.MULTILINE)
        one, two = settings.slots
        if names == [one.name]:
            found = one, two
        elif names == [two.name]:
            found = two, one
        else:
            raise UnknownSlot(
                f"{settings.current_slot_command[0]} names {str(names)[:80]}, "
                f"not exactly one of {one.name} and {two.name}",
                touched=False,
            )
        if await self._off_loop(lambda _: is_same(one.path, two.path)):
            raise UnknownSlot(f"{one.path} and {two.path} are the same", touched=False)
        return found

    async def _runs(self, running: Slot, image: FirmwareImage) -> bool:
        spec = image.spec
        if not await self._holds(running, spec.length, spec.sha256):
            return False
        return await self._version() == spec.version

    async def _holds(self, slot: Slot, length: int, sha256: str) -> bool:
        return await self._off_loop(lambda stop: hash_slot(slot.path, length, interrupt=stop)) == sha256

    async def _version(self) -> str:
        settings, path = self._settings, self._settings.version_file
        if path is not None:
            said = await self._off_loop(lambda _: read_text(path))
        else:
            assert settings.version_command is not None  # exactly one of file and command is given
            said = await run(settings.version_command, timeout_s=settings.command_s)
        version = said.strip().split("\n", 1)[0].strip()
        if not _VERSION.fullmatch(version):
            raise FlashError(
                f"{settings.component} says no version but {version[:80]!r}",
                code="unknown_version",
                retryable=False,
                advice="Correct version_file or version_command in the agent's configuration.",
                touched=False,
            )
        return version

    async def _boot_id(self) -> str:
        return await self._off_loop(lambda _: read_text(self._settings.boot_id_file))

    def _identity(self, version: str, sha256: str | None) -> Identity:
        return Identity(
            kind=self._settings.kind,
            hardware=self._settings.hardware,
            version=version,
            sha256=sha256,
            in_bootloader=False,
        )

    async def _note(self) -> Note:
        return await self._off_loop(lambda _: read_note(self._settings.note_file))

    async def _write(self, note: Note) -> None:
        await self._off_loop(lambda _: write_note(self._settings.note_file, note))

    @asynccontextmanager
    async def _step(self) -> AsyncIterator[None]:
        async with self._turn:
            with alone(self._settings.note_file):
                yield

    async def _off_loop(self, act: Callable[[threading.Event], T]) -> T:
        """Run in a thread; a caller that is cancelled stops it within a chunk and waits for its end."""
        interrupt = threading.Event()
        work = asyncio.get_running_loop().run_in_executor(None, act, interrupt)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            interrupt.set()
            await asyncio.wait({work}, timeout=STOP_S)
            if work.done() and not work.cancelled():
                work.exception()  # the caller is gone: nobody else will ask for it
            raise

    def _reporter(self, progress: OnProgress, step: Step, total: int) -> Callable[[int], None]:
        loop = asyncio.get_running_loop()

        def report(done: int) -> None:
            loop.call_soon_threadsafe(progress, Progress(step=step, done_bytes=done, total_bytes=total))

        return report


@asynccontextmanager
async def _untouched() -> AsyncIterator[None]:
    """Whatever fails within has written to no slot."""
    try:
        yield
    except FlashError as error:
        error.touched = False
        raise
