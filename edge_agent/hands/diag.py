"""`diag collect`: one bounded archive that lets support understand a truck from afar, without its secrets.

Each part is collected on its own, with a time limit and a bound in bytes: one that fails is named in
`problems.json` and takes nothing else along. Everything passes through the masker; key and credential
files themselves are never put in, nor are images.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import platform
import queue
import shutil
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import msgspec

from edge_agent.credentials import MOST_CREDENTIALS_BYTES
from edge_agent.errors import EdgeError
from edge_agent.hands.masking import Masker
from edge_agent.interlocks.hold import read_hold
from edge_agent.liveness import is_running
from edge_agent.safe_files import act_as_owner
from edge_agent.store.store import Store
from shared.errors import ConfigError, OtaError
from shared.since_310 import UTC, tomllib

MOST_PART_BYTES = 2 * 1024 * 1024
MOST_ALL_BYTES = 8 * 1024 * 1024
MOST_SECRET_BYTES = 16 * 1024
MOST_NAMES = 500
MOST_JOBS = 50
WITHIN_S = 10.0
NET = Path("/sys/class/net")
_SECRET_KEYS = ("secret", "password", "token", "private", "key_file", "passphrase", "pin")


class DiagFailed(EdgeError):
    """The archive can't be written."""

    code = "diag_failed"
    advice = "Name a file that is not there yet, on a disk with room."


@dataclass(frozen=True, kw_only=True)
class Done:
    """What was written: bytes of the archive, names of its parts, and of those that failed."""

    size: int
    parts: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def collect(config_file: Path, out: Path, *, net: Path = NET) -> Done:
    """Write the archive. Blocks. Raises DiagFailed; everything else is a problem named inside."""
    # Opened with the rights of whoever asks: /root or a drive may not be the agent's to write.
    try:
        descriptor = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise DiagFailed(f"{out} can't be written: {error.strerror}") from error
    problems: dict[str, str] = {}
    try:
        with os.fdopen(descriptor, "wb") as file:
            parts = _collect(config_file, net, problems)
            file.write(_pack(parts))
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
    except OSError as error:
        with suppress(OSError):
            out.unlink(missing_ok=True)
        raise DiagFailed(f"{out} can't be written: {error.strerror}") from error
    return Done(size=size, parts=sorted(parts), problems=sorted(problems))


def _collect(config_file: Path, net: Path, problems: dict[str, str]) -> dict[str, bytes]:
    raw_config = _bounded(problems, "config.toml", lambda: _read(config_file, 256 * 1024)) or b""
    table = _table(raw_config, problems)
    data_dir = _data_dir(config_file, table)
    secrets = list(_secrets(config_file, table, data_dir, problems))
    mask = Masker(secrets)
    if data_dir is not None:
        try:
            act_as_owner(data_dir)
        except ConfigError as error:
            problems["owner"] = error.message
    makers: dict[str, Callable[[], bytes]] = {
        "config.toml": lambda: raw_config,
        "config-verdict.json": lambda: _json(_verdict(config_file)),
        "about.json": lambda: _json(_about()),
        "packages.json": lambda: _json(_packages()),
        "links.json": lambda: _json(_links(net)),
    }
    if data_dir is not None:
        makers |= {
            "agent.json": lambda: _json(_agent(data_dir)),
            "journal.json": lambda: _json(asyncio.run(_journal(data_dir))),
            "counters.json": lambda: _read(data_dir / "counters.json", 64 * 1024),
            "data-folder.json": lambda: _json(_listing(data_dir)),
            "vehicle.json": lambda: _json(_vehicle(config_file, table)),
        }
        for path in sorted((data_dir / "log").glob("agent.log*")):
            makers[f"log/{path.name}"] = lambda path=path: _tail(path)  # type: ignore[misc]
    parts: dict[str, bytes] = {}
    left = MOST_ALL_BYTES
    for name, make in makers.items():
        raw = _bounded(problems, name, make)
        if raw is None:
            continue
        if len(raw) > left:
            problems[name] = "the archive is full"
            continue
        left -= len(raw)
        parts[name] = mask(raw)
    parts["problems.json"] = mask(_json(problems))
    return parts


