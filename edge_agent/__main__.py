"""The agent as a program of its own, for a gateway that has nothing else of Quarry OTA: `quarry-agent`.

`python -I -m edge_agent run --config FILE`: the verbs, exit codes and sentences of `quarry agent`. A plain
`run` starts without the framework that reads the other verbs (see lean and service).
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

from shared.errors import OtaError

INTERRUPTED = 130


def config_of_run(arguments: list[str]) -> Path | None:
    """The configuration of a plain `run`, None for another verb, for --help and for wrong use."""
    match arguments:
        case ["run", "--config", file]:
            return Path(file)
        case ["run", joined] if joined.startswith("--config="):
            return Path(joined.removeprefix("--config="))
    return None


def main(arguments: list[str]) -> int:
    """Run one command line (without the program's name); returns its exit code."""
    if arguments == ["--version"]:
        sys.stdout.write(f"quarry-agent {version('quarry-ota')}\n")
        return 0
    try:
        file = config_of_run(arguments)
        if file is not None:
            from edge_agent.lean import load_without_terminal

            load_without_terminal()
            from edge_agent.service import serve

            return serve(file)
        from edge_agent.cli import app

        app(args=arguments, prog_name="quarry-agent")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1
    except OtaError as error:
        sys.stderr.write(f"quarry-agent: {error.message} -- {error.advice}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("quarry-agent: interrupted.\n")
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
