"""What a verification must know of the truck: who it is, and the ECUs that are really in it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Ecu:
    """One ECU as provisioned and as it answered.

    `installed_counter` is the release counter of the firmware that it runs, None when that is not
    known: then it meets no requirement.
    """

    serial: str
    kind: str
    hardware: str
    installed_counter: int | None = None


@dataclass(frozen=True, kw_only=True)
class Vehicle:
    """A truck and all of its ECUs."""

    vehicle_id: str
    ecus: tuple[Ecu, ...]

    def __post_init__(self) -> None:
        """Raises ValueError when two ECUs have one serial."""
        if len({ecu.serial for ecu in self.ecus}) != len(self.ecus):
            raise ValueError(f"two ECUs of {self.vehicle_id} have the same serial")

    def by_serial(self, serial: str) -> Ecu | None:
        """The ECU, None when the truck has none of this serial."""
        return next((ecu for ecu in self.ecus if ecu.serial == serial), None)
