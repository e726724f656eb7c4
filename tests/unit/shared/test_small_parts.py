"""Ids, topics, states, back-off and logs: small values with sharp edges."""

from __future__ import annotations

import io
import json
import logging

import pytest

from shared import topics
from shared.backoff import OUTBOX_BACKOFF, OUTBOX_TRIES, Backoff
from shared.errors import BadMessage, OtaError
from shared.ids import BadId, check_id, new_id
from shared.logs import get_log, set_up_logs
from shared.states import (
    JOB_LIVE,
    JOB_MOVES,
    JOB_TERMINAL,
    STATUS_TO_JOB,
    UPDATE_MOVES,
    UPDATE_TERMINAL,
    JobState,
    TruckStatus,
    UpdateState,
)


@pytest.mark.parametrize("bad", ["", "a" * 65, "a/b", "a.b", "+", "#", "a\n", "грузовик", " ", "$JS"])
def test_an_id_that_could_leave_its_topic_is_refused(bad: str) -> None:
    with pytest.raises(BadId):
        check_id(bad, "device_id")
    for make in (topics.commands, topics.acks, topics.telemetry):
        with pytest.raises(BadId):
            make(bad)


def test_new_ids_travel_in_topics_and_differ() -> None:
    ids = {new_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(check_id(one, "id") for one in ids)


def test_what_a_truck_writes_is_what_the_centre_reads() -> None:
    for topic in topics.truck_writes("truck-001"):
        assert topics.parse_from_truck(topic).device_id == "truck-001"
        assert any(
            wanted.split("/")[0] == topic.split("/")[0] and wanted.split("/")[2:] == topic.split("/")[2:]
            for wanted in topics.CENTRE_READS
        )
    assert not set(topics.truck_reads("truck-001")) & set(topics.truck_writes("truck-001"))


@pytest.mark.parametrize(
    "topic",
    ["", "status/t", "status/t/dance", "status/t/update/x", "commands/t/ota", "telemetry", "telemetry/"],
)
def test_a_topic_that_no_truck_writes_on_is_refused(topic: str) -> None:
    with pytest.raises((BadMessage, BadId)):
        topics.parse_from_truck(topic)


def test_a_status_kind_that_does_not_exist_has_no_topic() -> None:
    with pytest.raises(ValueError, match="dance"):
        topics.status("t", "dance")


def test_the_tables_of_moves_are_whole_and_ends_are_ends() -> None:
    assert set(JOB_MOVES) == set(JobState)
    assert set(UPDATE_MOVES) == set(UpdateState)
    assert all(not JOB_MOVES[state] for state in JOB_TERMINAL)
    assert all(not UPDATE_MOVES[state] for state in UPDATE_TERMINAL)
    assert set(JobState) == JOB_LIVE | JOB_TERMINAL
    assert set(STATUS_TO_JOB) == set(TruckStatus)


def test_a_live_job_can_always_be_moved_by_its_trucks_word_and_by_abandon() -> None:
    for state in JOB_LIVE:
        assert JOB_MOVES[state] >= {*STATUS_TO_JOB.values(), JobState.ABANDONED}


def test_silence_is_never_an_end_by_itself() -> None:
    for state in (JobState.SILENT, JobState.CANCELLING):
        assert state in JOB_LIVE


def test_after_the_first_erase_nothing_abandons_an_update() -> None:
    for state in (UpdateState.ACTIVATING, UpdateState.CHECKING):
        assert not UPDATE_MOVES[state] & {UpdateState.ERROR, UpdateState.CANCELLED}
    assert UpdateState.CANCELLED not in UPDATE_MOVES[UpdateState.FLASHING]


def test_the_outbox_waits_1_2_4_8_seconds_and_then_gives_up() -> None:
    assert [OUTBOX_BACKOFF.delay_s(n) for n in range(OUTBOX_TRIES - 1)] == [1, 2, 4, 8]


def test_a_delay_is_bounded_however_long_a_truck_has_tried() -> None:
    backoff = Backoff(first_s=1, most_s=300, jitter=0.5)
    for tries in (0, 10, 64, 10**6):
        assert 0 < backoff.delay_s(tries) <= 300
    assert backoff.delay_s(10**6) >= 150


def test_an_error_keeps_its_kind_and_may_narrow_it() -> None:
    error = OtaError("the sentence", code="narrow", retryable=True, advice="do this")
    assert error.as_fields() == {
        "code": "narrow",
        "retryable": True,
        "advice": "do this",
        "text": "the sentence",
    }
    assert OtaError("x").code == "internal"


def test_a_log_line_is_one_json_object_in_the_common_schema() -> None:
    out = io.StringIO()
    root = logging.getLogger()
    before = root.handlers[:], root.level
    try:
        set_up_logs("agent", stream=out)
        get_log("edge_agent.updater").info("updater.job_taken", job_id="j1", name="самосвал")
        logging.getLogger("some.library").warning("its own words")
        get_log("x").error("x.failed", exc_info=ValueError("why"))
    finally:
        root.handlers[:], root.level = before
    ours, theirs, failed = (json.loads(line) for line in out.getvalue().splitlines())
    assert ours["message"] == "updater.job_taken"
    assert ours["service.name"] == theirs["service.name"] == "agent"
    assert ours["job_id"] == "j1"
    assert "самосвал" in out.getvalue()
    assert ours["log.level"] == "info"
    assert ours["@timestamp"].endswith("Z")
    assert theirs["message"] == "its own words"
    assert "ValueError: why" in failed["exception"]
