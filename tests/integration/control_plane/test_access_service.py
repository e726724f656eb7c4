"""The admin's token file, the memory of authentication, and a broker that is away."""

from __future__ import annotations

import asyncio
import secrets
import stat
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import pytest

from control_plane.access import accounts, store
from control_plane.access.accounts import AccountsFollower, BrokerUnavailable, OfficeAccount
from control_plane.access.idempotency import Answer, IdempotencyKey, once
from control_plane.access.service import AccessService
from control_plane.cache import MemoryCache
from control_plane.db import Connection, Database
from control_plane.devices.service import DeviceService
from control_plane.embedded.nats import BrokerUser, office_user
from control_plane.errors import Conflict, Unauthenticated
from control_plane.web import Principal
from shared.errors import ConfigError, OtaError

OFFICE = office_user("quarry.office", "$2a$04$hash")


class Broker:
    """A broker that can be away; `known` is what it works by."""

    def __init__(self) -> None:
        self.away = False
        self.known: dict[str, BrokerUser] = {}
        self.changes = 0
        self.before: Callable[[], Awaitable[None]] | None = None

    async def set_users(self, users: Iterable[BrokerUser]) -> None:
        given = list(users)
        if self.before is not None:
            await self.before()
        if self.away:
            raise OtaError("the broker is away")
        self.changes += 1
        self.known = {user.name: user for user in given}


@pytest.fixture
def broker() -> Broker:
    return Broker()


@pytest.fixture
def service(database: Database, broker: Broker) -> AccessService:
    return AccessService(database, broker, office=OFFICE)


async def _is_admin(service: AccessService, token: str) -> bool:
    try:
        return (await service.authenticate(token)).role == "admin"
    except Unauthenticated:
        return False


async def _new_device(database: Database, device_id: str) -> None:
    async with database.transaction() as connection:
        await DeviceService(database).create(connection, device_id=device_id, by="admin")


def _own() -> dict[str, str]:
    return {"http_token": secrets.token_urlsafe(32), "mqtt_password": secrets.token_urlsafe(32)}


async def test_the_admins_token_is_made_once_and_only_its_hash_is_kept(
    service: AccessService, database: Database, tmp_path: Path
) -> None:
    path = tmp_path / "admin-token"
    token = await service.ensure_admin_token(path)
    assert path.read_text() == f"{token}\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert await _is_admin(service, token)
    assert await service.ensure_admin_token(path) == token
    rows = await database.fetch("SELECT t::text AS t FROM api_tokens t")
    assert len(rows) == 1
    assert token not in rows[0]["t"]


async def test_a_lost_file_is_replaced_and_the_old_token_revoked(
    service: AccessService, tmp_path: Path
) -> None:
    path = tmp_path / "admin-token"
    old = await service.ensure_admin_token(path)
    assert await _is_admin(service, old)
    kept = path.read_bytes()
    path.unlink()
    new = await service.ensure_admin_token(path)
    assert new != old
    assert await _is_admin(service, new)
    assert not await _is_admin(service, old), "at once, though it was remembered"
    # A backup of the old file does not bring the revoked token back.
    path.write_bytes(kept)
    third = await service.ensure_admin_token(path)
    assert third not in (old, new)
    assert path.read_text().strip() == third


async def test_a_new_database_takes_the_file_that_is_there(
    service: AccessService, database: Database, tmp_path: Path
) -> None:
    path = tmp_path / "admin-token"
    token = await service.ensure_admin_token(path)
    await database.fetch("DELETE FROM api_tokens")
    assert await service.ensure_admin_token(path) == token
    assert await _is_admin(service, token)


@pytest.mark.parametrize("content", [b"", b"\n", b"short", b"admin", b"a b" * 30, b"\xff" * 43, b"x" * 129])
async def test_a_file_without_a_token_is_replaced(
    service: AccessService, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "admin-token"
    path.touch(mode=0o600)
    path.write_bytes(content)
    token = await service.ensure_admin_token(path)
    assert len(token) == 43
    assert path.read_text() == f"{token}\n"


async def test_a_file_that_others_can_read_refuses_to_start(service: AccessService, tmp_path: Path) -> None:
    path = tmp_path / "admin-token"
    await service.ensure_admin_token(path)
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="admin-token"):
        await service.ensure_admin_token(path)


async def test_two_starts_at_once_agree(database: Database, tmp_path: Path) -> None:
    path = tmp_path / "admin-token"
    services = [AccessService(database, Broker(), office=OFFICE) for _ in range(2)]
    await services[0].ensure_admin_token(path)
    tokens = await asyncio.gather(*(one.ensure_admin_token(path) for one in services))
    assert len(set(tokens)) == 1
    assert await _is_admin(services[1], tokens[0])


