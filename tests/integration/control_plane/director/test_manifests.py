"""Vehicle manifests: who is believed, what is shown, and every alarm by its name."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.signer import CryptoSigner

from control_plane.director import alarms as alarms_room

TRUCK = "truck-7"
ECUS = f"/api/v1/devices/{TRUCK}/ecus"


async def _releases(yard: Any) -> tuple[Any, Any, Any]:
    """Three releases, taken in; the truck's ECUs are registered."""
    found = tuple(yard.world.release(f"1.{n}.0", n) for n in (1, 2, 3))
    assert (await yard.publish()).status_code == 201
    assert (await yard.register()).status_code == 200
    return found


def _refused(answer: Any, code: str) -> None:
    assert (answer.status_code, answer.json()["code"]) == (422, code), answer.text


async def test_what_runs_is_shown_with_its_history(yard: Any) -> None:
    old, new, _ = await _releases(yard)
    answer = await yard.tell(yard.manifest(old))
    assert (answer.status_code, answer.json()) == (200, {"repeated": False, "alarms": []})
    assert (await yard.tell(yard.manifest(old))).status_code == 200
    await yard.choose(new)
    assert (await yard.tell(yard.manifest(new))).json()["alarms"] == []
    body = (await yard.operator.get(ECUS)).json()
    target = new.targets[0]
    assert [one["serial"] for one in body["ecus"]] == ["SN-0", "SN-1"]
    assert body["ecus"][0]["holds"]["filename"] == target.spec.target_path
    assert (body["ecus"][0]["counter"], body["unregistered"]) == (2, [])
    history = (await yard.operator.get(f"{ECUS}/SN-0/history")).json()["items"]
    assert [one["release_counter"] for one in history] == [2, 1]
    assert history[1]["last_seen_at"] > history[1]["first_seen_at"]
    assert await yard.alarms() == []


async def test_the_newest_manifest_again_is_no_alarm_and_changes_nothing(yard: Any) -> None:
    old, *_ = await _releases(yard)
    manifest = yard.manifest(old)
    assert (await yard.tell(manifest)).json()["repeated"] is False
    assert (await yard.tell(manifest)).json() == {"repeated": True, "alarms": []}
    assert await yard.alarms() == []


async def test_a_replayed_manifest_is_refused_and_an_alarm(yard: Any) -> None:
    old, new, _ = await _releases(yard)
    captured = yard.manifest(old)
    await yard.tell(captured)
    await yard.choose(new)
    await yard.tell(yard.manifest(new))
    _refused(await yard.tell(captured), "manifest_replayed")
    _refused(await yard.tell(captured), "manifest_replayed")
    assert await yard.alarms() == [("manifest_replayed", "", 2)]
    holds = (await yard.operator.get(ECUS)).json()["ecus"][0]["holds"]
    assert holds["release_counter"] == 2


async def test_a_replay_from_before_a_lost_database_is_an_alarm(yard: Any) -> None:
    old, *_ = await _releases(yard)
    captured = yard.manifest(old, seq=900)
    await yard.tell(captured)
    assert (await yard.tell(yard.manifest(old, seq=1, store_id="store-2"))).status_code == 200
    _refused(await yard.tell(yard.manifest(old, seq=901)), "manifest_replayed")


async def test_an_image_that_nobody_directed_is_a_mismatch_until_it_is_gone(yard: Any) -> None:
    old, new, third = await _releases(yard)
    await yard.tell(yard.manifest(old))
    await yard.tell(yard.manifest(third))
    await yard.tell(yard.manifest(third))
    assert await yard.alarms() == [("image_mismatch", "SN-0", 2), ("image_mismatch", "SN-1", 2)]
    # While another release is chosen an ECU holds the old or the new one, and nothing else.
    await yard.choose(new)
    answer = await yard.tell(yard.manifest(third))
    assert [one["alarm"] for one in answer.json()["alarms"]] == ["image_mismatch"] * 2
    answer = await yard.tell(yard.manifest(new))
    assert [one["alarm"] for one in answer.json()["alarms"]] == ["release_counter_gone_backwards"] * 2


