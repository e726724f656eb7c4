"""What `quarry release show` says of a repository or a signing bundle."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from tuf.api.metadata import Metadata, Targets

from cli.office import print_json
from shared.trust.uptane.repository import TOP_LEVEL, Repository, progress
from shared.trust.uptane.repository_edit import targets_roles


def print_repository(repository: Repository, *, as_json: bool) -> None:
    """Tables for people, or one JSON document."""
    facts = describe(repository)
    if as_json:
        print_json(facts)
        return
    console = Console()
    console.print(_table("published", ("role", "version", "expires"), facts["published"]))
    console.print(
        _table(
            "drafts", ("role", "version", "expires", "signed", "needed", "adds", "removes"), facts["drafts"]
        )
    )
    console.print(_table("targets", ("path", "role", "length"), facts["targets"]))


def describe(repository: Repository) -> dict[str, list[dict[str, Any]]]:
    """Published roles, drafts with their signatures and changes, and published targets."""
    roles = list(TOP_LEVEL) if repository.kind == "director" else [*TOP_LEVEL, *targets_roles(repository)[1:]]
    found = {role: repository.newest(role) for role in roles}
    return {
        "published": [_role(role, metadata) for role, metadata in found.items() if metadata is not None],
        "drafts": [_draft(repository, role) for role in repository.drafts],
        "targets": [
            {"path": path, "role": role, "length": target.length, "sha256": target.hashes.get("sha256")}
            for role, metadata in found.items()
            if metadata is not None and isinstance(metadata.signed, Targets)
            for path, target in metadata.signed.targets.items()
        ],
    }


def _role(role: str, metadata: Metadata[Any]) -> dict[str, Any]:
    return {"role": role, "version": metadata.signed.version, "expires": metadata.signed.expires.isoformat()}


def _draft(repository: Repository, role: str) -> dict[str, Any]:
    draft, before = repository.draft(role), repository.newest(role)
    assert draft is not None
    new = set(draft.signed.targets) if isinstance(draft.signed, Targets) else set()
    old = set(before.signed.targets) if before is not None and isinstance(before.signed, Targets) else set()
    states = [one for one in progress(repository) if one.role == role]
    return {
        **_role(role, draft),
        "signed": sorted({keyid[:12] for one in states for keyid in one.signed}),
        "needed": sum(one.missing for one in states),
        "adds": sorted(new - old),
        "removes": sorted(old - new),
    }


def _table(title: str, columns: tuple[str, ...], rows: list[dict[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        cells = [row[column] for column in columns]
        table.add_row(*("\n".join(cell) if isinstance(cell, list) else str(cell) for cell in cells))
    return table
