"""The office's data folder: private, used by one office at a time; and the ports it listens on."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from control_plane.secret_files import create_secret
from shared.errors import ConfigError, OtaError


class FolderBusy(OtaError):
    """Another office works in this data folder."""

    code = "folder_busy"
    advice = "Stop that office first, or give this one another --data folder."


@contextmanager
def own_folder(folder: Path) -> Iterator[None]:
    """Make the folder (0700) and hold it until the end; the kernel lets go of it with the process.

    Raises FolderBusy while another office holds it, or ConfigError when it can't be used.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700)
        handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(f"the data folder {folder} can't be used: {error.strerror}") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(handle, 20, 0).decode(errors="replace").strip()
            raise FolderBusy(f"another office (process {holder}) works in {folder}") from error
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)


@contextmanager
def endpoints_told(path: Path, *, url: str, mqtt_host: str, mqtt_port: int) -> Iterator[None]:
    """While inside, `path` (0600) says where the office answers; written in one step."""
    found = {"url": url, "mqtt_host": mqtt_host, "mqtt_port": mqtt_port, "pid": os.getpid()}
    create_secret(path, msgspec.json.encode(found), replace=True)
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


def listen(key: str, host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes any that is free. Raises ConfigError that names the key."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        # Else a restart has to wait for the old connections' TIME_WAIT.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(512)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"{key} {port} on {host} can't be had: {error.strerror}",
            advice="Stop what uses it, or choose another port; 0 takes any that is free.",
        ) from error
    return listener


def check_free(key: str, host: str, port: int) -> None:
    """Raise ConfigError unless a server of ours could listen there."""
    listen(key, host, port).close()
