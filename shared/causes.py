"""PURE: why an update waits: a stable code, and a sentence in English and Russian, for both ends.

A truck finds a cause and sends its code with what the sentence is about (shared.messages.ToldCause); whoever
shows it does so in the reader's language. A sentence holds only what stays while the cause stays (a bound, a
name), never a measured value: it is told when it changes, and must not change with every reading. A code that
a newer agent sends and this program does not know is shown as it came.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from shared.messages import MOST_CAUSES, MOST_DETAIL, ToldCause

Language = Literal["en", "ru"]
LANGUAGES: tuple[Language, ...] = ("en", "ru")


@dataclass(frozen=True)
class Cause:
    """One reason. `detail` is what the sentence is about (a bound, an address); `word` one of WORDS."""

    code: str
    detail: str = ""
    word: str = ""

    @property
    def text(self) -> str:
        """In English."""
        return self.said("en")

    @property
    def text_ru(self) -> str:
        """In Russian."""
        return self.said("ru")

    def said(self, language: Language) -> str:
        """As words in a sentence."""
        at = LANGUAGES.index(language)
        words = WORDS.get(self.word)
        about = " ".join(part for part in (self.detail, words[at] if words else self.word) if part)
        sentences = SENTENCES.get(self.code)
        if sentences is None:
            return f"{self.code} ({about})" if about else self.code
        return sentences[at].format(about)


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
        "flashing does not begin in the hours {}, by the site's time",
        "прошивка не начинается в часы {} по местному времени",
    ),
    "zone_unknown": (
        "hours are forbidden, and the site's time zone is not set",
        "есть запретные часы, но часовой пояс площадки не задан",
    ),
    "written_on": (
        "what was begun is written to its end, and its start waits",
        "начатая запись идёт до конца, запуск ждёт",
    ),
    # What the order, the ECU and the way to the office say.
    "window_opens": ("the window for flashing opens at {}", "окно для прошивки откроется {}"),
    "window_closed": ("the window for flashing closed at {}", "окно для прошивки закрылось {}"),
    "other_update": (
        "an earlier update of this component is about to be finished",
        "завершается предыдущее обновление этого блока",
    ),
    "ecu_refuses": ("the ECU refuses for the moment: {}", "блок управления пока отказывает: {}"),
    "over_budget": (
        "the data that this job or this day may use is used up: {}",
        "исчерпан объём данных задания или дня: {}",
    ),
    "url_expired": ("the signed URL is over", "срок действия подписанной ссылки истёк"),
    "too_late": (
        "the ECU is being flashed: it is finished, since a stop would strand it",
        "блок прошивается: прошивка будет доведена до конца, иначе он останется без программы",
    ),
}
"""English and Russian, `{}` the detail."""

BEGINNING: Mapping[Language, str] = {"en": "the vehicle is not ready: ", "ru": "машина не готова: "}
STANDS_ALONE = frozenset(
    {
        "state_unknown",
        "window_opens",
        "window_closed",
        "other_update",
        "ecu_refuses",
        "over_budget",
        "url_expired",
        "too_late",
    }
)
"""Not the vehicle's, or all that can be said of it."""


def sentence(causes: Iterable[Cause], language: Language = "en") -> str:
    """All causes in one sentence, for an operator; empty for none."""
    causes = tuple(causes)
    if not causes:
        return ""
    alone = all(one.code in STANDS_ALONE or one.code not in SENTENCES for one in causes)
    return ("" if alone else BEGINNING[language]) + ", ".join(one.said(language) for one in causes)


def as_told(causes: Iterable[Cause]) -> tuple[ToldCause, ...] | None:
    """As a status carries them, in its bounds; None for none."""
    told = tuple(
        ToldCause(code=one.code, detail=one.detail[:MOST_DETAIL] or None, word=one.word or None)
        for one in causes
    )
    return told[:MOST_CAUSES] or None


def as_said(told: Iterable[ToldCause] | None) -> tuple[Cause, ...]:
    """What a status carried; codes and words that nobody here knows stay as they are."""
    return tuple(Cause(one.code, one.detail or "", one.word or "") for one in told or ())
