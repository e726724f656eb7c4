"""A self-updated agent proves that it is healthy, or makes room for the one before it.

Only a version that the launcher started on trial does anything here. What it proves: it ran for a minute,
no loop of it is stuck, and where the version before it had the office's link it has it too. A version that
can't even start is the launcher's to count.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from edge_agent.gateway.launch import BASE_VARIABLE, FOLDER, FOLDER_VARIABLE
from edge_agent.gateway.self_update import Health, Versions, confirmed, given_up, judge
from edge_agent.threads import finish_in_thread
from edge_agent.trust.counters import Counters
from shared.errors import OtaError
from shared.logs import get_log

log = get_log("edge_agent.trial")

LOOK_EVERY_S = 1.0
COMPONENT = "quarry-agent"
"""Under which its own release counter stands among those of the ECUs."""


def versions_here() -> Versions | None:
    """The folder of versions when the launcher started this process, else None."""
    base = os.environ.get(BASE_VARIABLE)
    if not base:
        return None
    return Versions(Path(os.environ.get(FOLDER_VARIABLE) or FOLDER), base=base)


async def prove_trial(
    *,
    linked: Callable[[], bool],
    stuck: Callable[[], bool],
    counters: Path,
    stop: Callable[[], None],
    now: Callable[[], float] = time.monotonic,
) -> None:
    """Return when there is nothing to prove (any more). A trial that failed calls `stop`."""
    versions = versions_here()
    if versions is None:
        return
    running = version("quarry-ota")
    state = await asyncio.to_thread(versions.read)
    if state.trial != running:
        return
    began_s, was_linked = now(), False
    log.info("trial.began", version=running, starts=state.starts)
    while True:
        was_linked = was_linked or linked()
        health = Health(up_s=now() - began_s, linked=was_linked, stuck=stuck())
        verdict = judge(health, must_link=state.linked)
        try:
            if verdict is True:
                await finish_in_thread(versions.write, confirmed(state, running))
                await (await Counters.open(counters)).raise_to(COMPONENT, state.counter)
                log.info("trial.passed", version=running)
                return
            if verdict is False:
                await finish_in_thread(versions.write, given_up(state))
                log.error("trial.failed", version=running, linked=was_linked, stuck=health.stuck)
                stop()
                return
        except (OSError, OtaError) as error:
            log.warning("trial.not_written", why=str(error))
        await asyncio.sleep(LOOK_EVERY_S)
