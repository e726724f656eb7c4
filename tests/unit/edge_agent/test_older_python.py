"""The truck's rooms on an older Python: the syntax is that of 3.10; what 3.10 lacks is a known, short list.

JetPack 6 has Python 3.10. What stands in the way is kept here, so that nothing joins it unnoticed: each of
these has a stand-in of a few lines or a backport (edge_agent/packaging/README.md).
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[3]
ROOMS = ("shared", "firmware_flashers", "edge_agent")
FILES = [
    str(path.relative_to(CHECKOUT)) for room in ROOMS for path in sorted((CHECKOUT / room).rglob("*.py"))
]

IN_THE_WAY = {
    "BaseExceptionGroup",
    "asyncio.TaskGroup",
    "asyncio.timeout",
    "datetime.UTC",
    "enum.StrEnum",
    "hashlib.file_digest",
    "logging.getLevelNamesMapping",
    "sqlite3.SQLITE_CORRUPT",
    "sqlite3.SQLITE_NOTADB",
    "sqlite_errorcode",
    "tomllib",
    "typing.Self",
    "typing.assert_never",
}
NEWER_THAN_3_10 = IN_THE_WAY | {
    *("ExceptionGroup", "except*", "add_note", "asyncio.Barrier", "asyncio.Runner", "asyncio.timeout_at"),
    *("asyncio.eager_task_factory", "contextlib.chdir", "datetime.datetime.UTC", "enum.verify"),
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
            case ast.TryStar():
                yield "except*"


@pytest.mark.parametrize("file", FILES)
def test_the_syntax_is_that_of_3_10(file: str) -> None:
    ast.parse((CHECKOUT / file).read_text(encoding="utf-8"), file, feature_version=(3, 10))


def test_what_3_10_lacks_is_the_known_list() -> None:
    used: dict[str, list[str]] = {}
    for file in FILES:
        tree = ast.parse((CHECKOUT / file).read_text(encoding="utf-8"), file)
        for name in set(names(tree)) & NEWER_THAN_3_10:
            used.setdefault(name, []).append(file)
    assert {name: files for name, files in used.items() if name not in IN_THE_WAY} == {}
    assert sorted(used) == sorted(IN_THE_WAY), "one is gone: take it off the list"
