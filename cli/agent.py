"""`quarry agent`: the truck's gateway."""

from __future__ import annotations

from edge_agent.cli import app

__all__ = ["app"]
