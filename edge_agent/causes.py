"""PURE: why an ECU may not be flashed at this moment: a stable code, and a sentence in English and Russian.

A sentence holds only what stays while the cause stays (a bound, a name), never a measured value: it is
told when it changes, and must not change with every reading.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Cause:
    """One reason. `detail` is what the sentence is about (a bound, an address); `word` one of WORDS."""

    code: str
    detail: str = ""
    word: str = ""

    @property
    def text(self) -> str:
        """In English."""
        return self._said(0)

    @property
    def text_ru(self) -> str:
        """In Russian."""
        return self._said(1)

    def _said(self, language: int) -> str:
        parts = [self.detail, WORDS[self.word][language] if self.word else ""]
        return SENTENCES[self.code][language].format(" ".join(part for part in parts if part))


WORDS: Mapping[str, tuple[str, str]] = {
    "silent": ("is silent", "молчит"),
    "no_sender": ("nobody sends it", "никто не передаёт"),
    "error": ("reports an error", "сообщает об ошибке"),
    "not_available": ("does not have it", "не располагает данными"),
    "reserved": ("sends a reserved pattern", "передаёт зарезервированный код"),
    "malformed": ("sends frames of a wrong length", "передаёт кадры неверной длины"),
    "unclear": ("between on and off", "между «включён» и «выключен»"),
    "wheel_speed": ("senders of the speed", "источники скорости"),
    "parking_brake": ("senders of the parking brake", "источники стояночного тормоза"),
    "engine_speed": ("senders of the engine's speed", "источники оборотов"),
    "gear": ("senders of the gear", "источники передачи"),
    "battery": ("senders of the battery voltage", "источники напряжения"),
    "key_switch": ("senders of the key switch", "источники положения ключа"),
    "brake_and_speed": ("the parking brake is set, and it moves", "тормоз включён, а машина движется"),
    "key_and_engine": ("the key switch is off, and the engine runs", "ключ выключен, а двигатель работает"),
}
"""English and Russian."""

SENTENCES: Mapping[str, tuple[str, str]] = {
    # What another process of the gateway, or a bench, says of the vehicle.
    "state_unknown": ("the vehicle's state is not known", "состояние машины неизвестно"),
    "parked_unknown": ("it is not known to be parked", "неизвестно, стоит ли машина на стоянке"),
    "not_parked": ("it is not parked", "машина не на стоянке"),
    "engine_unknown": ("the engine is not known to be off", "неизвестно, заглушен ли двигатель"),
    "engine_runs": ("the engine runs", "двигатель работает"),
    "voltage_unknown": ("the supply voltage is not known", "напряжение питания неизвестно"),
    "voltage_low": ("the supply voltage is below {} V", "напряжение питания ниже {} В"),
    "voltage_high": ("the supply voltage is above {} V", "напряжение питания выше {} В"),
    # What the vehicle's bus says.
    "bus_unknown": ("the vehicle's bus can't be read", "шина машины не читается"),
    "foreign_tester": (
        "another diagnostic tester is at work on the bus",
        "на шине работает другой диагностический прибор",
    ),
    "speed_unknown": ("the speed is not known ({})", "скорость неизвестна ({})"),
    "moves": ("it moves", "машина движется"),
    "brake_unknown": ("the parking brake is not known ({})", "состояние стояночного тормоза неизвестно ({})"),
    "brake_not_set": ("the parking brake is not set", "стояночный тормоз не включён"),
    "rpm_unknown": ("the engine's speed is not known ({})", "обороты двигателя неизвестны ({})"),
    "gear_unknown": ("the gear is not known ({})", "передача неизвестна ({})"),
    "gear_engaged": ("a gear is engaged", "включена передача"),
    "battery_unknown": ("the battery voltage is not known ({})", "напряжение батареи неизвестно ({})"),
    "battery_low": ("the battery voltage is below {} V", "напряжение батареи ниже {} В"),
    "battery_high": ("the battery voltage is above {} V", "напряжение батареи выше {} В"),
    "key_unknown": ("the key switch is not known ({})", "положение ключа неизвестно ({})"),
    "key_off": ("the key switch is off", "ключ выключен"),
    "key_not_off": (
        "the engine's controller is silent and the key switch is not off",
        "блок двигателя молчит, а ключ не выключен",
    ),
    "contradiction": ("signals contradict each other ({})", "сигналы противоречат друг другу ({})"),
    "few_standstill": (
        "fewer than {} independent signals say that it stands",
        "неподвижность подтверждают менее {} независимых сигналов",
    ),
    "not_steady": (
        "it has not been safe for {} s on end yet",
        "безопасное состояние длится менее {} с подряд",
    ),
    # What people and the calendar say.
    "held": ("flashing is held here: {}", "прошивка задержана на месте: {}"),
    "holds_unknown": ("it is not known whether flashing is held", "неизвестно, задержана ли прошивка"),
    "no_consent": ("an operator has not consented at the truck", "нет согласия оператора на машине"),
    "forbidden_hours": (
        "flashing does not begin from {}, by the site's time",
        "прошивка не начинается в часы {} по местному времени",
    ),
    "zone_unknown": (
        "hours are forbidden, and the site's time zone is not set",
        "есть запретные часы, но часовой пояс площадки не задан",
    ),
}
"""English and Russian, `{}` the detail."""

BEGINNING, BEGINNING_RU = "the vehicle is not ready: ", "машина не готова: "


def sentence(causes: tuple[Cause, ...], *, russian: bool = False) -> str:
    """All causes in one sentence, for an operator."""
    # Of a vehicle of which nothing is known there is nothing else to say.
    beginning = "" if causes[0].code == "state_unknown" else BEGINNING_RU if russian else BEGINNING
    return beginning + ", ".join(one.text_ru if russian else one.text for one in causes)