async def test_a_chosen_release_may_be_under_way_but_does_not_come_off_again(yard: Any) -> None:
    old, new, _ = await _releases(yard)
    await yard.tell(yard.manifest(old))
    await yard.choose(new)
    for held, alarms in ((old, []), (None, []), (new, []), (None, ["image_mismatch"] * 2)):
        answer = await yard.tell(yard.manifest(held))
        assert [one["alarm"] for one in answer.json()["alarms"]] == alarms


async def test_other_people_s_manifests_are_refused(yard: Any) -> None:
    old, *_ = await _releases(yard)
    thief = CryptoSigner(Ed25519PrivateKey.generate())
    _refused(await yard.tell(yard.manifest(old, signer=thief)), "manifest_unsigned")
    _refused(await yard.tell(b"{}"), "manifest_unreadable")
    _refused(await yard.tell(b'{"x":"\\u0000"}'), "manifest_unreadable")
    assert await yard.alarms() == [("manifest_unreadable", "", 2), ("manifest_unsigned", "", 1)]
    assert (await yard.operator.get(ECUS)).json()["ecus"][0]["holds"] is None


ALARMS = {
    "another part": ({"hardware": "H9"}, "ecu_hardware_changed"),
    "a report of another manifest": ({"seq": 1000}, "ecu_report_replayed"),
    "an attack that the truck saw": ({"attacks": ("metadata_rolled_back",)}, "attack_reported"),
}


@pytest.mark.parametrize("name", ALARMS)
async def test_what_a_report_says_is_an_alarm(yard: Any, name: str) -> None:
    old, *_ = await _releases(yard)
    fields, alarm = ALARMS[name]
    answer = await yard.tell(yard.manifest(old, report=fields))
    assert [one["alarm"] for one in answer.json()["alarms"]] == [alarm]
    assert await yard.alarms() == [(alarm, "SN-0", 1)]


async def test_an_unregistered_ecu_is_shown_and_not_believed(yard: Any) -> None:
    old, *_ = await _releases(yard)
    answer = await yard.tell(yard.manifest(old, report={"serial": "SN-X"}))
    assert sorted(one["alarm"] for one in answer.json()["alarms"]) == ["ecu_missing", "ecu_unknown"]
    body = (await yard.operator.get(ECUS)).json()
    assert body["unregistered"] == ["SN-X"]
    [held] = (await yard.operator.get(f"{ECUS}/SN-X/history")).json()["items"]
    assert held["believed"] is False


async def test_an_ecu_with_a_key_of_its_own_is_not_spoken_for_by_the_gateway(yard: Any) -> None:
    old = yard.world.release("1.1.0", 1)
    await yard.publish()
    own = CryptoSigner(Ed25519PrivateKey.generate())
    private = serialization.load_pem_private_key(own.private_bytes, None)
    public = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    assert (await yard.register(serials={"SN-0": public.decode()})).status_code == 200
    answer = await yard.tell(yard.manifest(old))
    assert [(one["alarm"], one["serial"]) for one in answer.json()["alarms"]] == [
        ("ecu_report_unsigned", "SN-0")
    ]


async def test_clocks(yard: Any) -> None:
    old, *_ = await _releases(yard)
    ahead = yard.manifest(old, at=yard.clock[0] + timedelta(days=30))
    assert [one["alarm"] for one in (await yard.tell(ahead)).json()["alarms"]] == ["clock_ahead"]
    backwards = yard.manifest(old, at=yard.clock[0] - timedelta(hours=1))
    assert [one["alarm"] for one in (await yard.tell(backwards)).json()["alarms"]] == ["clock_gone_backwards"]


