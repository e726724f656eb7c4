"""What can be ordered to go wrong in a simulated MCU. Counts begin at 1 when the order is given."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from shared.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Faults:
    """One order. Everything but the vehicle's state happens once.

    `busy`: so many requests are answered 0x21. `pending_s`: the next erase answers 0x78 so much
    longer. `lose_response`: that response is never sent. `lose_response_frame`, `drop_frame`: that CAN
    frame from, to the MCU vanishes. `wrong_counter_at_block`, `reset_at_block`: that TransferData is
    answered with another block's counter, or with a reset instead. `power_cut_at_frame`: dark right after
    receiving that frame; `power_cut_at_byte`, `power_cut_at_erase`: in the middle of programming that
    byte, of erasing that sector. `moving`, `engine_running`: the vehicle, until the next order.
    """

    busy: int = 0
    pending_s: float = 0.0
    lose_response: int = 0
    lose_response_frame: int = 0
    drop_frame: int = 0
    wrong_counter_at_block: int = 0
    reset_at_block: int = 0
    power_cut_at_frame: int = 0
    power_cut_at_byte: int = 0
    power_cut_at_erase: int = 0
    moving: bool = False
    engine_running: bool = False


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
        number = kind(value)
    except ValueError:
        return None
    return number if 0 <= number < 1e9 else None


class Countdown:
    """Comes due at the n-th call of `due` from 1, once; never with n = 0."""

    def __init__(self, at: int) -> None:
        self._left = at

    def due(self) -> bool:
        """Count one."""
        if self._left <= 0:
            return False
        self._left -= 1
        return self._left == 0


class FaultState:
    """The order as it is being carried out."""

    def __init__(self, order: Faults) -> None:
        self.order = order
        self.busy_left = order.busy
        self.pending_s = order.pending_s
        self.response = Countdown(order.lose_response)
        self.response_frame = Countdown(order.lose_response_frame)
        self.frame = Countdown(order.drop_frame)
        self.wrong_counter = Countdown(order.wrong_counter_at_block)
        self.reset = Countdown(order.reset_at_block)
        self.power = Countdown(order.power_cut_at_frame)

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
