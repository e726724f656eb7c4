"""How a gateway's two slots are reached and switched: the words of its boot loader, as configuration.

NVIDIA Jetson with root file system redundancy (Jetson Linux Developer Guide, "Update and Redundancy"):

    slots = [
        {name = "0", path = "/dev/disk/by-partlabel/APP"},
        {name = "1", path = "/dev/disk/by-partlabel/APP_b"},
    ]
    current_slot_command = ["/usr/sbin/nvbootctrl", "-t", "rootfs", "get-current-slot"]
    switch_command = ["/usr/sbin/nvbootctrl", "-t", "rootfs", "set-active-boot-slot", "{slot}"]
    confirm_command = ["/usr/sbin/nvbootctrl", "mark-boot-successful"]    # Jetson Linux up to 34
    confirm_command = ["/usr/sbin/nvbootctrl", "verify"]                  # Jetson Linux from 35.1 on
    reboot_command = ["/usr/bin/systemctl", "reboot"]

RAUC (rauc(1), `rauc status`), whose commands take slot names and whose answer is a boot name:

    slots = [
        {name = "A", word = "rootfs.0", path = "/dev/mmcblk0p2"},
        {name = "B", word = "rootfs.1", path = "/dev/mmcblk0p3"},
    ]
    current_slot_command = ["/usr/bin/rauc", "status", "--output-format=shell"]
    current_slot_pattern = "^RAUC_SYSTEM_BOOTED_BOOTNAME='([^']*)'$"
    switch_command = ["/usr/bin/rauc", "status", "mark-active", "{slot}"]
    confirm_command = ["/usr/bin/rauc", "status", "mark-good", "booted"]
    unbootable_command = ["/usr/bin/rauc", "status", "mark-bad", "{slot}"]
    reboot_command = ["/usr/bin/systemctl", "reboot"]
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from firmware_flashers.base import TrustClass
from shared.errors import ConfigError

SLOT = "{slot}"
MOST_ARGUMENTS = 32
_WORD = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class Slot:
    """One slot: `name` as the current-slot command answers it, `word` as the other commands take it (else
    the name), `path` a block device or a file.
    """

    name: str
    path: Path
    word: str | None = None


@dataclass(frozen=True, kw_only=True)
class JetsonSettings:
    """The gateway as a component. Commands are argument lists, run without a shell; `{slot}` in them becomes
    the slot's word.

    `current_slot_pattern` (multi-line) finds the running slot's name, its one group, in the answer.
    The running version comes from the first line of `version_file` or the answer of `version_command`,
    exactly one of them. `note_file` lies outside both slots. Without `confirm_command` a boot is permanent;
    without `reboot_command` somebody else reboots after `activate`. Times in seconds.
    """

    component: str
    kind: str
    hardware: str
    slots: tuple[Slot, Slot]
    note_file: Path
    current_slot_command: tuple[str, ...]
    switch_command: tuple[str, ...]
    current_slot_pattern: str = r"\A\s*(\S+)\s*\Z"
    version_file: Path | None = None
    version_command: tuple[str, ...] | None = None
    confirm_command: tuple[str, ...] | None = None
    unbootable_command: tuple[str, ...] | None = None
    reboot_command: tuple[str, ...] | None = None
    boot_id_file: Path = Path("/proc/sys/kernel/random/boot_id")
    trust_class: TrustClass = TrustClass.GATEWAY_ONLY
    command_s: float = 30.0
    reboot_s: float = 300.0

    def __post_init__(self) -> None:
        """Raises ConfigError that names the key."""
        for key in ("component", "kind", "hardware"):
            if not _WORD.fullmatch(getattr(self, key)):
                raise ConfigError(
                    f"{key} {getattr(self, key)[:80]!r} is not 1 to 64 of letters, digits, . _ -"
                )
        self._check_slots()
        for key in ("current_slot_command", "version_command", "confirm_command", "reboot_command"):
            self._check_command(key, with_slot=False)
        for key in ("switch_command", "unbootable_command"):
            self._check_command(key, with_slot=True)
        try:
            groups = re.compile(self.current_slot_pattern).groups
        except re.error as error:
            raise ConfigError(f"current_slot_pattern {self.current_slot_pattern!r}: {error}") from error
        if groups != 1:
            raise ConfigError(f"current_slot_pattern has {groups} groups, the slot's name is its one group")
        if (self.version_file is None) == (self.version_command is None):
            raise ConfigError("version_file and version_command: give exactly one of them")
        for key in ("command_s", "reboot_s"):
            if not 0 < getattr(self, key) <= 3600:
                raise ConfigError(f"{key} {getattr(self, key)} is not above 0 and up to 3600 seconds")

    def _check_slots(self) -> None:
        for number, slot in enumerate(self.slots):
            for key, text in (("name", slot.name), ("word", slot.word)):
                if text is not None and not _WORD.fullmatch(text):
                    raise ConfigError(
                        f"slots[{number}].{key} {text[:80]!r} is not 1 to 64 of letters, digits, . _ -"
                    )
            if not slot.path.is_absolute():
                raise ConfigError(f"slots[{number}].path {slot.path} is not absolute")
        one, two = self.slots
        for key, a, b in (("name", one.name, two.name), ("path", one.path, two.path)):
            if a == b:
                raise ConfigError(f"slots: both have the {key} {a}")
        if word_of(one) == word_of(two):
            raise ConfigError(f"slots: both have the word {word_of(one)}")
        if not self.note_file.is_absolute():
            raise ConfigError(f"note_file {self.note_file} is not absolute")

    def _check_command(self, key: str, *, with_slot: bool) -> None:
        argv: tuple[str, ...] | None = getattr(self, key)
        if argv is None:
            return
        if not 1 <= len(argv) <= MOST_ARGUMENTS or not all(argv) or any("\0" in word for word in argv):
            raise ConfigError(f"{key} is not a list of 1 to {MOST_ARGUMENTS} arguments")
        if (SLOT in argv) != with_slot:
            raise ConfigError(
                f"{key}: {SLOT} is {'missing' if with_slot else 'given, but there is no choice'}"
            )


def word_of(slot: Slot) -> str:
    """What the commands call the slot."""
    return slot.word or slot.name


def with_word(argv: tuple[str, ...], slot: Slot) -> tuple[str, ...]:
    """The command for this slot."""
    return tuple(word_of(slot) if part == SLOT else part for part in argv)