def _pack(parts: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, raw in sorted(parts.items()):
            about = tarfile.TarInfo(f"quarry-diag/{name}")
            about.size, about.mode, about.mtime = len(raw), 0o600, int(time.time())
            archive.addfile(about, io.BytesIO(raw))
    return packed.getvalue()


def _bounded(problems: dict[str, str], name: str, make: Callable[[], bytes]) -> bytes | None:
    """What `make` gives within its time, cut to its bound; None, and a problem, where it fails."""
    results: queue.SimpleQueue[bytes | Exception] = queue.SimpleQueue()

    def act() -> None:
        try:
            results.put(make())
        except Exception as error:
            results.put(error)

    # A daemon: a dead drive may hold a read for ever, and must not hold the archive.
    threading.Thread(target=act, name=f"diag-{name}", daemon=True).start()
    try:
        got = results.get(timeout=WITHIN_S)
    except queue.Empty:
        problems[name] = f"took longer than {WITHIN_S:g} s"
        return None
    if isinstance(got, Exception):
        problems[name] = got.message if isinstance(got, OtaError) else f"{type(got).__name__}: {got}"
        return None
    if len(got) > MOST_PART_BYTES:
        problems[name] = f"cut to its last {MOST_PART_BYTES} bytes"
        # Never in the middle of a line: half a secret would not be found.
        got = got[-MOST_PART_BYTES:].partition(b"\n")[2]
    return got


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=1, default=str).encode() + b"\n"


def _read(path: Path, most: int) -> bytes:
    with path.open("rb") as file:
        return file.read(most)


def _tail(path: Path) -> bytes:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(max(0, size - MOST_PART_BYTES))
        raw = file.read(MOST_PART_BYTES)
    return raw.partition(b"\n")[2] if size > MOST_PART_BYTES else raw


# --- secrets ----------------------------------------------------------------------------------------


def _table(raw: bytes, problems: dict[str, str]) -> dict[str, Any]:
    try:
        return tomllib.loads(raw.decode())
    except (ValueError, RecursionError) as error:
        problems["config.toml"] = f"is not TOML: {error}"
        return {}


