"""A boot loader with two slots, as a program: its state is a JSON file, its slots are files beside it.

As nvbootctrl and RAUC do, it takes a slot that was just switched to for untried: it boots it once, and
unless that boot is confirmed the next one falls back to the other slot. It loads whatever it is told to,
torn or not, and counts what it loaded torn. `reboot` is also what a power cut does.

    fake_boot_loader.py STATE make | current | version | switch SLOT | confirm | unbootable SLOT | reboot
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

OTHER = {"a": "b", "b": "a"}


def loaded(state: dict[str, Any], slot: str) -> str | None:
    """The version of the slot's whole image, None when it is torn."""
    import hashlib

    with Path(state["slots"][slot]).open("rb") as file:
        head = file.readline(200).split()
        body = file.read(int(head[2]) if len(head) == 4 and head[0] == b"image" and head[2].isdigit() else 0)
    if len(head) == 4 and hashlib.sha256(body).hexdigest().encode() == head[3]:
        return head[1].decode()
    return None


def boot(state: dict[str, Any]) -> None:
    state["boots"] += 1
    slot = state["next"]
    if not state["good"][slot]:
        if not state["tries"][slot]:
            slot = OTHER[slot]
        else:
            state["tries"][slot] -= 1
    state["running"] = state["next"] = slot
    version = loaded(state, slot)
    if version is None:
        state["torn"] += 1
    state["version"] = version
    if version is None or version in state["crashing"]:
        if state["boots"] > state["most"]:
            sys.exit("it boots for ever")
        state["most"] = state["boots"] + 3
        boot(state)


def main() -> None:
    name, verb, *words = sys.argv[1:]
    path = Path(name)
    if verb == "make":
        state: dict[str, Any] = {
            "running": "a",
            "next": "a",
            "good": {"a": True, "b": False},
            "tries": {"a": 0, "b": 0},
            "slots": {slot: str(path.parent / f"slot_{slot}") for slot in "ab"},
            "crashing": [],
            "boots": 0,
            "most": 1000,
            "torn": 0,
            "calls": [],
        }
        boot(state)
    else:
        state = json.loads(path.read_text())
        state["calls"].append(" ".join([verb, *words]))
    if verb == "current":
        print(state["running"])
    elif verb == "version":
        print(state["version"])
    elif verb == "switch":
        state["next"], state["good"][words[0]], state["tries"][words[0]] = words[0], False, 1
    elif verb == "confirm":
        state["good"][state["running"]] = True
    elif verb == "unbootable":
        state["good"][words[0]], state["tries"][words[0]] = False, 0
    elif verb == "reboot":
        boot(state)
    elif verb != "make":
        sys.exit(f"unknown: {verb}")
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(json.dumps(state))
    fresh.replace(path)
    path.with_name(path.name + ".boot_id").write_text(str(state["boots"]))


main()
