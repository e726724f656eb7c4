"""PURE but for reading installed metadata: which locked packages the agent needs on another machine.

The requirements are walked from `quarry-ota[edge]` with the markers of the machine that the package is for,
through the metadata of the packages that are installed here, which are the locked ones. No resolver: what
is taken is exactly what the lock pins, with its hashes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from shared.errors import OtaError


class NotLocked(OtaError):
    """The lock does not have what the agent needs on that machine."""

    code = "not_locked"
    advice = "Lock it for that Python and machine too (requirements.lock), then package again."


def closure(root: str, environment: Mapping[str, str]) -> set[str]:
    """Canonical names of everything that `root` (a requirement, with extras) needs, `root` left out.

    `environment` are marker variables (PEP 508) of the machine. Raises NotLocked.
    """
    first = Requirement(root)
    found: set[str] = set()
    seen: set[tuple[str, str]] = set()
    left = [(canonicalize_name(first.name), extra) for extra in ("", *sorted(first.extras))]
    while left:
        name, extra = left.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        found.add(name)
        try:
            lines = requires(name) or []
        except PackageNotFoundError as error:
            raise NotLocked(f"{name} is needed on that machine and not among the locked packages") from error
        for line in lines:
            need = Requirement(line)
            if need.marker is not None and not need.marker.evaluate({**environment, "extra": extra}):
                continue
            left += [(canonicalize_name(need.name), one) for one in ("", *sorted(need.extras))]
    found.discard(canonicalize_name(first.name))
    return found


def pinned(lock: Path, names: set[str]) -> str:
    """The lines of the lock for these packages, with all hashes. Raises NotLocked."""
    blocks: dict[str, str] = {}
    current = ""
    for line in lock.read_text(encoding="utf-8").splitlines():
        begins = re.match(r"([A-Za-z0-9._-]+)==", line)
        if begins:
            current = canonicalize_name(begins[1])
            # A marker of the lock is for machines that are not asked about here.
            blocks[current] = re.sub(r" ;.*?(?= \\|$)", "", line) + "\n"
        elif current and line.lstrip().startswith("--hash"):
            blocks[current] += line + "\n"
    missing = sorted(names - set(blocks))
    if missing:
        raise NotLocked(f"the lock does not pin {', '.join(missing)}")
    return "".join(blocks[name] for name in sorted(names))
