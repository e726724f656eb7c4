"""sd_notify(3) on a real socket, and a watchdog that is fed only while the loops go on."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent.app import feed_watchdog
from edge_agent.gateway import notify
from edge_agent.gateway.notify import Manager, Notifier, Pulses


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    name = str(tmp_path / "notify") if request.param == "path" else f"@quarry-{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind("\0" + name[1:] if name[0] == "@" else name)
        receiver.setblocking(False)
        yield name, receiver


def test_each_word_is_one_datagram(manager: tuple[str, socket.socket]) -> None:
    name, receiver = manager
    notifier = Notifier(Manager(address=name))
    notifier.ready()
    notifier.status("connected;  an ECU\nis being flashed")
    notifier.status("connected; an ECU is being flashed")
    notifier.alive()
    notifier.stopping(840.0)
    assert [receiver.recv(4096).decode() for _ in range(4)] == [
        "READY=1",
        "STATUS=connected; an ECU is being flashed",
        "WATCHDOG=1",
        "STOPPING=1\nEXTEND_TIMEOUT_USEC=840000000",
    ]
    with pytest.raises(BlockingIOError):
        receiver.recv(4096)


def test_without_a_manager_or_with_one_that_is_gone_nothing_happens(tmp_path: Path) -> None:
    for notifier in (Notifier(Manager()), Notifier(Manager(address=str(tmp_path / "gone"), watchdog_s=1))):
        notifier.ready()
        notifier.alive()
        notifier.status("x")
        notifier.stopping(1)


def test_a_manager_that_does_not_read_never_blocks(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        notifier = Notifier(Manager(address=str(tmp_path / "notify")))
        for _ in range(2000):
            notifier.alive()


@pytest.mark.parametrize(
    ("environment", "address", "watchdog_s"),
    [
        ({}, None, None),
        ({"NOTIFY_SOCKET": ""}, None, None),
        ({"NOTIFY_SOCKET": "relative"}, None, None),
        ({"NOTIFY_SOCKET": "/run/n", "WATCHDOG_USEC": "300000000"}, "/run/n", 300.0),
        ({"NOTIFY_SOCKET": "@n", "WATCHDOG_USEC": "1500000", "WATCHDOG_PID": "7"}, "@n", 1.5),
        ({"NOTIFY_SOCKET": "@n", "WATCHDOG_USEC": "1500000", "WATCHDOG_PID": "8"}, "@n", None),
        ({"NOTIFY_SOCKET": "@n", "WATCHDOG_USEC": "0"}, "@n", None),
        ({"NOTIFY_SOCKET": "@n", "WATCHDOG_USEC": "-5"}, "@n", None),
        ({"NOTIFY_SOCKET": "@n", "WATCHDOG_USEC": "²"}, "@n", None),
    ],
)
def test_what_the_environment_says(
    environment: dict[str, str], address: str | None, watchdog_s: float | None
) -> None:
    assert Manager.of(environment, pid=7) == Manager(address=address, watchdog_s=watchdog_s)


def test_no_child_inherits_the_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/n")
    monkeypatch.setenv("WATCHDOG_USEC", "2000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert notify.of_environment().watchdog_s == 2.0
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & set(os.environ)


def test_a_silent_loop_is_stuck_and_only_that_one() -> None:
    now = [0.0]
    pulses = Pulses(lambda: now[0])
    link, updater = pulses.beat("link", 10.0), pulses.beat("updater", 5.0)
    assert pulses.stuck() == []
    now[0] = 5.0
    assert pulses.stuck() == []
    now[0] = 6.0
    assert pulses.stuck() == ["updater"]
    updater()
    assert pulses.stuck() == []
    now[0] = 10.5
    link()
    updater()
    now[0] = 20.0
    assert pulses.stuck() == ["updater"]


async def test_the_watchdog_is_fed_until_a_loop_is_stuck(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.setblocking(False)
        loop = asyncio.get_running_loop()
        now = [0.0]
        pulses = Pulses(lambda: now[0])
        pulse = pulses.beat("updater", 5.0)
        notifier = Notifier(Manager(address=str(tmp_path / "notify"), watchdog_s=0.02))
        feeding = asyncio.create_task(feed_watchdog(notifier, pulses))
        async with asyncio.timeout(30):
            for _ in range(3):
                assert await loop.sock_recv(receiver, 64) == b"WATCHDOG=1"
            now[0] = 6.0
            # What was sent before is read; then nothing comes for many feeding times (5 ms each).
            while True:
                try:
                    receiver.recv(64)
                except BlockingIOError:
                    break
            await asyncio.sleep(0.1)
            with pytest.raises(BlockingIOError):
                receiver.recv(64)
            pulse()
            assert await loop.sock_recv(receiver, 64) == b"WATCHDOG=1"
        feeding.cancel()


async def test_without_a_watchdog_nothing_is_fed() -> None:
    await feed_watchdog(Notifier(Manager(address="/nowhere")), Pulses(lambda: 0.0))
