"""What an ECU may hold by the office's records, as a table."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from control_plane.director.model import (
    DIRECTS,
    Choice,
    EcuRecord,
    allowed_sha256,
    fingerprint,
    governs,
    releases_of_job,
)
from control_plane.jobs.merge import Progress
from control_plane.jobs.model import Job, Target
from shared.messages import CommandKind
from shared.states import JobState
from shared.trust.uptane.release_document import ReleaseSpec, ReleaseTarget

AT = datetime(2026, 11, 25, 12, tzinfo=UTC)
OLD, NEW, OTHER = "0" * 64, "1" * 64, "2" * 64
LATER = AT + timedelta(hours=1)


def _job(state: JobState, *sha256: str, at: datetime = LATER, kind: str = "brake") -> Job:
    return Job(
        job_id="j",
        device_id="t",
        now=Progress(state=state, attempt=1),
        version=1,
        revision=1,
        command_kind=CommandKind.INSTALL,
        scheduled_at=at,
        created_by="anna",
        created_at=at,
        updated_at=at,
        dispatched_at=None,
        finished_at=None,
        targets=tuple(
            Target(component="b", firmware_id="f", kind=kind, version="1", sha256=one, length=1)
            for one in sha256
        ),
    )


def _release(sha256: str, kind: str = "brake", version: str = "1") -> ReleaseSpec:
    target = ReleaseTarget(
        kind=kind, hardware=("H",), version=version, release_counter=1, length=1, sha256=sha256
    )
    return ReleaseSpec(name="haul", version=version, targets=(target,))


TABLE = {
    "nothing is known": (None, None, None, True, None),
    "settled": (OLD, None, None, True, {OLD}),
    "settled, an earlier job": (NEW, _job(JobState.DONE, NEW, at=AT - timedelta(1)), None, True, {NEW}),
    "a job under way": (OLD, _job(JobState.FLASHING, NEW), None, True, {OLD, NEW}),
    "a job under way, nothing settled": (None, _job(JobState.FLASHING, NEW), None, True, None),
    "a job that is done": (OLD, _job(JobState.DONE, NEW), None, True, {NEW}),
    "done, two ECUs of this kind": (OLD, _job(JobState.DONE, NEW), None, False, {OLD, NEW}),
    "done, by a release": (OLD, _job(JobState.DONE, NEW), _release(NEW), False, {NEW}),
    "done, for another kind": (OLD, _job(JobState.DONE, NEW, kind="hoist"), None, True, {OLD}),
    "a job that failed": (OLD, _job(JobState.ERROR, NEW), None, True, {OLD, NEW}),
    "a release that was chosen": (OLD, None, _release(NEW), True, {OLD, NEW}),
    "a chosen release that it holds": (NEW, None, _release(NEW), True, {NEW}),
    "a release for another kind": (OLD, None, _release(NEW, "hoist"), True, {OLD}),
}


@pytest.mark.parametrize("name", TABLE)
def test_what_an_ecu_may_hold(name: str) -> None:
    settled, job, release, alone, allowed = TABLE[name]
    at = None if settled is None else AT
    ecu = EcuRecord(serial="S", kind="brake", hardware="H", settled_sha256=settled, settled_at=at)
    found = allowed_sha256(ecu, job, release, alone=alone)
    assert found == (None if allowed is None else frozenset(allowed))


def test_the_newest_word_decides() -> None:
    job = _job(JobState.READY, NEW)
    before = Choice(release_path="r", job_id=None, chosen_by="o", chosen_at=AT)
    after = Choice(release_path="r", job_id=None, chosen_by="o", chosen_at=LATER + timedelta(seconds=1))
    own = Choice(release_path="r", job_id="j", chosen_by="o", chosen_at=LATER + timedelta(seconds=1))
    assert [governs(job, one) for one in (None, before, own, after)] == [True, True, True, False]
    assert not governs(None, before)


def test_no_state_in_which_a_job_is_given_up_directs() -> None:
    given_up = {JobState.CANCELLING, JobState.CANCELLED, JobState.ERROR, JobState.ABANDONED}
    assert set(JobState) - DIRECTS == given_up | {JobState.SCHEDULED}


def test_a_job_s_releases_have_all_of_its_firmware_byte_for_byte() -> None:
    releases = {"a": _release(OLD), "b": _release(NEW), "c": _release(NEW, version="2")}
    assert releases_of_job(_job(JobState.READY, OLD), releases) == ["a"]
    assert releases_of_job(_job(JobState.READY, NEW), releases) == ["b", "c"]
    assert releases_of_job(_job(JobState.READY, NEW, OLD), releases) == []
    assert releases_of_job(_job(JobState.READY, NEW, kind="hoist"), releases) == []


def test_whatever_would_be_signed_otherwise_changes_the_fingerprint() -> None:
    one = EcuRecord(serial="S", kind="brake", hardware="H")
    other = EcuRecord(serial="S", kind="brake", hardware="H2")
    told = EcuRecord(serial="S", kind="brake", hardware="H", counter=7, settled_sha256=OLD)
    said = {
        fingerprint(path, ecus, keys)
        for path in (None, "r", "q")
        for ecus in ([one], [other], [])
        for keys in ("k", "l")
    }
    assert len(said) == 18
    assert fingerprint("r", [one], "k") == fingerprint("r", [told], "k")
