"""The command line: finds the verb, imports its room and no other, runs it.

Exit codes: 0 success, 2 wrong use, 130 interrupted; 1, or another one that the verb's help
documents, when something failed. A failure that has a name is one sentence and its advice on
stderr, never a traceback.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from importlib.metadata import version

from shared.errors import OtaError

WRONG_USE = 2
INTERRUPTED = 130

VERBS: dict[str, tuple[str, str]] = {
    "demo": ("cli.demo", "the whole system on this machine: office, trucks, signed updates, faults"),
    "serve": ("cli.serve", "run the office (control plane), all roles in one process"),
    "agent": ("cli.agent", "the truck's gateway: enrol it, run it, look at its jobs"),
    "release": ("cli.release", "signed releases: keys, signing, publishing, upload, USB bundles"),
    "device": ("cli.device", "trucks: add, list, show, ECUs, enrolment tokens, certificates, revoke"),
    "firmware": ("cli.firmware", "published firmware: list, withdraw"),
    "job": ("cli.job", "jobs: create, watch, list, cancel"),
    "alarm": ("cli.alarm", "what trucks' manifests show to be wrong: list, acknowledge"),
    "dlq": ("cli.dlq", "dead letters: list, show, replay, drop"),
    "flash": ("firmware_flashers.cli", "flash, identify and verify an MCU on a CAN bus"),
    "sim": ("cli.sim", "simulated CAN buses, MCUs and trucks"),
    "bench": ("cli.bench", "figures, the limits that they are held against, and the ratio"),
    "package": ("cli.package", "packages for machines that have no checkout: the agent's .deb"),
    "vcan": ("cli.vcan", "run a command on a kernel with SocketCAN: vcan0 and vcan1, real ones"),
    "test": ("cli.test", "run the tests: all, or some kinds"),
    "check": ("cli.check", "format, lint, types and import contracts, as CI runs them"),
}


def overview() -> str:
    """What `quarry --help` prints."""
    verbs = "\n".join(f"  {name:<10} {text}" for name, (_, text) in VERBS.items())
    return (
        "Quarry OTA: firmware updates for trucks that work beyond good coverage.\n\n"
        "Usage: quarry VERB [OPTIONS]      quarry VERB --help teaches each one\n\n"
        f"{verbs}\n\n"
        "Begin with: quarry demo\n"
    )


def fail(sentence: str, code: int) -> int:
    """One sentence on stderr; returns the exit code."""
    sys.stderr.write(f"quarry: {sentence}\n")
    return code


def dispatch(arguments: list[str]) -> int:
    """Run one command line (without the program's name); returns its exit code."""
    if not arguments or arguments[0] in {"-h", "--help", "help"}:
        sys.stdout.write(overview())
        return 0
    verb, *rest = arguments
    if verb == "--version":
        sys.stdout.write(f"quarry {version('quarry-ota')}\n")
        return 0
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else "quarry --help lists them."
        return fail(f"there is no verb '{verb}'; {hint}", WRONG_USE)
    app = importlib.import_module(VERBS[verb][0]).app
    try:
        app(args=rest, prog_name=f"quarry {verb}")
    except SystemExit as ended:
        # How the framework ends a command, a successful one too.
        return ended.code if isinstance(ended.code, int) else 1
    except OtaError as error:
        return fail(f"{error.message} -- {error.advice}", 1)
    except KeyboardInterrupt:
        return fail("interrupted.", INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output (head, less) has gone: nobody is left to tell.
        sys.stderr.close()
        return 1
    return 0


def run() -> None:
    """Entry point of the program."""
    sys.exit(dispatch(sys.argv[1:]))


if __name__ == "__main__":
    run()
