"""The real agent as a program that ends itself by SIGKILL at a kill point which its driver names meanwhile.

    python -m sim.chaos.agent CONFIG KILL_FILE

KILL_FILE holds a name; when the agent passes the kill point of this name next, it is gone. Everything else
is as `quarry agent run` does it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from edge_agent.app import run_agent
from edge_agent.config import load_config
from shared.logs import set_up_logs


class KillFile:
    """The driver's word, read at each kill point."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self, name: str) -> None:
        try:
            wanted = self._path.read_text()
        except FileNotFoundError:
            return
        if wanted == name:
            os.kill(os.getpid(), signal.SIGKILL)


async def live(config: Path, kill_file: Path) -> None:
    """Until SIGTERM."""
    settings = load_config(config)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await run_agent(settings, stop=stop, kill_points=KillFile(kill_file))


if __name__ == "__main__":
    set_up_logs("quarry-agent")
    asyncio.run(live(Path(sys.argv[1]), Path(sys.argv[2])))