async def test_authentication_is_remembered_and_bounded(database: Database, tmp_path: Path) -> None:
    now = [0.0]
    known: MemoryCache[bytes, Principal] = MemoryCache(most=2, ttl_s=10, clock=lambda: now[0])
    unknown: MemoryCache[bytes, bool] = MemoryCache(most=2, ttl_s=5, clock=lambda: now[0])
    service = AccessService(database, Broker(), office=OFFICE, known=known, unknown=unknown)
    token = await service.ensure_admin_token(tmp_path / "admin-token")
    assert await _is_admin(service, token)
    for n in range(10):
        assert not await _is_admin(service, f"wrong-{n}")
    assert (len(known), len(unknown)) == (1, 2), "a flood of wrong tokens pushes no good one out"
    # Another process revokes it: this one may be wrong for as long as it remembers, no longer.
    await database.fetch("UPDATE api_tokens SET revoked_at = now()")
    assert await _is_admin(service, token)
    now[0] += 10
    assert not await _is_admin(service, token)


async def test_what_was_read_before_a_change_is_not_remembered_after_it(
    service: AccessService, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _new_device(database, "truck-001")
    first, second = _own(), _own()
    token = (await service.new_enrolment_token("truck-001")).token
    await service.enrol(enrolment_token=token, **first)
    token = (await service.new_enrolment_token("truck-001")).token
    read, may_go_on = asyncio.Event(), asyncio.Event()
    principal = store.principal

    async def slow(connection: Connection, digest: bytes) -> Principal | None:
        found = await principal(connection, digest)
        read.set()
        await may_go_on.wait()
        return found

    with monkeypatch.context() as patch:
        patch.setattr(store, "principal", slow)
        asked_old = asyncio.create_task(service.authenticate(first["http_token"]))
        await read.wait()
        read.clear()
        asked_new = asyncio.create_task(service.authenticate(second["http_token"]))
        await read.wait()
        await service.enrol(enrolment_token=token, **second)
        may_go_on.set()
        assert (await asked_old).device_id == "truck-001", "it was right when it was asked"
        with pytest.raises(Unauthenticated):
            await asked_new
    with pytest.raises(Unauthenticated):
        await service.authenticate(first["http_token"])
    assert (await service.authenticate(second["http_token"])).device_id == "truck-001"


async def test_strange_tokens_are_unknown(service: AccessService) -> None:
    for token in ("", "\x00", "x" * 100_000, "жеton", "\ud800", "' OR 1=1 --"):
        with pytest.raises(Unauthenticated):
            await service.authenticate(token)


async def test_a_truck_is_never_taken_for_an_operator(service: AccessService, database: Database) -> None:
    await _new_device(database, "admin")
    own = _own()
    token = (await service.new_enrolment_token("admin")).token
    await service.enrol(enrolment_token=token, **own)
    assert await service.authenticate(own["http_token"]) == Principal(
        name="device:admin", role="device", device_id="admin"
    )


async def test_a_broker_that_is_away_loses_no_enrolment(
    service: AccessService, broker: Broker, database: Database
) -> None:
    await _new_device(database, "truck-001")
    own = _own()
    token = (await service.new_enrolment_token("truck-001")).token
    broker.away = True
    for _ in range(2):
        with pytest.raises(BrokerUnavailable) as error:
            await service.enrol(enrolment_token=token, **own)
        assert error.value.retryable
        assert error.value.status == 503
    assert (await service.authenticate(own["http_token"])).device_id == "truck-001"
    broker.away = False
    assert (await service.enrol(enrolment_token=token, **own)).device_id == "truck-001"
    assert set(broker.known) == {"quarry.office", "truck-001"}


async def test_at_start_the_broker_gets_every_account(
    service: AccessService, broker: Broker, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("control_plane.access.broker_users.ACCOUNTS_PER_PAGE", 2)
    for n in range(5):
        await _new_device(database, f"truck-{n}")
        token = (await service.new_enrolment_token(f"truck-{n}")).token
        await service.enrol(enrolment_token=token, **_own())
    fresh = Broker()
    await AccessService(database, fresh, office=OFFICE).load_accounts()
    assert fresh.known == broker.known
    assert set(fresh.known) == {"quarry.office", *(f"truck-{n}" for n in range(5))}


async def test_many_enrolments_at_once_share_changes_and_lose_none(
    service: AccessService, broker: Broker, database: Database
) -> None:
    tokens = []
    for n in range(20):
        await _new_device(database, f"truck-{n}")
        tokens.append((await service.new_enrolment_token(f"truck-{n}")).token)

    async def enrol(token: str) -> None:
        device_id = (await service.enrol(enrolment_token=token, **_own())).device_id
        assert device_id in broker.known, "the broker knows it before the answer is sent"

    async def slow() -> None:
        await asyncio.sleep(0.02)

    broker.before = slow
    await asyncio.gather(*(enrol(token) for token in tokens))
    assert len(broker.known) == 21
    assert broker.changes < 20


async def test_who_comes_during_a_change_waits_for_the_next_one() -> None:
    truth = ["a"]
    broker = Broker()
    begun, may_go_on = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        begun.set()
        await may_go_on.wait()

    async def read() -> list[BrokerUser]:
        return [office_user(name, "x") for name in truth]

    broker.before = hold
    follower = AccountsFollower(broker, read)
    first = asyncio.create_task(follower.follow())
    await begun.wait()
    truth.append("b")
    later = [asyncio.create_task(follower.follow()) for _ in range(5)]
    may_go_on.set()
    await asyncio.gather(first, *later)
    assert set(broker.known) == {"a", "b"}
    assert broker.changes == 2


async def test_a_cancelled_caller_leaves_the_others_served() -> None:
    broker = Broker()
    begun, may_go_on = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        begun.set()
        await may_go_on.wait()

    async def read() -> list[BrokerUser]:
        return [OFFICE]

    broker.before = hold
    follower = AccountsFollower(broker, read)
    first = asyncio.create_task(follower.follow())
    await begun.wait()
    second = asyncio.create_task(follower.follow())
    first.cancel()
    may_go_on.set()
    await second
    assert broker.changes == 1
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_a_broker_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts, "BROKER_TIMEOUT_S", 0.05)
    broker = Broker()

    async def hang() -> None:
        await asyncio.Event().wait()

    async def read() -> list[BrokerUser]:
        return [OFFICE]

    broker.before = hang
    follower = AccountsFollower(broker, read)
    with pytest.raises(BrokerUnavailable):
        await follower.follow()
    broker.before = None
    await follower.follow()
    assert broker.changes == 1


def _key(text: str = "k1", request: bytes = b"r", principal: str = "admin") -> IdempotencyKey:
    return IdempotencyKey(principal=principal, key=text, request_sha256=request)


class _Act:
    """Inserts one device; counts its runs."""

    def __init__(self, device_id: str = "made") -> None:
        self.runs = 0
        self.device_id = device_id

    async def __call__(self, connection: Connection) -> Answer:
        self.runs += 1
        await connection.execute("INSERT INTO devices (device_id) VALUES ($1)", self.device_id)
        return Answer(status=201, body={"n": self.runs, "list": [1, None, "ё"]}, headers={"ETag": '"1"'})


async def test_once_means_once(database: Database) -> None:
    act = _Act()
    answers = await asyncio.gather(*(once(database, _key(), act) for _ in range(6)))
    assert act.runs == 1
    assert all(one == answers[0] for one in answers)
    with pytest.raises(Conflict) as error:
        await once(database, _key(request=b"other"), act)
    assert error.value.code == "idempotency_key_reused"
    # Another principal's key of the same name is another key.
    await once(database, _key(principal="device:t"), _Act("second"))
    assert act.runs == 1


async def test_without_a_key_every_request_counts(database: Database) -> None:
    for name in ("a", "b"):
        await once(database, None, _Act(name))
    assert (await database.fetch("SELECT count(*) AS n FROM devices"))[0]["n"] == 2
    assert (await database.fetch("SELECT count(*) AS n FROM idempotency_keys"))[0]["n"] == 0


async def test_a_failed_act_leaves_neither_effect_nor_answer(database: Database) -> None:
    async def fails(connection: Connection) -> Answer:
        await connection.execute("INSERT INTO devices (device_id) VALUES ('half')")
        raise Conflict("no")

    with pytest.raises(Conflict, match="no"):
        await once(database, _key(), fails)
    assert await database.fetch("SELECT 1 FROM devices") == []
    assert (await once(database, _key(), _Act())).status == 201


async def test_a_repeat_waits_for_the_first_and_takes_over_when_it_fails(database: Database) -> None:
    begun, may_fail = asyncio.Event(), asyncio.Event()

    async def fails_late(connection: Connection) -> Answer:
        begun.set()
        await may_fail.wait()
        raise Conflict("late")

    first = asyncio.create_task(once(database, _key(), fails_late))
    await begun.wait()
    act = _Act()
    second = asyncio.create_task(once(database, _key(), act))
    async with asyncio.timeout(10):
        while not await database.fetch(
            "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        ):
            assert not second.done()
    assert act.runs == 0
    may_fail.set()
    with pytest.raises(Conflict, match="late"):
        await first
    assert (await second).status == 201


async def test_old_keys_go_a_few_at_a_time(database: Database) -> None:
    await database.fetch(
        "INSERT INTO idempotency_keys (principal, key, request_sha256, status, body, created_at)"
        " SELECT 'admin', 'old-' || n, '', 201, '{}', now() - interval '25 hours'"
        " FROM generate_series(1, 50) n"
    )
    await once(database, _key("new-1"), _Act("a"))
    assert (await database.fetch("SELECT count(*) AS n FROM idempotency_keys"))[0]["n"] == 31
    # An old key that is still there serves nobody any more, and is free.
    act = _Act("b")
    await once(database, _key("old-50"), act)
    assert act.runs == 1


def test_the_example_account_is_one(office_account: OfficeAccount) -> None:
    assert office_account.broker_user().subscribes