def _values(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text of a configuration with its key."""
    if isinstance(value, dict):
        for name, one in value.items():
            yield from _values(one, str(name))
    elif isinstance(value, list):
        for one in value:
            yield from _values(one, key)
    elif isinstance(value, str):
        yield key, value


def _secrets(
    config_file: Path, table: dict[str, Any], data_dir: Path | None, problems: dict[str, str]
) -> Iterator[bytes]:
    """Every secret that this truck knows of: of the credentials file, and of files that the keys name."""
    if data_dir is not None:
        try:
            credentials = msgspec.json.decode(_read(data_dir / "credentials.json", MOST_CREDENTIALS_BYTES))
        except FileNotFoundError:
            credentials = None
        except (OSError, msgspec.DecodeError) as error:
            problems["credentials.json"] = str(error)
            credentials = None
        for key, value in _values(credentials):
            if key not in ("device_id", "mqtt_host", "mqtt_ca", "certificate", "ca_chain"):
                yield value.encode()
    for key, value in _values(table):
        if not any(word in key for word in _SECRET_KEYS):
            continue
        path = config_file.absolute().parent / value
        try:
            if path.is_file():
                yield _read(path, MOST_SECRET_BYTES)
            elif not key.endswith("_file"):
                yield value.encode()
        except OSError as error:
            problems[f"secret of {key}"] = str(error.strerror)


# --- the parts --------------------------------------------------------------------------------------


def _data_dir(config_file: Path, table: dict[str, Any]) -> Path | None:
    value = table.get("data_dir")
    return config_file.absolute().parent / Path(value).expanduser() if isinstance(value, str) else None


def _verdict(config_file: Path) -> dict[str, Any]:
    from edge_agent.config import load_config

    try:
        config = load_config(config_file)
    except ConfigError as error:
        return {"good": False, "why": error.message}
    return {"good": True, "components": [str(one.component) for one in config.components]}


def _about() -> dict[str, Any]:
    found: dict[str, Any] = {
        "collected_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "boot_s": time.clock_gettime(time.CLOCK_BOOTTIME),
        "python": sys.version,
        "executable": sys.executable,
        "platform": platform.platform(),
        "machine": platform.machine(),
        "libc": platform.libc_ver(),
        "user": os.geteuid(),
        "load": os.getloadavg(),
    }
    for name in ("/etc/os-release", "/proc/meminfo", "/proc/mounts", "/proc/net/dev", "/proc/cmdline"):
        with suppress(OSError):
            found[name] = _read(Path(name), 16 * 1024).decode("utf-8", "replace").splitlines()
    return found


def _packages() -> dict[str, str]:
    return {one.metadata["Name"]: one.version for one in distributions()}


def _links(net: Path) -> list[dict[str, Any]]:
    """What `ip -s link` would say, read from /sys/class/net: CAN interfaces too."""
    found = []
    for link in sorted(net.iterdir())[:MOST_NAMES]:
        one: dict[str, Any] = {"name": link.name}
        for key in ("operstate", "carrier", "mtu", "type", "address", "flags", "speed", "tx_queue_len"):
            with suppress(OSError, UnicodeDecodeError):
                one[key] = (link / key).read_text(encoding="utf-8").strip()
        with suppress(OSError):
            one["statistics"] = {
                counter.name: int(counter.read_text(encoding="utf-8"))
                for counter in sorted((link / "statistics").iterdir())
            }
        found.append(one)
    return found


def _agent(data_dir: Path) -> dict[str, Any]:
    from edge_agent.app import AGENT_VERSION
    from edge_agent.liveness import read_live

    live, held = read_live(data_dir), read_hold(data_dir)
    return {
        "version_of_this_program": AGENT_VERSION,
        "running": is_running(data_dir / "agent.db"),
        "live": None if live is None else msgspec.to_builtins(live),
        "hold": None if held is None else msgspec.to_builtins(held),
    }


async def _journal(data_dir: Path) -> dict[str, Any]:
    async with Store.open(data_dir / "agent.db", read_only=True) as store:
        entries = await store.jobs(MOST_JOBS)
        statuses = await store.next_statuses(MOST_JOBS)
        return {
            "store_id": store.store_id,
            "pending_statuses": await store.pending_statuses(),
            "oldest_statuses": [one.to_obj() for one in statuses],
            "jobs": [
                {
                    "job_id": entry.job_id,
                    "attempt": entry.attempt,
                    "revision": entry.revision,
                    "state": entry.state,
                    "tries": entry.tries,
                    "touched": entry.touched,
                    "asked": entry.asked,
                    "told": None if entry.told is None else entry.told.to_obj(),
                    "created_at": entry.created_at,
                    "updated_at": entry.updated_at,
                    "targets": []
                    if entry.command is None
                    else [
                        {"component": one.component, "version": one.version, "sha256": one.sha256}
                        for one in entry.command.targets
                    ],
                }
                for entry in entries
            ],
        }


def _listing(data_dir: Path) -> dict[str, Any]:
    use = shutil.disk_usage(data_dir)
    files = []
    for folder, names, leaves in os.walk(data_dir):
        names.sort()
        for leaf in sorted(leaves):
            path = Path(folder) / leaf
            with suppress(OSError):
                about = path.lstat()
                files.append(
                    {
                        "name": str(path.relative_to(data_dir)),
                        "bytes": about.st_size,
                        "mode": oct(about.st_mode),
                        "owner": about.st_uid,
                        "changed": datetime.fromtimestamp(about.st_mtime, UTC),
                    }
                )
        if len(files) >= MOST_NAMES:
            break
    return {"disk": use._asdict(), "files": files[:MOST_NAMES]}


def _vehicle(config_file: Path, table: dict[str, Any]) -> dict[str, Any]:
    vehicle = table.get("vehicle")
    vehicle = vehicle if isinstance(vehicle, dict) else {}
    found: dict[str, Any] = {"source": vehicle.get("source")}
    if isinstance(vehicle.get("path"), str):
        path = config_file.absolute().parent / vehicle["path"]
        found["path"] = str(path)
        try:
            found["content"] = _read(path, 4096).decode("utf-8", "replace")
        except OSError as error:
            found["why"] = error.strerror
    return found
