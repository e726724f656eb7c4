"""Starts the right version of the agent, in its place: `python -I -m edge_agent.gateway.launch ARGS`.

Runs in the packaged version's environment, which self-updates never change. `run` is the agent itself: its
start counts, and it holds the lock of the one agent from before the choice until it ends. Everything else
is a person's question and gets the version that is proved.
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import version
from pathlib import Path

from edge_agent.gateway.self_update import Versions

FOLDER = Path("/var/lib/quarry-agent/versions")
FOLDER_VARIABLE = "QUARRY_AGENT_VERSIONS"
BASE_VARIABLE = "QUARRY_AGENT_BASE"
"""Tells the started version which packaged one stands behind it."""


def main(arguments: list[str]) -> None:
    """Choose, count, become it. Raises OSError when not even the packaged version can be started."""
    base = version("quarry-ota")
    versions = Versions(Path(os.environ.get(FOLDER_VARIABLE) or FOLDER), base=base)
    chosen: str | None
    try:
        counts = arguments[:1] == ["run"] and "--help" not in arguments and versions.alone() is not None
        chosen = versions.start(may_try=counts)
    except OSError:
        # A disk that fails leaves the packaged version, which says what is wrong.
        chosen = None
    python = (
        Path(sys.prefix) / "bin" / "python" if chosen is None else versions.folder / chosen / "bin" / "python"
    )
    os.environ[BASE_VARIABLE] = base
    os.execv(python, [str(python), "-I", "-m", "edge_agent", *arguments])  # noqa: S606 - the chosen Python, by its path


if __name__ == "__main__":
    main(sys.argv[1:])
