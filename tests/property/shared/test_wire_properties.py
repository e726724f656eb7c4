"""Any bytes give a message or BadMessage; any value survives the wire."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from shared.errors import BadMessage
from shared.messages import MESSAGES, Error, Status, StatusBatch, salvage_statuses
from shared.states import TruckStatus

IDS = st.text("abcXYZ019_-", min_size=1, max_size=64)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
STATUSES = st.builds(
    Status,
    message_id=IDS,
    job_id=IDS,
    attempt=st.integers(1, 99),
    seq=st.integers(1, 2**53),
    status=st.sampled_from(TruckStatus),
    step=st.text(min_size=1, max_size=64),
    progress=st.none() | st.integers(0, 100),
    reason=st.none() | st.text(max_size=200),
    error=st.none() | st.builds(Error, code=st.text(min_size=1, max_size=64), text=st.text(max_size=50)),
    at=st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(2100, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001 -- hypothesis adds the zone itself
)


@given(st.binary(max_size=300))
def test_any_bytes_give_a_message_or_a_refusal(raw: bytes) -> None:
    for kind in MESSAGES:
        try:
            kind.from_json(raw)
        except BadMessage:
            continue


@given(JSON)
def test_any_json_gives_a_message_or_a_refusal(value: object) -> None:
    raw = json.dumps(value).encode()
    for kind in MESSAGES:
        try:
            kind.from_json(raw)
        except BadMessage:
            continue
    try:
        salvage_statuses(raw)
    except BadMessage:
        return


@given(IDS, st.lists(STATUSES, min_size=1, max_size=5))
def test_a_batch_survives_the_wire(store_id: str, statuses: list[Status]) -> None:
    batch = StatusBatch(store_id=store_id, statuses=tuple(statuses))
    raw = batch.to_json()
    assert StatusBatch.from_json(raw) == batch
    salvaged_store, good, bad = salvage_statuses(raw)
    assert (salvaged_store, good, bad) == (store_id, statuses, [])


@given(STATUSES, st.dictionaries(st.text(min_size=1).map(lambda s: "new_" + s), JSON, max_size=3))
def test_unknown_fields_go_through_unchanged(status: Status, news: dict[str, object]) -> None:
    obj = status.to_obj() | news
    assert Status.from_obj(obj).to_obj() == obj
