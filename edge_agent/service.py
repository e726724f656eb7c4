"""The agent as the service that runs for months, without what only a person at a shell needs.

A gateway has little memory and the agent rests nearly always: this start loads no command-line framework.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path
from typing import TextIO, cast

from edge_agent.app import run_agent
from edge_agent.config import AgentConfig, load_config
from edge_agent.gateway.log_files import TeeLog
from edge_agent.gateway.notify import of_environment
from edge_agent.office.enrol import NotEnrolled
from edge_agent.safe_files import act_as_owner
from shared.errors import ConfigError, OtaError
from shared.logs import set_up_logs
from shared.since_310 import BaseExceptionGroup

MUST_BE_MENDED = 78
"""EX_CONFIG of sysexits.h: a restart can't help; the service file knows it."""
INTERRUPTED = 130


def serve(file: Path) -> int:
    """Run the agent of this configuration until it is told to stop; the exit code.

    0: stopped; 78: the configuration or the enrolment must be mended first; 130: a second signal. Raises
    OtaError for what else ends it.
    """
    try:
        settings = load_config(file)
        act_as_owner(settings.data_dir)
        with TeeLog(sys.stderr, settings.data_dir / "log", settings.log_files) as tee:
            set_up_logs("quarry-agent", level=settings.log_level, stream=cast(TextIO, tee))
            hurried = asyncio.run(_until_signal(settings))
    except (ConfigError, NotEnrolled) as error:
        sys.stderr.write(f"quarry: {error.message} -- {error.advice}\n")
        return MUST_BE_MENDED
    return INTERRUPTED if hurried else 0


async def _until_signal(config: AgentConfig) -> bool:
    """Run the agent; True when a second signal cut it short."""
    stop = asyncio.Event()
    agent = asyncio.create_task(run_agent(config, stop=stop, notifier=of_environment()), name="agent")

    def asked() -> None:
        if stop.is_set():
            agent.cancel()
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked)
    await asyncio.wait({agent})
    if agent.cancelled():
        return True
    try:
        agent.result()
    except BaseExceptionGroup as group:
        # One task's named error is told like any other; anything else keeps its trace.
        named, other = group.split(OtaError)
        if named is None or other is not None:
            raise
        raise _first(named) from group
    return False


def _first(group: BaseExceptionGroup[OtaError]) -> OtaError:
    one = group.exceptions[0]
    return _first(one) if isinstance(one, BaseExceptionGroup) else one
