"""`quarry package`: what is installed on machines that have no checkout."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import sys
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from cli.agent_package.deb import Entry, make_deb, tar
from cli.check import CHECKOUT

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)
PACKAGING = CHECKOUT / "edge_agent" / "packaging"
CONFIG = "etc/quarry-agent/agent.toml"
HOME = "usr/lib/quarry-agent"


class Arch(StrEnum):
    """A gateway's processor, in Debian's words."""

    AMD64 = "amd64"
    ARM64 = "arm64"


class Python(StrEnum):
    """The gateway's interpreter."""

    PY310 = "3.10"
    PY311 = "3.11"
    PY312 = "3.12"
    PY313 = "3.13"


@app.callback()
def package() -> None:
    """Build packages of Quarry OTA."""


@app.command()
def agent(
    arch: Annotated[Arch, typer.Option("--arch", help="The gateway's processor.")],
    out: Annotated[Path, typer.Option("--out", help="The folder to write to.")],
    python: Annotated[Python, typer.Option("--python", help="The gateway's interpreter.")] = Python.PY311,
    interpreter: Annotated[
        Path | None,
        typer.Option("--interpreter", help="Where it is, when it is not the distribution's own."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print exactly one JSON document.")] = False,
) -> None:
    """Build the truck's agent: a .deb, and the same tree as an archive for its self-update.

    The .deb has the agent's own virtual environment, with the locked wheels of that processor and
    interpreter (each hash checked), the service, and its configuration. No root, no machine of that
    kind and no Debian is needed; the same checkout gives the same bytes (SOURCE_DATE_EPOCH sets the
    time inside). Exits 1 when the wheels can't be had.
    """
    from cli.agent_package.tree import Machine, agent_tree
    from edge_agent.clock import BUILT_AT

    machine = Machine(arch=arch, python=python, interpreter=interpreter)
    number = f"{version('quarry-ota')}+py{python.replace('.', '')}"
    mtime = int(os.environ.get("SOURCE_DATE_EPOCH") or BUILT_AT.timestamp())
    tree = agent_tree(machine)
    system = {
        "usr/bin/quarry-agent": Entry(link="../lib/quarry-agent/bin/quarry-agent-launcher"),
        "usr/lib/systemd/system/quarry-agent.service": _entry("quarry-agent.service"),
        "usr/share/polkit-1/rules.d/50-quarry-agent.rules": _entry("quarry-agent.rules"),
        "usr/share/doc/quarry-agent/README.md": Entry(
            content=(CHECKOUT / "edge_agent" / "README.md").read_bytes()
        ),
        CONFIG: _entry("agent.toml"),
    }
    needs = [*([] if interpreter else [f"python{python}"]), "libc6 (>= 2.28)", "passwd", "ca-certificates"]
    deb = make_deb(
        control={
            "Package": "quarry-agent",
            "Version": number,
            "Architecture": arch,
            "Maintainer": "Quarry OTA <ota@quarry.invalid>",
            "Depends": ", ".join(needs),
            "Section": "admin",
            "Priority": "optional",
            "Description": "over-the-air firmware updates of a quarry truck\n"
            " Takes signed firmware from the office, waits for a safe vehicle, flashes the ECUs over CAN\n"
            " and reports every step. It brings its own virtual environment.",
        },
        scripts={path.name: path.read_bytes() for path in sorted((PACKAGING / "deb").iterdir())},
        conffiles=[CONFIG],
        entries={**{f"{HOME}/{name}": entry for name, entry in tree.items()}, **system},
        mtime=mtime,
    )
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for name, content in (
        (f"quarry-agent_{number}_{arch}.deb", deb),
        (
            f"quarry-agent_{number}_{arch}.tar.gz",
            gzip.compress(tar(tree, mtime=mtime, prefix=""), compresslevel=6, mtime=mtime),
        ),
    ):
        (out / name).write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        written.append({"file": str(out / name), "bytes": len(content), "sha256": digest})
    if as_json:
        sys.stdout.write(json.dumps({"files": written}) + "\n")
    else:
        for one in written:
            sys.stdout.write(f"{one['file']}  {one['bytes']} bytes, SHA-256 {one['sha256']}\n")


def _entry(name: str) -> Entry:
    return Entry(content=(PACKAGING / name).read_bytes())
