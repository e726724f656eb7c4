"""The key of a truck's gateway comes with its enrolment: nobody carries a file to the office."""

from __future__ import annotations

import secrets
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key

from control_plane.errors import Invalid

TRUCK = "truck-9"


def public_pem(key: Any = None) -> str:
    raw: bytes = (
        (key or Ed25519PrivateKey.generate())
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return raw.decode()


async def add(yard: Any) -> None:
    async with yard.db.transaction() as connection:
        await yard.devices.create(connection, device_id=TRUCK, by="test")


async def enrol(yard: Any, manifest_key: str | None) -> None:
    yard.access.gateway_keys = yard.room.director
    token = await yard.access.new_enrolment_token(TRUCK)
    await yard.access.enrol(
        enrolment_token=token.token,
        http_token=secrets.token_urlsafe(32),
        mqtt_password=secrets.token_urlsafe(32),
        manifest_key=manifest_key,
    )


def ecus(**more: str) -> dict[str, Any]:
    one = {"serial": "SN-9", "kind": "brake-controller", "hardware": "rev-b"}
    return {"primary_serial": "GW-9", "ecus": [one], **more}


async def put(yard: Any, version: int | None = None, **more: str) -> Any:
    headers = {} if version is None else {"If-Match": f'"{version}"'}
    return await yard.operator.put(f"/api/v1/devices/{TRUCK}/ecus", json=ecus(**more), headers=headers)


async def test_what_the_truck_told_is_registered(yard: Any) -> None:
    await add(yard)
    # The ECUs may be registered before the truck was enrolled.
    made = await put(yard)
    assert (made.status_code, made.json()["gateway_key"], made.json()["version"]) == (200, None, 1)
    first, second, third = public_pem(), public_pem(), public_pem()
    await enrol(yard, first)
    # Enrolled anew with the same key: nothing changed, and no operator's version is old by it.
    await enrol(yard, first)
    await enrol(yard, None)
    assert (await put(yard, 1)).status_code == 412, "who read it before the key came has to read again"
    assert (await put(yard, 2)).json()["gateway_key"] == first
    # Another gateway: its key counts.
    await enrol(yard, second)
    assert (await put(yard, 3)).status_code == 412
    assert (await put(yard, 4)).json()["gateway_key"] == second
    # An operator's word is above it.
    assert (await put(yard, 5, gateway_key=third)).json()["gateway_key"] == third


async def test_a_renewal_fills_a_gap_and_replaces_nothing(yard: Any) -> None:
    await add(yard)
    first, second = public_pem(), public_pem()
    for key in (first, second):
        await yard.db.run(
            lambda c, key=key: yard.room.director.gateway_key_told(c, TRUCK, key, replace=False)
        )
    assert (await put(yard)).json()["gateway_key"] == first


@pytest.mark.parametrize(
    "key", ["nothing", public_pem(generate_private_key(65537, 2048))], ids=["nothing", "rsa"]
)
async def test_a_key_of_another_kind_enrols_nobody(yard: Any, key: str) -> None:
    await add(yard)
    with pytest.raises(Invalid, match="manifest_key"):
        await enrol(yard, key)
    await enrol(yard, public_pem())
