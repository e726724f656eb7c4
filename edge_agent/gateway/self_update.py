"""The agent's own versions beside each other: PURE decisions, and the small files that they stand in.

`VERSIONS/X/` is a version's own environment, `VERSIONS/state.json` says which one runs. The packaged version
is always there and is what runs when nothing else is said. A new version gets a trial: so many starts, in
which it must prove itself healthy; else the one before it runs again, and the new one is never tried again
under that name. Each state is written before the act that it names, whole and synced, so that a power cut
at any moment leaves the old version or the new one, and never two.

Only the standard library: the launcher decides by it before anything of a version was believed.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath

MOST_STARTS = 3
"""Starts of a trial that did not prove itself; then the one before it runs again."""
HEALTHY_AFTER_S = 60.0
LINK_WITHIN_S = 900.0
MOST_BAD = 16
MOST_STATE_BYTES = 16 * 1024
MOST_FILES = 20_000
MOST_UNPACKED_BYTES = 256 * 1024 * 1024
VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+_-]{0,63}")

KillPoints = Callable[[str], None]


@dataclass(frozen=True)
class State:
    """Which version runs. `base` is the packaged version that this was decided beside.

    `current` None: the packaged one. `trial` is tried in place of it, `starts` times so far. `linked`: the
    version before the trial had the office's link, so that the trial must have it too. `counter` is the
    trial's release counter. `bad` are versions that failed their trial.
    """

    base: str
    current: str | None = None
    trial: str | None = None
    starts: int = 0
    linked: bool = False
    counter: int = 0
    bad: tuple[str, ...] = ()


@dataclass(frozen=True)
class Health:
    """What a version on trial knows of itself after `up_s` seconds."""

    up_s: float
    linked: bool
    stuck: bool


class Unfit(Exception):
    """A version can't be staged; says why in a sentence."""


# --- PURE -------------------------------------------------------------------------------------------


def on_start(state: State, *, present: Iterable[str], may_try: bool) -> tuple[State, str | None]:
    """The state to write before the start, and the version to start (None: the packaged one).

    `present`: versions that are there whole. `may_try`: this start is the agent's own and is counted; any
    other one (a person who asks for the status) takes what is proved.
    """
    there = set(present)
    if state.trial is not None and may_try:
        if state.trial in there and state.starts < MOST_STARTS:
            return replace(state, starts=state.starts + 1), state.trial
        state = given_up(state)
    current = state.current if state.current in there else None
    return replace(state, current=current) if may_try else state, current


def staged(state: State, version: str, *, linked: bool, counter: int = 0) -> State:
    """`version` is there whole and gets its trial. Raises Unfit."""
    if version in state.bad:
        raise Unfit(f"version {version} failed its trial here before")
    if version in (state.base, state.current):
        raise Unfit(f"version {version} runs already")
    if state.trial is not None and (state.trial != version or state.starts > 0):
        raise Unfit(f"version {state.trial} is on trial: wait until it has proved itself, or not")
    return replace(state, trial=version, starts=0, linked=linked, counter=counter)


def given_up(state: State) -> State:
    """The trial failed: the version before it runs again."""
    if state.trial is None:
        return state
    return replace(state, trial=None, starts=0, bad=(*state.bad, state.trial)[-MOST_BAD:])


def confirmed(state: State, version: str) -> State:
    """The trial proved itself; anything else than the trial changes nothing."""
    if state.trial != version:
        return state
    return replace(state, current=version, trial=None, starts=0)


def beside(state: State, base: str) -> State:
    """A newly installed package begins afresh: what was decided beside another one is void."""
    return state if state.base == base else State(base=base)


def judge(health: Health, *, must_link: bool) -> bool | None:
    """Whether a version on trial is healthy; None: not known yet. Where there was no link, none is needed."""
    if health.stuck:
        return False
    if health.up_s < HEALTHY_AFTER_S:
        return None
    if health.linked or not must_link:
        return True
    return False if health.up_s >= LINK_WITHIN_S else None


# --- the files --------------------------------------------------------------------------------------


def _no_kill(_: str) -> None:
    pass


