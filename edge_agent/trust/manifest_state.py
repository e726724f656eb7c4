"""What the vehicle manifests need to remember: their number, the newest unsent one, and alarms.

`DATA/trust/manifest.json`, written whole before anything of it is sent. A queue of one: a newer manifest
replaces the unsent one and carries its alarms on, so that no alarm is lost and nothing piles up. A file that
is damaged or gone begins a new store with a new id, which the office sees.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from edge_agent.errors import StoreFailed
from edge_agent.safe_files import make_folder, write_whole
from edge_agent.threads import finish_in_thread
from edge_agent.trust.trust_store import read_sealed, sealed
from shared.ids import new_id
from shared.logs import get_log
from shared.trust.uptane.errors import StoreUnreadable
from shared.trust.uptane.manifest import MOST_MANIFEST_BYTES

log = get_log("edge_agent.manifest_state")

MOST_ALARMS = 32
"""As many as one report carries; they are codes, each once."""

MOST_STATE_BYTES = 2 * MOST_MANIFEST_BYTES + 64 * 1024
STATE_LOST = "manifest_state_lost"
_Code = Annotated[str, Meta(min_length=1, max_length=200)]
_Codes = Annotated[tuple[_Code, ...], Meta(max_length=MOST_ALARMS)]


class State(msgspec.Struct, frozen=True, kw_only=True):
    """`seq` is the newest number given; `carried` are the alarms of `unsent`, `fresh` came since."""

    v: Literal[1] = 1
    store_id: str
    seq: Annotated[int, Meta(ge=0, le=2**53)] = 0
    unsent: str | None = None
    carried: _Codes = ()
    fresh: _Codes = ()

    @property
    def alarms(self) -> tuple[str, ...]:
        """All that the office has not accepted yet; each once, the bound keeps the oldest."""
        return tuple(dict.fromkeys([*self.carried, *self.fresh]))[:MOST_ALARMS]


class ManifestState:
    """Open it with `await ManifestState.open(folder)`. Every change is on the disk when it returns.

    Its writers raise StoreFailed: then nothing has changed.
    """

    def __init__(self, path: Path, state: State) -> None:
        self._path = path
        self._one = asyncio.Lock()
        self.state = state

    @classmethod
    async def open(cls, folder: Path) -> ManifestState:
        """Read the file in the trust folder. Never raises."""
        path = folder / "manifest.json"
        try:
            return cls(path, await finish_in_thread(read_sealed, path, _decode, MOST_STATE_BYTES))
        except FileNotFoundError:
            return cls(path, State(store_id=new_id()))
        except StoreUnreadable as error:
            log.warning("manifest.state_lost", why=error.message)
            return cls(path, State(store_id=new_id(), fresh=(STATE_LOST,)))

    async def alarm(self, code: str) -> bool:
        """Remember a refusal for the next manifest; False when it waits already, or there is no room."""
        code = code[:200]

        def change(state: State) -> State:
            if code in state.fresh or len(state.fresh) >= MOST_ALARMS:
                return state
            return msgspec.structs.replace(state, fresh=(*state.fresh, code))

        return await self._change(change)

    async def number(self) -> int:
        """The next manifest's number, never given twice."""
        await self._change(lambda state: msgspec.structs.replace(state, seq=state.seq + 1))
        return self.state.seq

    async def put(self, manifest: bytes, carried: tuple[str, ...]) -> None:
        """The manifest that is to be sent, with these alarms; what came since waits for the next."""

        def change(state: State) -> State:
            fresh = tuple(one for one in state.fresh if one not in carried)
            return msgspec.structs.replace(state, unsent=manifest.decode(), carried=carried, fresh=fresh)

        await self._change(change)

    async def accepted(self, manifest: str) -> None:
        """The office has this one; a newer that was made meanwhile is still to be sent."""

        def change(state: State) -> State:
            if state.unsent != manifest:
                return state
            return msgspec.structs.replace(state, unsent=None, carried=())

        await self._change(change)

    async def begin_anew(self) -> None:
        """A new store: the office knows this one further on than the disk does. Alarms stay."""

        def change(state: State) -> State:
            fresh = tuple(dict.fromkeys([*state.alarms, STATE_LOST]))[:MOST_ALARMS]
            return State(store_id=new_id(), fresh=fresh)

        await self._change(change)

    async def _change(self, change: Callable[[State], State]) -> bool:
        async with self._one:
            state = change(self.state)
            if state == self.state:
                return False
            try:
                await finish_in_thread(_write, self._path, sealed(msgspec.json.encode(state)))
            except OSError as error:
                raise StoreFailed(f"{self._path} can't be written: {error}") from error
            self.state = state
            return True


def _decode(raw: bytes) -> State:
    return msgspec.json.decode(raw, type=State)


def _write(path: Path, raw: bytes) -> None:
    make_folder(path.parent)
    write_whole(path, raw)
