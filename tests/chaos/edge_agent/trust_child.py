"""Kills itself at every line of every writer of the trust folder, in forks, and says what was left.

Run as `python trust_child.py FOLDER`; prints one JSON object: by writer, what each kill left ("old", "new",
or what is wrong), and how it ended where nothing killed it.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec

from edge_agent import safe_files
from edge_agent.trust import known_images, manifest_key, manifest_state, trust_files, trust_store
from edge_agent.trust.manifest_key import load_or_make_key
from edge_agent.trust.manifest_state import ManifestState
from edge_agent.trust.trust_config import Roots
from edge_agent.trust.trust_files import KeptSelection, TrustFiles
from edge_agent.trust.trust_store import TrustKeeper, sealed
from sim.uptane_world import UptaneWorld

TRACED = {
    str(module.__file__)
    for module in (safe_files, trust_store, trust_files, manifest_state, known_images, manifest_key)
}
MOST_LINES = 400


def killed_at(line: int, act: Callable[[], None]) -> None:
    """Do it, and die at this line of the writers."""
    left = line

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if frame.f_code.co_filename not in TRACED:
            return None
        if event == "line":
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    act()
    os._exit(0)


def every_kill(folder: Path, before: Path, act: Callable[[], None], judge: Callable[[], str]) -> list[str]:
    """What each kill left, in order; the last is of the run that nothing killed."""
    found: list[str] = []
    for line in range(MOST_LINES):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(before, folder)
        pid = os.fork()
        if pid == 0:
            killed_at(line, act)
        _, status = os.waitpid(pid, 0)
        found.append(judge())
        # Whatever was left, the next write goes through.
        act()
        if judge() != "new":
            found.append("stuck")
        if not os.WIFSIGNALED(status):
            return found
    raise AssertionError("there is no end")


def when_full(folder: Path, before: Path, act: Callable[[], None], judge: Callable[[], str]) -> str:
    """The same on a disk that takes no more than 100 bytes of a file."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(before, folder)
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        try:
            act()
        except OSError:
            os._exit(7)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    return judge() if os.waitstatus_to_exitcode(status) == 7 else "it was written"


def main(root: Path) -> None:
    """Every writer."""
    world = UptaneWorld()
    world.direct(world.release("1.1.0", 2))
    old = world.store()
    outcome = world.verify(old)
    assert outcome.selection is not None
    folder, before, empty = root / "trust", root / "before", root / "empty"
    empty.mkdir()
    roots = Roots(
        director=world.director.published["1.root.json"], image=world.image.published["1.root.json"]
    )
    kept = KeptSelection(
        selection=outcome.selection, store=old, vehicle=world.vehicle, offline=False, files={}
    )
    newer = KeptSelection(
        selection=outcome.selection, store=outcome.store, vehicle=world.vehicle, offline=True, files={}
    )
    name = trust_files.selection_id(outcome.selection)

    def store_says() -> str:
        try:
            keeper = asyncio.run(TrustKeeper.open(folder, roots))
            store = keeper.store
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return {old.dump(): "old", outcome.store.dump(): "new"}.get(store.dump(), "neither")

    def first_says() -> str:
        try:
            trust_store._read(folder)
        except FileNotFoundError:
            return "old"
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return "new"

    def selection_says() -> str:
        try:
            return "new" if TrustFiles(folder).load(name).offline else "old"
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    def state_says() -> str:
        made = asyncio.run(ManifestState.open(folder)).state
        return {("a", 1): "old", ("a", 2): "new"}.get((made.store_id, made.seq), "neither")

    def known_says() -> str:
        made = asyncio.run(known_images.KnownImages.open(folder))
        return "new" if made.spec_of(spec.sha256) == spec else "old"

    def key_says() -> str:
        if not (folder / manifest_key.PRIVATE).exists():
            return "old"
        load_or_make_key(folder)
        return "new" if (folder / manifest_key.PUBLIC).exists() else "no public half"

    spec = outcome.selection.assignments[0].spec
    state = manifest_state.State(store_id="a", seq=2, unsent="{}", fresh=("x",) * 9)
    trust_store._write(before, old)
    TrustFiles(before).keep(kept)
    manifest_state._write(
        before / "manifest.json",
        sealed(msgspec.json.encode(manifest_state.State(store_id="a", seq=1))),
    )
    writers: dict[str, tuple[Path, Callable[[], Any], Callable[[], str]]] = {
        "store": (before, lambda: trust_store._write(folder, outcome.store), store_says),
        "first store": (empty, lambda: trust_store._write(folder, old), first_says),
        "selection": (before, lambda: TrustFiles(folder).keep(newer), selection_says),
        "manifest state": (
            before,
            lambda: manifest_state._write(folder / "manifest.json", sealed(msgspec.json.encode(state))),
            state_says,
        ),
        "known images": (
            before,
            lambda: known_images._write(folder / "known.json", sealed(msgspec.json.encode([spec]))),
            known_says,
        ),
        "key": (empty, lambda: load_or_make_key(folder), key_says),
    }
    said = {}
    for writer, (start, act, judge) in writers.items():
        said[writer] = {
            "kills": every_kill(folder, start, act, judge),
            "full": when_full(folder, start, act, judge),
        }
    print(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