class Versions:
    """The folder of versions. `base` is the packaged version's name; methods block and raise OSError."""

    def __init__(self, folder: Path, *, base: str, kill_point: KillPoints = _no_kill) -> None:
        self.folder = folder
        self._base = base
        self._kill = kill_point

    def read(self) -> State:
        """The state; a file that is missing, damaged, or of another package is the packaged version's."""
        try:
            with (self.folder / "state.json").open("rb") as file:
                said = json.loads(file.read(MOST_STATE_BYTES))
            state = State(**{**said, "bad": tuple(said["bad"])})
        except (OSError, ValueError, TypeError, KeyError):
            return State(base=self._base)
        return beside(state, self._base) if _well_formed(state) else State(base=self._base)

    def write(self, state: State) -> None:
        """Replace the state in one step, safe on the disk when this returns."""
        fresh = self.folder / ".state.json.part"
        with fresh.open("w", encoding="utf-8") as file:
            json.dump(asdict(state), file)
            file.flush()
            self._kill("state.written")
            os.fsync(file.fileno())
        self._kill("state.synced")
        fresh.replace(self.folder / "state.json")
        self._kill("state.renamed")
        _sync(self.folder)
        self._kill("state.safe")

    def present(self) -> set[str]:
        """Versions that are there whole: only a whole one ever got its name."""
        try:
            return {
                path.name
                for path in self.folder.iterdir()
                if VERSION.fullmatch(path.name) and (path / "bin" / "python").exists()
            }
        except FileNotFoundError:
            return set()

    def stage(
        self, archive: Path, version: str, *, python: Path, linked: bool = False, counter: int = 0
    ) -> None:
        """Unpack a verified archive as `version` and give it its trial.

        `python` is the interpreter that it has to be made for. Raises Unfit; repeats are safe.
        """
        if not VERSION.fullmatch(version):
            raise Unfit(f"{version[:80]!r} is no version")
        state = staged(self.read(), version, linked=linked, counter=counter)
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if version not in self.present():
            self._make_room(state)
            part = self.folder / f".{version}.part"
            shutil.rmtree(part, ignore_errors=True)
            try:
                _unpack(archive, part)
                _check_tree(part, python)
            except BaseException:
                shutil.rmtree(part, ignore_errors=True)
                raise
            self._kill("version.unpacked")
            _sync_tree(part)
            self._kill("version.synced")
            part.rename(self.folder / version)
            self._kill("version.named")
            _sync(self.folder)
        self._kill("version.safe")
        self.write(state)

    def _make_room(self, state: State) -> None:
        """Only the current version stays beside a new one, and what an interrupted staging left goes."""
        for path in self.folder.iterdir():
            if path.is_dir() and path.name not in (state.current, state.trial):
                # Its name goes first: half a version must not have one.
                gone = path if path.name.startswith(".") else path.rename(self.folder / f".{path.name}.gone")
                shutil.rmtree(gone, ignore_errors=True)

    def start(self, *, may_try: bool) -> str | None:
        """Decide for a start, and count it before it happens. A state that can't be written tries nothing."""
        before = self.read()
        after, version = on_start(before, present=self.present(), may_try=may_try)
        if after != before:
            try:
                self.write(after)
            except OSError:
                return on_start(before, present=self.present(), may_try=False)[1]
        return version

    def alone(self) -> int | None:
        """Take the lock of the one agent for this process and what it becomes by exec; None: it is taken."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        os.set_inheritable(descriptor, True)
        return descriptor


def _well_formed(state: State) -> bool:
    names = [state.base, *(one for one in (state.current, state.trial) if one is not None), *state.bad]
    return (
        all(isinstance(one, str) and VERSION.fullmatch(one) for one in names)
        and isinstance(state.starts, int)
        and isinstance(state.counter, int)
        and isinstance(state.linked, bool)
    )


def _unpack(archive: Path, part: Path) -> None:
    """Files and folders below `part`, and nothing else. Not by tarfile's own filters: Python has them since
    3.10.12 and 3.11.4 only, and a Debian 12 has 3.11.2.
    """
    files = size = 0
    interpreter: str | None = None
    try:
        with tarfile.open(archive, mode="r:gz") as opened:
            for member in opened:
                files, size = files + 1, size + member.size
                if files > MOST_FILES or size > MOST_UNPACKED_BYTES:
                    raise Unfit("the archive is larger than a version can be")
                if member.issym() and member.name == "bin/python":
                    interpreter = member.linkname
                else:
                    _extract(opened, member, part)
        if interpreter is not None:
            # The one link out of the tree, made when nothing is written through it any more; it is checked
            # against this machine's interpreter below.
            (part / "bin").mkdir(parents=True, exist_ok=True)
            (part / "bin" / "python").symlink_to(interpreter)
    except (tarfile.TarError, EOFError, ValueError, FileExistsError, NotADirectoryError) as error:
        raise Unfit(f"the archive can't be unpacked: {error}") from error


def _extract(opened: tarfile.TarFile, member: tarfile.TarInfo, part: Path) -> None:
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts:
        raise Unfit(f"the archive names {member.name[:200]!r}, outside of its own folder")
    path = part / name
    if member.isdir():
        path.mkdir(parents=True, exist_ok=True, mode=0o755)
        return
    source = opened.extractfile(member) if member.isreg() else None
    if source is None:
        raise Unfit(f"the archive holds {member.name[:200]!r}, which is neither file nor folder")
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    with source, path.open("xb") as file:
        shutil.copyfileobj(source, file)
    path.chmod(0o755 if member.mode & 0o100 else 0o644)


def _check_tree(part: Path, python: Path) -> None:
    link = part / "bin" / "python"
    if not link.is_symlink() or link.readlink() != python:
        raise Unfit(f"the version is not made for {python}")
    for name in ("pyvenv.cfg", "bin/quarry-agent-launcher"):
        if not (part / name).is_file():
            raise Unfit(f"the archive has no {name}")
    if not list(part.glob("lib/python*/site-packages/edge_agent/__main__.py")):
        raise Unfit("the archive holds no agent")


def _sync_tree(folder: Path) -> None:
    for here, _, leaves in os.walk(folder):
        for leaf in leaves:
            path = Path(here) / leaf
            if not path.is_symlink():
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
        _sync(Path(here))


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
