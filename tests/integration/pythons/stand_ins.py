"""A pytest plugin (`-p stand_ins`) for the truck's tests on another Python than this checkout's.

First every module of the truck's rooms is imported, on the standard library as it is. Only then the names
that the tests and the simulators take from newer standard libraries get their backports.
"""

from __future__ import annotations

import asyncio
import builtins
import datetime
import enum
import hashlib
import importlib
import pkgutil
import sys
import typing
from types import ModuleType
from typing import Any

import edge_agent
import firmware_flashers
import shared

for room in (shared, firmware_flashers, edge_agent):
    for module in pkgutil.walk_packages(room.__path__, f"{room.__name__}."):
        importlib.import_module(module.name)


def lend(to: ModuleType, names: dict[str, Any]) -> None:
    for name, value in names.items():
        if not hasattr(to, name):
            setattr(to, name, value)


if sys.version_info < (3, 11):
    import exceptiongroup
    import taskgroup
    import tomli
    import typing_extensions

    from shared import since_310

    lend(datetime, {"UTC": since_310.UTC})
    lend(enum, {"StrEnum": since_310.StrEnum})
    lend(hashlib, {"file_digest": since_310.file_digest})
    lend(asyncio, {name: getattr(taskgroup, name) for name in ("timeout", "TaskGroup", "Runner")})
    lend(builtins, {name: getattr(exceptiongroup, name) for name in ("ExceptionGroup", "BaseExceptionGroup")})
    lend(typing, {name: getattr(typing_extensions, name) for name in ("Self", "assert_never", "Never")})
    sys.modules["tomllib"] = tomli
