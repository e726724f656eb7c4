"""Configured commands: only a clean end within the time and the bound counts; nothing is left behind."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from firmware_flashers.base import FlashError
from firmware_flashers.commands import MOST_OUTPUT_BYTES, CommandFailed, run

PYTHON = (sys.executable, "-I", "-S", "-c")


def python(text: str) -> tuple[str, ...]:
    return (*PYTHON, text)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


async def test_what_a_command_says_comes_back() -> None:
    assert await run(python("import sys; print('A'); print('noise', file=sys.stderr)"), timeout_s=30) == "A\n"


async def test_there_is_no_shell() -> None:
    said = await run((*python("import sys; print(sys.argv[1])"), "$HOME; echo `id` > x"), timeout_s=30)
    assert said == "$HOME; echo `id` > x\n"


async def test_there_is_no_input() -> None:
    assert await run(python("import sys; print(repr(sys.stdin.read()))"), timeout_s=30) == "''\n"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("/does/not/exist",), "can't be started"),
        (("/",), "can't be started"),
        (("a\0b",), "can't be started"),
        (python("raise SystemExit(3)"), "exit code 3$"),
        (
            python("import sys; print('no \\x1b[2J such slot', file=sys.stderr); raise SystemExit(1)"),
            r"1: no  ?\[2J such",
        ),
        (python("print('only here'); raise SystemExit(1)"), "exit code 1: only here"),
        (python("import os; os.kill(os.getpid(), 9)"), "exit code -9"),
        (python(f"print('x' * {MOST_OUTPUT_BYTES})"), f"more than {MOST_OUTPUT_BYTES} bytes"),
        (python(f"import sys; sys.stderr.write('x' * {MOST_OUTPUT_BYTES + 1})"), "more than"),
        (python("while True: print('endless' * 1000)"), "more than"),
    ],
)
async def test_every_other_end_is_named(argv: tuple[str, ...], said: str) -> None:
    with pytest.raises(CommandFailed, match=said) as caught:
        await run(argv, timeout_s=60)
    assert isinstance(caught.value, FlashError)
    assert caught.value.code == "command_failed"


async def test_time_is_bounded() -> None:
    with pytest.raises(CommandFailed, match=r"not finished after 0\.2 s"):
        await run(python("import time; time.sleep(600)"), timeout_s=0.2)


async def test_output_held_open_by_what_was_left_behind_is_bounded_too(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    leaves = f"""
import os, time
if os.fork() == 0:
    open({str(pids)!r}, "w").write(str(os.getpid()))
    time.sleep(600)
"""
    with pytest.raises(CommandFailed, match="not finished"):
        await run(python(leaves), timeout_s=1.0)
    await until(lambda: not any(map(_lives, _pids(pids))))


async def test_a_cancelled_caller_leaves_nothing_running(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    parent = f"""
import os, time
first = os.getpid()
if os.fork() == 0:
    open({str(pids)!r}, "w").write(f"{{first}} {{os.getpid()}} ")
time.sleep(600)
"""
    task = asyncio.create_task(run(python(parent), timeout_s=600))
    await until(lambda: len(_pids(pids)) == 2)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert task.cancelled()
    await until(lambda: not any(map(_lives, _pids(pids))))


def _pids(path: Path) -> list[int]:
    """The numbers in the file, once it is written to its end."""
    return [int(word) for word in path.read_text().split()] if path.exists() else []


def _lives(pid: int) -> bool:
    """proc(5): the state follows the last parenthesis; Z has ended and waits for its parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_group_is_the_commands_own() -> None:
    """Else a kill of it would end the agent."""
    said = asyncio.run(run(python("import os; print(os.getpgid(0) == os.getpid())"), timeout_s=30))
    assert said == "True\n"
    assert os.getpgid(0) != 0