async def test_alarms_are_listed_by_pages_and_acknowledged(yard: Any) -> None:
    old, _, third = await _releases(yard)
    await yard.tell(yard.manifest(old))
    await yard.tell(yard.manifest(third))
    _refused(await yard.tell(b"{}"), "manifest_unreadable")
    first = (await yard.operator.get("/api/v1/alarms", params={"limit": 2})).json()
    rest = (
        await yard.operator.get("/api/v1/alarms", params={"limit": 2, "cursor": first["next_cursor"]})
    ).json()
    ids = [one["alarm_id"] for one in first["items"] + rest["items"]]
    assert (len(set(ids)), rest["next_cursor"]) == (3, None)
    assert first["items"][0]["alarm"] == "manifest_unreadable"
    only = await yard.operator.get("/api/v1/alarms", params={"alarm": "image_mismatch", "device_id": TRUCK})
    assert {one["serial"] for one in only.json()["items"]} == {"SN-0", "SN-1"}
    assert await yard.alarms(device_id="truck-8") == []

    alarm_id = first["items"][0]["alarm_id"]
    done = await yard.operator.post(f"/api/v1/alarms/{alarm_id}/acknowledge")
    assert done.json()["acknowledged_by"] == "admin"
    assert (await yard.operator.post(f"/api/v1/alarms/{alarm_id}/acknowledge")).json() == done.json()
    assert ("manifest_unreadable", "", 1) not in await yard.alarms()
    assert ("manifest_unreadable", "", 1) in await yard.alarms(acknowledged=True)
    # What goes on comes again.
    _refused(await yard.tell(b"{}"), "manifest_unreadable")
    assert ("manifest_unreadable", "", 1) in await yard.alarms()
    missing = await yard.operator.post("/api/v1/alarms/nothing/acknowledge")
    assert (missing.status_code, missing.json()["code"]) == (404, "unknown_alarm")


async def test_a_mad_truck_fills_no_table(yard: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alarms_room, "MOST_OPEN_PER_DEVICE", 3)
    old, *_ = await _releases(yard)
    for n in range(4):
        await yard.tell(yard.manifest(old, report={"attacks": tuple(f"attack-{n}-{m}" for m in range(3))}))
    await yard.tell(yard.manifest(old, report={"attacks": ("attack-0-0",)}))
    assert await yard.alarms() == [("attack_reported", "SN-0", n) for n in (1, 1, 2)]
    assert b'director_alarms_total{alarm="attack_reported"} 13.0' in yard.metrics.as_text()


async def test_ecus_are_changed_by_whoever_has_read_them(yard: Any) -> None:
    await _releases(yard)
    answer = await yard.register()
    assert (answer.status_code, answer.json()["code"]) == (428, "precondition_required")
    answer = await yard.register(**{"If-Match": '"7"'})
    assert (answer.status_code, answer.json()["code"]) == (412, "stale_version")
    tag = (await yard.operator.get(ECUS)).headers["etag"]
    answer = await yard.register(**{"If-Match": tag})
    assert (answer.status_code, answer.headers["etag"]) == (200, '"2"')
    body = answer.json()
    wrong = {"primary_serial": "GW", "gateway_key": body["gateway_key"], "ecus": []}
    ecu = {"serial": "SN-0", "kind": "brake-controller", "hardware": "H0"}
    for change in (
        {"ecus": [ecu, ecu]},
        {"gateway_key": "-----BEGIN PUBLIC KEY-----\nnothing\n-----END PUBLIC KEY-----\n"},
        {"ecus": [ecu | {"serial": "a\x00b"}]},
    ):
        answer = await yard.operator.put(ECUS, json=wrong | change, headers={"If-Match": '"2"'})
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid"), change
    assert (await yard.operator.put(ECUS.replace("7", "9"), json=wrong)).json()["code"] == "unknown_device"


async def test_without_registered_ecus_a_manifest_is_put_off(yard: Any) -> None:
    yard.world.release("1.1.0", 1)
    answer = await yard.tell(yard.manifest())
    assert (answer.status_code, answer.json()["code"]) == (409, "ecus_not_registered")
    assert (await yard.tell(b"x" * 300_000)).status_code == 413
