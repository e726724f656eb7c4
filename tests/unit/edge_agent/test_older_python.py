"""The truck's rooms on Python 3.10 (JetPack 6): its syntax, and nothing of a newer standard library.

What 3.11 brought comes from shared/since_310.py. `quarry check` asks mypy the same, with types; what runs on
it is in tests/integration/pythons.
"""

from __future__ import annotations

import ast
import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared import since_310
from shared.states import Step

CHECKOUT = Path(__file__).resolve().parents[3]
ROOMS = ("shared", "firmware_flashers", "edge_agent")
FILES = [
    str(path.relative_to(CHECKOUT)) for room in ROOMS for path in sorted((CHECKOUT / room).rglob("*.py"))
]

STAND_INS = "shared/since_310.py"
NEWER_THAN_3_10 = {
    *("BaseExceptionGroup", "asyncio.TaskGroup", "asyncio.timeout", "datetime.UTC", "enum.StrEnum"),
    *("hashlib.file_digest", "logging.getLevelNamesMapping", "sqlite3.SQLITE_CORRUPT", "tomllib"),
    *("sqlite3.SQLITE_NOTADB", "typing.Self", "typing.assert_never", "enum.ReprEnum", "enum.EnumType"),
    *("enum.member", "enum.nonmember", "enum.property", "datetime.datetime.UTC"),
    *("uncancel", "cancelling"),
    *("os.process_cpu_count", "pathlib.UnsupportedOperation", "sqlite_errorname", "setconfig", "deserialize"),
    *("ExceptionGroup", "except*", "add_note", "asyncio.Barrier", "asyncio.Runner", "asyncio.timeout_at"),
    *("asyncio.eager_task_factory", "contextlib.chdir", "enum.verify"),
    *("itertools.batched", "math.cbrt", "sys.exception", "typing.LiteralString", "typing.Never"),
    *("typing.NotRequired", "typing.Required", "typing.TypeVarTuple", "typing.Unpack", "typing.override"),
    *("typing.assert_type", "typing.dataclass_transform", "warnings.deprecated", "wsgiref.types"),
    *("copy.replace", "inspect.markcoroutinefunction", "operator.call", "sqlite3.Blob", "queue.ShutDown"),
}
"""Names of the standard library that came with 3.11 to 3.13, as far as anybody here might use them."""


def names(tree: ast.AST) -> Iterator[str]:
    """What a module takes from elsewhere, by its full name where it says one."""
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(module=module, names=taken):
                yield from (f"{module}.{one.name}" for one in taken)
                yield str(module)
            case ast.Import(names=taken):
                yield from (one.name for one in taken)
            case ast.Attribute(value=ast.Name(id=left), attr=right):
                yield f"{left}.{right}"
                yield right
            case ast.Attribute(attr=right):
                yield right
            case ast.Name(id=name):
                yield name
            case ast.Call(args=[_, ast.Constant(value=str(name)), *_], func=ast.Name(id="getattr")):
                yield name
            case _ if type(node).__name__ == "TryStar":  # which 3.10 has no name for
                yield "except*"


@pytest.mark.parametrize("file", FILES)
def test_the_syntax_is_that_of_3_10(file: str) -> None:
    ast.parse((CHECKOUT / file).read_text(encoding="utf-8"), file, feature_version=(3, 10))


@pytest.mark.parametrize("file", [file for file in FILES if file != STAND_INS])
def test_nothing_newer_than_3_10_is_used(file: str) -> None:
    tree = ast.parse((CHECKOUT / file).read_text(encoding="utf-8"), file)
    lent = {
        one.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "shared.since_310"
        for one in node.names
    }
    assert set(names(tree)) & NEWER_THAN_3_10 - lent == set()


def test_the_stand_ins_are_all_in_use() -> None:
    taken = {
        one.name
        for file in FILES
        for node in ast.walk(ast.parse((CHECKOUT / file).read_text(encoding="utf-8"), file))
        if isinstance(node, ast.ImportFrom) and node.module == "shared.since_310"
        for one in node.names
    }
    assert taken == set(since_310.__all__)


def test_a_string_enumeration_prints_its_value() -> None:
    # As the standard library's own does since 3.11; format() of a mixed-in enumeration differed before.
    assert (f"{Step.WAITING}", str(Step.WAITING), f"{Step.WAITING:>12}") == (
        "waiting",
        "waiting",
        "     waiting",
    )


async def test_a_timeout_within_a_group_ends_as_timeout_error_and_leaves_the_task_whole() -> None:
    async def slow() -> None:
        with pytest.raises(TimeoutError):
            async with since_310.timeout(0.01):
                await asyncio.sleep(60)
        await asyncio.sleep(0)

    async with since_310.TaskGroup() as tasks:
        first = tasks.create_task(slow())
    assert first.done()
    assert not first.cancelled()


async def test_a_cancelled_group_cancels_its_tasks_and_says_so() -> None:
    ended: list[str] = []

    async def rest(name: str) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(name)

    async def group() -> None:
        async with since_310.TaskGroup() as tasks:
            tasks.create_task(rest("a"))
            tasks.create_task(rest("b"))

    task = asyncio.create_task(group())
    while len(asyncio.all_tasks()) < 4:
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
    assert sorted(ended) == ["a", "b"]


async def test_an_error_in_a_group_comes_as_a_group_that_can_be_split() -> None:
    async def wrong() -> None:
        raise OSError("no such bus")

    async def group() -> None:
        async with since_310.TaskGroup() as tasks:
            tasks.create_task(wrong())
            tasks.create_task(asyncio.sleep(60))

    with pytest.raises(since_310.BaseExceptionGroup) as caught:
        await group()
    named, other = caught.value.split(OSError)
    assert named is not None
    assert other is None
