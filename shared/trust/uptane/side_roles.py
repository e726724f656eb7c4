"""Roles that TUF has no name for, in the director's root beside the four: `time` and `offline`.

They lie in root's `side_roles` (an unrecognised field to other TUF programs, signed like the rest),
with their keys among root's keys: so they are provisioned, thresholded and rotated like every role.
`time` signs time tokens, `offline` the selections in USB bundles.
"""

from __future__ import annotations

from tuf.api.metadata import Role, Root

from shared.trust.uptane.errors import BelowThreshold, Unreadable

TIME = "time"
OFFLINE = "offline"
SIDE_ROLES = frozenset({TIME, OFFLINE})
_FIELD = "side_roles"


def side_role(root: Root, name: str, where: str) -> Role:
    """The keys of a side role. Raises BelowThreshold when the root has none: then nobody may sign it."""
    roles = root.unrecognized_fields.get(_FIELD, {})
    said = roles.get(name) if isinstance(roles, dict) else None
    if said is None:
        raise BelowThreshold(where, f"the director's root has no role {name!r}")
    try:
        role = Role(list(said["keyids"]), said["threshold"])
    except (KeyError, TypeError, ValueError) as error:
        raise Unreadable(where, f"role {name!r} in the root: {error}") from error
    return role


def set_side_role(root: Root, name: str, role: Role) -> None:
    """Write a side role into a root that is being made; its keys must be among the root's keys."""
    root.unrecognized_fields.setdefault(_FIELD, {})[name] = role.to_dict()


def side_keyids(root: Root, name: str) -> frozenset[str]:
    """Its key ids, none when the root has no such role."""
    roles = root.unrecognized_fields.get(_FIELD, {})
    said = roles.get(name, {}) if isinstance(roles, dict) else {}
    keyids = said.get("keyids", []) if isinstance(said, dict) else []
    return frozenset(one for one in keyids if isinstance(one, str))
