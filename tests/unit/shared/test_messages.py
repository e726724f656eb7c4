"""The wire format stands still: golden files, unknown fields, and refusals that name the place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shared.errors import BadMessage
from shared.messages import (
    MESSAGES,
    MOST_STATUSES,
    Ack,
    Command,
    Event,
    FromDevice,
    Hello,
    Manifest,
    StatusBatch,
    Telemetry,
    salvage_statuses,
)
from shared.wire import MAX_MESSAGE_BYTES, Wire

GOLDEN = Path(__file__).parent / "golden"
KINDS: dict[str, type[Wire]] = {
    "command": Command,
    "status": StatusBatch,
    "hello": Hello,
    "manifest": Manifest,
    "telemetry": Telemetry,
    "ack": Ack,
    "event": Event,
    "from": FromDevice,
}
FILES = sorted(GOLDEN.glob("*.json"))


def kind_of(path: Path) -> type[Wire]:
    return KINDS[path.stem.split("_")[0]]


def test_every_message_has_a_golden_file() -> None:
    assert {kind_of(path) for path in FILES} == set(MESSAGES)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_golden_message_is_read_and_written_as_it_stands(path: Path) -> None:
    raw = path.read_bytes()
    assert json.loads(kind_of(path).from_json(raw).to_json()) == json.loads(raw)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_field_of_a_newer_version_is_kept_at_every_level(path: Path) -> None:
    def with_news(value: object) -> object:
        if isinstance(value, list):
            return [with_news(item) for item in value]
        return value

    obj = json.loads(path.read_bytes())
    obj["news"] = {"deep": [1, 2]}
    for name in ("statuses", "targets", "components", "samples", "rejected"):
        for item in obj.get(name, []):
            item["news"] = "kept"
    assert json.loads(kind_of(path).from_json(json.dumps(obj).encode()).to_json()) == with_news(obj)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"v": 2}, "v"),
        ({"command_id": "a/b"}, "command_id"),
        ({"command_id": "with\nnewline"}, "command_id"),
        ({"job_id": ""}, "job_id"),
        ({"attempt": 0}, "attempt"),
        ({"revision": "1"}, "revision"),
        ({"targets": [{}]}, "targets"),
        ({"expires_at": "2026-12-24T00:00:00"}, "expires_at"),
        ({"window": {"opens_at": "yesterday"}}, "window"),
    ],
)
def test_a_command_that_is_not_as_declared_is_refused_by_place(change: dict[str, object], place: str) -> None:
    obj = json.loads((GOLDEN / "command_install.json").read_bytes()) | change
    with pytest.raises(BadMessage, match=place):
        Command.from_json(json.dumps(obj).encode())


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"null", b"[]", b'"x"', b"\xff\xfe", b"[" * 5000, b" " * (MAX_MESSAGE_BYTES + 1)],
    ids=["empty", "cut", "null", "list", "string", "not-utf8", "deep", "too-large"],
)
def test_what_is_no_message_is_refused(raw: bytes) -> None:
    with pytest.raises(BadMessage):
        Command.from_json(raw)


def test_a_command_of_an_unknown_kind_is_readable_so_that_it_can_be_refused_politely() -> None:
    obj = json.loads((GOLDEN / "command_diag.json").read_bytes()) | {"kind": "dance", "requires": ["dance"]}
    assert Command.from_json(json.dumps(obj).encode()).kind == "dance"


def test_a_status_with_a_step_of_a_newer_agent_is_taken() -> None:
    obj = json.loads((GOLDEN / "status_done.json").read_bytes())
    obj["statuses"][0]["step"] = "polishing"
    assert StatusBatch.from_json(json.dumps(obj).encode()).statuses[0].step == "polishing"


def test_one_bad_status_does_not_take_the_good_ones_along() -> None:
    obj = json.loads((GOLDEN / "status_steps.json").read_bytes())
    obj["statuses"][1]["status"] = "dancing"
    obj["statuses"][2] = "nothing"
    store_id, good, bad = salvage_statuses(json.dumps(obj).encode())
    assert store_id == "a1b2c3d4"
    assert [status.message_id for status in good] == ["m1", "m4"]
    assert [message_id for message_id, _, _ in bad] == ["m2", None]
    assert "status" in bad[0][1]
    assert json.loads(bad[0][2])["status"] == "dancing"


@pytest.mark.parametrize(
    "obj",
    [
        [],
        {"v": 1, "store_id": "s"},
        {"v": 1, "store_id": "s", "statuses": []},
        {"v": 1, "store_id": "s", "statuses": [{}] * (MOST_STATUSES + 1)},
        {"v": 1, "statuses": [{}]},
        {"v": 9, "store_id": "s", "statuses": [{}]},
    ],
)
def test_a_batch_whose_envelope_is_unreadable_is_refused_whole(obj: object) -> None:
    with pytest.raises(BadMessage):
        salvage_statuses(json.dumps(obj).encode())


def test_a_message_over_the_limit_is_not_written() -> None:
    event = Event.from_json((GOLDEN / "event.json").read_bytes())
    large = Event.from_obj(event.to_obj() | {"data": {"x": "y" * MAX_MESSAGE_BYTES}})
    with pytest.raises(BadMessage, match="over"):
        large.to_json()
