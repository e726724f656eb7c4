"""Tells systemd how the agent is: ready, stopping, what it does, and that it is not stuck.

The protocol is that of sd_notify(3): lines `NAME=value` in one datagram to the socket in $NOTIFY_SOCKET,
whose name may be an abstract one (it begins with @). Without a service manager all of it does nothing;
nothing of it ever stops or delays the agent.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from shared.logs import get_log

log = get_log("edge_agent.notify")

MOST_STATUS = 200
LAST_WORD_S = 0.5


@dataclass(frozen=True, kw_only=True)
class Manager:
    """The service manager as the environment tells it.

    `watchdog_s`: seconds after which it ends a process that has not said `WATCHDOG=1`; None: never.
    """

    address: str | None = None
    watchdog_s: float | None = None

    @classmethod
    def of(cls, environment: Mapping[str, str], *, pid: int) -> Manager:
        """Read $NOTIFY_SOCKET, $WATCHDOG_USEC and $WATCHDOG_PID; what is not well-formed is not there."""
        address = environment.get("NOTIFY_SOCKET", "")
        watched = environment.get("WATCHDOG_PID", str(pid)) == str(pid)
        usec = environment.get("WATCHDOG_USEC", "")
        return cls(
            address=address if address[:1] in ("/", "@") else None,
            watchdog_s=int(usec) / 1e6
            if watched and usec.isascii() and usec.isdigit() and int(usec)
            else None,
        )


class Notifier:
    """Sends one datagram a call and never raises. What is said again and again never waits for a manager that
    does not read; what is said once waits for LAST_WORD_S at the most.
    """

    def __init__(self, manager: Manager) -> None:
        self._manager = manager
        self._status = ""
        self._warned = False

    @property
    def watchdog_s(self) -> float | None:
        """See Manager."""
        return self._manager.watchdog_s if self._manager.address is not None else None

    def ready(self) -> None:
        """The agent holds its lock and works."""
        self._send("READY=1", within_s=LAST_WORD_S)

    def stopping(self, most_s: float) -> None:
        """The agent ends, in so many seconds at the most."""
        self._send(f"STOPPING=1\nEXTEND_TIMEOUT_USEC={int(most_s * 1e6)}", within_s=LAST_WORD_S)

    def alive(self) -> None:
        """The loops make progress."""
        self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`; sent when it changed."""
        line = " ".join(text.split())[:MOST_STATUS]
        if line != self._status:
            self._status = line
            self._send(f"STATUS={line}")

    def _send(self, message: str, *, within_s: float = 0.0) -> None:
        address = self._manager.address
        if address is None:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.settimeout(within_s)
                sender.sendto(message.encode(), "\0" + address[1:] if address[0] == "@" else address)
        except OSError as error:
            if not self._warned:
                self._warned = True
                log.warning("notify.failed", why=str(error))


def of_environment() -> Notifier:
    """The notifier of this process. Takes the variables away, so that no child speaks in its name."""
    manager = Manager.of(os.environ, pid=os.getpid())
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
        with suppress(KeyError):
            del os.environ[name]
    return Notifier(manager)


class Pulses:
    """When each loop of the agent last showed that it goes on; a loop without a pulse is stuck.

    `beat(name, most_s)` registers a loop and returns what it is to call: at least every `most_s`
    seconds, its longest rest and longest step together.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._last: dict[str, float] = {}
        self._most: dict[str, float] = {}

    def beat(self, name: str, most_s: float) -> Callable[[], None]:
        """Register a loop; its time begins now."""
        self._most[name] = most_s
        self._last[name] = self._now()

        def pulse() -> None:
            self._last[name] = self._now()

        return pulse

    def stuck(self) -> list[str]:
        """The loops that have been silent for too long."""
        now = self._now()
        return [name for name, last in self._last.items() if now - last > self._most[name]]
