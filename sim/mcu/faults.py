"""What can be ordered to go wrong in a simulated MCU. Counts begin at 1 when the order is given."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from shared.errors import ConfigError
from sim.mcu.can_faults import CanFaults, CanFaultState, Countdown


@dataclass(frozen=True, kw_only=True)
class Faults(CanFaults):
    """One order. Everything but the vehicle's state happens once; for frames see CanFaults.

    `busy`: so many requests are answered 0x21. `pending_s`: the next erase answers 0x78 so much
    longer. `lose_response`: that response is never sent. `wrong_counter_at_block`, `reset_at_block`:
    that TransferData is answered with another block's counter, or with a reset instead.
    `stuck_at_request`: that request is answered 0x78 for ever; `refuse_at_request`: that one is refused
    with the negative response code `refuse_with`, though nothing is wrong with it.
    `power_cut_at_byte`, `power_cut_at_erase`: dark in the middle of programming that byte, of erasing
    that sector. Until the next order: `moving`, `engine_running`, the vehicle; `bad_app`, an ESP32's
    application crashes at boot for as long as it is not confirmed.
    """

    busy: int = 0
    pending_s: float = 0.0
    lose_response: int = 0
    wrong_counter_at_block: int = 0
    reset_at_block: int = 0
    stuck_at_request: int = 0
    refuse_at_request: int = 0
    refuse_with: int = 0x10
    power_cut_at_byte: int = 0
    power_cut_at_erase: int = 0
    moving: bool = False
    engine_running: bool = False
    bad_app: bool = False


def parse_faults(words: list[str]) -> Faults:
    """Faults from NAME=VALUE words; raises ConfigError that names the word."""
    defaults = dataclasses.asdict(Faults())
    values: dict[str, int | float | bool] = {}
    for word in words:
        name, _, value = word.partition("=")
        if name not in defaults:
            raise ConfigError(f"fault {name[:80]!r} is not one of {', '.join(defaults)}")
        number = _number(value, type(defaults[name]))
        if number is None:
            raise ConfigError(f"fault {word[:80]!r} has no number of its kind: give {name}=1, say")
        values[name] = number
    return Faults(**values)  # type: ignore[arg-type]


def _number(value: str, kind: type[int | float | bool]) -> int | float | bool | None:
    if kind is bool:
        return {"1": True, "0": False}.get(value)
    try:
        number = int(value, 0) if kind is int else kind(value)
    except ValueError:
        return None
    return number if 0 <= number < 1e9 else None


class FaultState:
    """The order as it is being carried out; one object for the part's whole life."""

    def __init__(self, order: Faults) -> None:
        self.give(order)

    def give(self, order: Faults) -> None:
        """Replace the order; counts begin anew."""
        self.order = order
        self.can = CanFaultState(order)
        self.busy_left = order.busy
        self.pending_s = order.pending_s
        self.response = Countdown(order.lose_response)
        self.wrong_counter = Countdown(order.wrong_counter_at_block)
        self.reset = Countdown(order.reset_at_block)
        self.stuck = Countdown(order.stuck_at_request)
        self.refusal = Countdown(order.refuse_at_request)

    def take_busy(self) -> bool:
        """Whether this request meets a busy MCU."""
        if self.busy_left <= 0:
            return False
        self.busy_left -= 1
        return True

    def take_pending_s(self) -> float:
        """The extra seconds of this erase."""
        pending_s, self.pending_s = self.pending_s, 0.0
        return pending_s
