"""What a scenario shows while it runs, and what it says at its end."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from shared.states import JobState


@dataclass(kw_only=True)
class Row:
    """One truck as a person watches it. `ecus` says what each ECU runs now, by component."""

    device_id: str
    state: str = "-"
    step: str = ""
    progress: int | None = None
    note: str = ""
    ecus: dict[str, str] = field(default_factory=dict)


@dataclass(kw_only=True)
class Picture:
    """What to show now; `lines` are what was said so far."""

    stage: str = ""
    rows: list[Row] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    def row(self, device_id: str) -> Row:
        """A truck's row, made when there is none."""
        for row in self.rows:
            if row.device_id == device_id:
                return row
        self.rows.append(Row(device_id=device_id))
        return self.rows[-1]


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One thing that was shown, whether it is so, and in one or two sentences what was seen."""

    name: str
    ok: bool
    said: str


@dataclass(frozen=True, kw_only=True)
class JobReport:
    """A job's end. `refused_reason` is the truck's own sentence, when it refused or went back."""

    job_id: str
    state: str
    release: str | None = None
    refused_reason: str | None = None
    code: str | None = None


@dataclass(frozen=True, kw_only=True)
class EcuReport:
    """What an ECU's flash holds, what it should, and what the office has from the truck's signed manifest."""

    component: str
    serial: str
    version: str
    mcu_sha256: str
    expected_sha256: str
    manifest_sha256: str | None

    @property
    def is_right(self) -> bool:
        """All three are the same."""
        return self.mcu_sha256 == self.expected_sha256 == self.manifest_sha256


@dataclass(frozen=True, kw_only=True)
class TruckReport:
    """A truck's end. `statuses` that the office keeps of it; `duplicates` of them that it has twice.

    `mcu_sha256` and `expected_sha256` are of its first ECU; all of them are in `ecus`.
    """

    device_id: str
    jobs: tuple[JobReport, ...]
    ecus: tuple[EcuReport, ...]
    statuses: int
    duplicates: int

    @property
    def mcu_sha256(self) -> str:
        """Of its first ECU."""
        return self.ecus[0].mcu_sha256

    @property
    def expected_sha256(self) -> str:
        """Of its first ECU."""
        return self.ecus[0].expected_sha256

    @property
    def is_right(self) -> bool:
        """Every ECU holds the release, the last job is done, and those before ended with a reason."""
        *before, last = self.jobs
        return (
            all(ecu.is_right for ecu in self.ecus)
            and last.state == JobState.DONE
            and self.duplicates == 0
            and all(job.state == JobState.DONE or job.refused_reason for job in before)
        )


@dataclass(frozen=True, kw_only=True)
class Report:
    """The scenario's end. `ok`: every scene was as it must be, and every truck holds what it must."""

    trucks: tuple[TruckReport, ...]
    scenes: tuple[Scene, ...]
    alarms: tuple[dict[str, Any], ...]
    seconds: float
    set_up_s: float

    @property
    def ok(self) -> bool:
        """See the class."""
        return all(one.ok for one in self.scenes) and all(one.is_right for one in self.trucks)

    def as_json(self) -> dict[str, Any]:
        """The object that `--json` prints; what a job does not have is left out."""
        trucks = [
            asdict(truck)
            | {
                "jobs": [{k: v for k, v in asdict(job).items() if v is not None} for job in truck.jobs],
                "mcu_sha256": truck.mcu_sha256,
                "expected_sha256": truck.expected_sha256,
            }
            for truck in self.trucks
        ]
        return {
            "ok": self.ok,
            "trucks": trucks,
            "scenes": [asdict(one) for one in self.scenes],
            "alarms": list(self.alarms),
            "seconds": round(self.seconds, 2),
            "set_up_seconds": round(self.set_up_s, 2),
        }
