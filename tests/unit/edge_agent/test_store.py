"""The store on a real SQLite file: commands, statuses, acks, damage, locks."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge_agent.errors import OutboxFull, StoreBusy, StoreFailed, StoreMissing
from edge_agent.store.journal import Asked, Change, Report
from edge_agent.store.queue_bounds import QueueLimits
from edge_agent.store.release import Former, Release
from edge_agent.store.release_plan import PlannedTarget, ReleasePlan
from edge_agent.store.sqlite import MOST_SET_ASIDE, load_migrations
from edge_agent.store.store import Store
from shared.messages import Command, CommandTarget, Rejected, Status
from shared.states import TruckStatus, UpdateState


def make_command(job_id: str = "job-1", *, kind: str = "install", revision: int = 1, **other: Any) -> Command:
    target = CommandTarget(
        component=other.pop("component", "brakes"),
        version="2.0.0",
        sha256="a" * 64,
        length=10,
        document=other.pop("document", "{}"),
        url=f"http://office/{revision}",
    )
    fields = {"attempt": 1, "targets": () if kind == "cancel" else (target,), **other}
    return Command(command_id=f"c{revision}", job_id=job_id, revision=revision, kind=kind, **fields)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with Store.open(tmp_path / "agent.db") as opened:
        yield opened


async def statuses(store: Store) -> list[Status]:
    return await store.next_statuses(200)


async def move(store: Store, state: UpdateState, report: Report | None, **fields: Any) -> None:
    [entry] = [one for one in await store.jobs() if one.job_id == "job-1"][:1]
    await store.record(Change(entry=replace(entry, state=state, **fields), report=report))


FINISHED = Report(status=TruckStatus.DONE, step="finished", progress=100)
WRITING = Report(status=TruckStatus.FLASHING, step="writing", progress=1, thin=True)


async def test_a_command_is_kept_over_a_restart_with_its_status(tmp_path: Path) -> None:
    path = tmp_path / "data" / "agent.db"
    async with Store.open(path) as store:
        await store.take_command(make_command(revision=7))
        store_id = store.store_id
        assert store.changed.is_set()
        assert store.outbox_wake.is_set()
    async with Store.open(path) as store:
        assert (store.store_id, store.was_replaced) == (store_id, False)
        assert await store.revisions() == {"job-1": 7}
        [entry] = await store.live()
        assert (entry.state, entry.target.url) == (UpdateState.RECEIVED, "http://office/7")
        [told] = await statuses(store)
        assert (told.seq, told.status, told.step) == (1, TruckStatus.DOWNLOADING, "received")
    assert path.stat().st_mode & 0o777 == 0o600


async def test_it_is_as_durable_as_a_flash_journal_needs(tmp_path: Path) -> None:
    async with Store.open(tmp_path / "agent.db") as store:
        pragmas = await store._file.read(
            lambda db: {
                name: db.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
            }
        )
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 5000}


async def test_a_repeat_is_answered_with_the_present_state(store: Store) -> None:
    command = make_command(revision=3)
    await store.take_command(command)
    [first] = await statuses(store)
    await store.take_command(command)
    assert await statuses(store) == [first]  # it still waits: it will be told anyway
    await store.acked([first.message_id], [])
    for revision in (3, 2, 1):
        await store.take_command(make_command(revision=revision))
    [again] = await statuses(store)
    assert (again.step, again.seq > first.seq, again.message_id != first.message_id) == (
        "received",
        True,
        True,
    )
    await store.acked([again.message_id], [])
    await move(store, UpdateState.DONE, FINISHED)
    [done] = await statuses(store)
    await store.acked([done.message_id], [])
    await store.take_command(command)
    await store.take_command(make_command(revision=9, kind="cancel"))
    [told] = await statuses(store)
    assert (told.status, told.progress, told.attempt) == (TruckStatus.DONE, 100, 1)
    # An attempt has one final status: the same message, that the office may have already.
    assert (told.message_id, told.seq) == (done.message_id, done.seq)
    assert await store.live() == []


async def test_a_greater_revision_brings_a_fresh_url_and_nothing_else(store: Store) -> None:
    await store.take_command(make_command(revision=1))
    await store.take_command(make_command(revision=2, kind="url"))
    [entry] = await store.live()
    assert (entry.target.url, entry.revision) == ("http://office/2", 2)
    await store.take_command(make_command(revision=3, document='{"another": 1}'))
    [entry] = await store.live()
    assert (entry.target.url, entry.target.document) == ("http://office/2", "{}")
    assert await store.revisions() == {"job-1": 3}


async def test_a_url_command_begins_a_job_that_a_lost_database_forgot(store: Store) -> None:
    await store.take_command(make_command(revision=5, kind="url"))
    [entry] = await store.live()
    assert (entry.state, entry.revision) == (UpdateState.RECEIVED, 5)


async def test_a_greater_attempt_begins_anew(store: Store) -> None:
    await store.take_command(make_command(revision=1))
    await move(store, UpdateState.ERROR, Report(status=TruckStatus.ERROR, step="finished"), tries=4)
    await store.take_command(make_command(revision=2, attempt=2))
    [entry] = await store.live()
    assert (entry.attempt, entry.state, entry.tries) == (2, UpdateState.RECEIVED, 0)


async def test_a_greater_attempt_makes_a_live_smaller_one_give_way(store: Store) -> None:
    await store.take_command(make_command(revision=1))
    await store.take_command(make_command(revision=2, attempt=2))
    assert [(one.attempt, one.asked) for one in await store.live()] == [(1, Asked.REPLACE), (2, None)]


def make_release(job_id: str = "job-1", *, revision: int = 1, **other: Any) -> Command:
    targets = tuple(
        make_command(component=name, revision=revision).targets[0] for name in ("brakes", "display")
    )
    return make_command(job_id, revision=revision, targets=targets, **other)


async def test_a_command_of_several_components_is_kept_with_all_of_them(store: Store) -> None:
    await store.take_command(make_release())
    [entry] = await store.live()
    assert entry.is_release
    assert entry.components == {"brakes", "display"}
    release = Release.of(ReleasePlan(targets=tuple(PlannedTarget(component=n, slots=1) for n in ("a", "b"))))
    release = release.having("b", touched=True, former=Former(version="1", sha256=None, is_kept=False))
    [written] = await store.record(Change(entry=replace(entry, release=release, restarts=3)))
    assert (written.release, written.restarts) == (release, 3)
    await store.take_command(make_release(revision=2))
    [entry] = await store.live()
    assert [one.url for one in entry.targets] == ["http://office/2"] * 2
    assert entry.release == release


async def test_another_second_component_is_not_a_fresh_url(store: Store) -> None:
    await store.take_command(make_release())
    first, second = make_release(revision=2).targets
    other = msgspec.structs.replace(second, document='{"another": 1}')
    await store.take_command(make_command(revision=2, targets=(first, other)))
    [entry] = await store.live()
    assert [one.url for one in entry.targets] == ["http://office/1"] * 2


@pytest.mark.parametrize("component", ["brakes", "display"])
async def test_any_common_component_makes_the_older_job_give_way(store: Store, component: str) -> None:
    await store.take_command(make_release("job-1"))
    await store.take_command(make_command("job-2", component="wings"))
    await store.take_command(make_command("job-3", component=component))
    assert [(one.job_id, one.asked) for one in await store.live()] == [
        ("job-1", Asked.REPLACE),
        ("job-2", None),
        ("job-3", None),
    ]


async def test_an_older_database_gets_the_new_columns(tmp_path: Path) -> None:
    path = tmp_path / "agent.db"
    with sqlite3.connect(path) as db:
        db.executescript(load_migrations()[0] + "PRAGMA user_version = 1;")
        db.execute("INSERT INTO about VALUES (1, 'store-1', 0, '2027-01-01T00:00:00+00:00')")
        db.execute(
            "INSERT INTO journal (job_id, attempt, revision, state, command, created_at, updated_at)"
            " VALUES ('job-1', 1, 1, 'flashing', ?, ?, ?)",
            (make_command().to_json().decode(), *["2027-01-01T00:00:00+00:00"] * 2),
        )
    db.close()
    async with Store.open(path, read_only=True) as look:
        assert [one.restarts for one in await look.jobs()] == [0]
    async with Store.open(path) as store:
        [entry] = await store.live()
        assert (entry.state, entry.release, entry.restarts) == (UpdateState.FLASHING, None, 0)
        assert store.store_id == "store-1"


async def test_a_cancel_is_asked_of_the_updater(store: Store) -> None:
    await store.take_command(make_command(revision=1))
    await store.take_command(make_command(revision=2, kind="cancel"))
    [entry] = await store.live()
    assert (entry.asked, entry.state) == (Asked.CANCEL, UpdateState.RECEIVED)


async def test_a_cancel_before_its_install_leaves_a_tombstone(store: Store) -> None:
    await store.take_command(make_command(revision=2, kind="cancel"))
    [told] = await statuses(store)
    assert told.status is TruckStatus.CANCELLED
    await store.acked([told.message_id], [])
    await store.take_command(make_command(revision=1))
    await store.take_command(make_command(revision=3))
    assert await store.live() == []
    assert {one.status for one in await statuses(store)} == {TruckStatus.CANCELLED}
    assert await store.revisions() == {}


async def test_a_cancel_of_a_coming_attempt_stops_the_present_one_too(store: Store) -> None:
    await store.take_command(make_command(revision=1))
    await store.take_command(make_command(revision=3, attempt=2, kind="cancel"))
    [entry] = await store.live()
    assert (entry.attempt, entry.asked) == (1, Asked.CANCEL)
    await store.take_command(make_command(revision=2, attempt=2))
    assert len(await store.live()) == 1


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown requirement": ({"requires": ("install", "teleport")}, "unsupported"),
    "an unknown kind": ({"kind": "dance"}, "unsupported"),
    "diag is for later agents": ({"kind": "diag"}, "unsupported"),
    "a component twice": ({"targets": make_command().targets * 2}, "bad_message"),
    "no target": ({"targets": ()}, "bad_message"),
}


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: str(case).replace(" ", "-"))
async def test_what_it_can_not_do_is_refused_by_a_status_and_nothing_else(store: Store, case: str) -> None:
    fields, code = REFUSED[case]
    for _ in range(3):
        await store.take_command(make_command(revision=1, **fields))
    [told] = await statuses(store)
    assert told.error is not None
    assert (told.status, told.error.code) == (TruckStatus.ERROR, code)
    assert await store.jobs() == []
    await store.take_command(make_command(revision=1))
    assert len(await store.live()) == 1


async def test_a_refusal_does_not_end_a_job_that_goes_on(store: Store) -> None:
    await store.take_command(make_command(revision=1))
    await move(store, UpdateState.FLASHING, WRITING)
    await store.take_command(make_command(revision=2, kind="dance"))
    told = (await statuses(store))[-1]
    assert told.error is not None
    assert (told.status, told.error.code) == (TruckStatus.FLASHING, "unsupported")
    [entry] = await store.live()
    assert (entry.state, entry.revision) == (UpdateState.FLASHING, 1)


async def test_every_known_feature_may_be_required(store: Store) -> None:
    requires = ("install", "cancel", "fresh-url", "doc-ed25519", "uds", "release")
    await store.take_command(make_command(requires=requires))
    assert len(await store.live()) == 1


async def test_a_rejected_status_is_dropped_like_an_accepted_one(store: Store) -> None:
    await store.take_command(make_command("job-1"))
    await store.take_command(make_command("job-2"))
    one, two = await statuses(store)
    await store.acked(
        [one.message_id, "never-sent"], [Rejected(message_id=two.message_id, reason="no such job")]
    )
    assert await store.pending_statuses() == 0


async def test_seq_is_never_given_twice(tmp_path: Path) -> None:
    for expected in (1, 2, 3):
        async with Store.open(tmp_path / "agent.db") as store:
            await store.take_command(make_command(f"job-{expected}"))
            [status] = await statuses(store)
            assert status.seq == expected
            await store.acked([status.message_id], [])


async def test_progress_is_thinned_steps_and_ends_are_not(store: Store) -> None:
    await store.take_command(make_command())
    for step in ("erasing", "writing"):
        await store.tell("job-1", 1, Report(status=TruckStatus.FLASHING, step=step))
        for percent in (10, 20, 30):
            await store.tell("job-1", 1, replace(WRITING, step=step, progress=percent))
    await move(store, UpdateState.DONE, FINISHED)
    assert [(one.step, one.progress) for one in await statuses(store)] == [
        ("received", None),
        ("erasing", None),
        ("erasing", 30),
        ("writing", None),
        ("writing", 30),
        ("finished", 100),
    ]


@pytest.mark.parametrize(
    "limits",
    [QueueLimits(most_statuses=20), QueueLimits(most_status_bytes=9000)],
    ids=["rows", "bytes"],
)
async def test_a_truck_that_retries_for_weeks_off_line_stays_bounded(
    tmp_path: Path, limits: QueueLimits
) -> None:
    async with Store.open(tmp_path / "agent.db", limits=limits) as store:
        await retry_for_weeks(store)


async def retry_for_weeks(store: Store) -> None:
    await store.take_command(make_command())
    for number in range(200):
        step = ("retrying", "waiting")[number % 2]
        await store.tell("job-1", 1, Report(status=TruckStatus.FLASHING, step=step, reason=str(number)))
    assert await store.pending_statuses() <= 21
    with pytest.raises(OutboxFull):
        await store.take_command(make_command("job-2"))
    await move(store, UpdateState.DONE, FINISHED)
    told = await statuses(store)
    assert (told[0].step, told[-2].reason, told[-1].status) == ("received", "199", TruckStatus.DONE)


async def test_a_batch_fits_into_a_message_but_is_never_empty(store: Store) -> None:
    for number in range(5):
        await store.take_command(make_command(f"job-{number}"))
    assert [one.seq for one in await store.next_statuses(2)] == [1, 2]
    assert [one.seq for one in await store.next_statuses(200, most_bytes=1)] == [1]
    size = len((await store.next_statuses(1))[0].to_json())
    assert len(await store.next_statuses(200, most_bytes=3 * size + 10)) == 3


async def test_what_the_office_wrote_meanwhile_survives_the_updaters_write(store: Store) -> None:
    await store.take_command(make_command(revision=1))
    [old] = await store.live()
    await store.take_command(make_command(revision=2))
    await store.take_command(make_command(revision=3, kind="cancel"))
    [written] = await store.record(Change(entry=replace(old, state=UpdateState.DOWNLOADING)))
    assert (written.state, written.revision, written.asked) == (UpdateState.DOWNLOADING, 2, Asked.CANCEL)
    [answered] = await store.record(Change(entry=written, answers=True))
    assert answered.asked is None


async def test_a_failing_transaction_leaves_nothing(store: Store) -> None:
    await store.take_command(make_command())
    [entry] = await store.live()
    broken = Report(status=TruckStatus.DONE, step="finished", progress=object())  # type: ignore[arg-type]
    with pytest.raises(Exception, match="object"):
        await store.record(Change(entry=replace(entry, state=UpdateState.DONE), report=broken))
    [entry] = await store.live()
    assert entry.state is UpdateState.RECEIVED
    assert await store.pending_statuses() == 1


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "not a database": lambda raw: b"truck" * 2000,
    "header of nothing": lambda raw: b"SQLite format 3\x00" + b"\xff" * 8000,
    "pages overwritten": lambda raw: raw[:4096] + b"\x5a" * (len(raw) - 4096),
}


@pytest.mark.parametrize("case", DAMAGE, ids=lambda case: str(case).replace(" ", "-"))
async def test_a_damaged_database_is_set_aside_and_said(tmp_path: Path, case: str) -> None:
    path = tmp_path / "agent.db"
    async with Store.open(path) as store:
        await store.take_command(make_command())
        store_id = store.store_id
    bad = DAMAGE[case](path.read_bytes())
    path.write_bytes(bad)
    async with Store.open(path) as store:
        assert store.was_replaced
        assert store.store_id != store_id
        assert await store.live() == []
        await store.take_command(make_command())
    [aside] = tmp_path.glob("agent.db.damaged-*")
    assert aside.read_bytes()[:4096] == bad[:4096]
    async with Store.open(path) as store:
        assert not store.was_replaced
        assert len(await store.live()) == 1


async def test_damaged_databases_do_not_fill_the_disk(tmp_path: Path) -> None:
    for _ in range(MOST_SET_ASIDE + 3):
        (tmp_path / "agent.db").write_bytes(b"truck" * 2000)
        async with Store.open(tmp_path / "agent.db") as store:
            assert store.was_replaced
    assert len(list(tmp_path.glob("agent.db.damaged-*"))) == MOST_SET_ASIDE


async def test_what_is_no_damage_is_not_set_aside(tmp_path: Path) -> None:
    (tmp_path / "agent.db").mkdir()
    with pytest.raises(StoreFailed):
        async with Store.open(tmp_path / "agent.db"):
            pass
    assert list(tmp_path.glob("*damaged*")) == []


async def test_two_agents_never_share_a_journal(tmp_path: Path) -> None:
    async with Store.open(tmp_path / "agent.db"):
        with pytest.raises(StoreBusy):
            async with Store.open(tmp_path / "agent.db"):
                pass
    async with Store.open(tmp_path / "agent.db"):
        pass


async def test_people_may_look_while_the_agent_runs(tmp_path: Path) -> None:
    path = tmp_path / "agent.db"
    with pytest.raises(StoreMissing):
        async with Store.open(path, read_only=True):
            pass
    async with Store.open(path) as agent:
        await agent.take_command(make_command())
        async with Store.open(path, read_only=True) as look:
            assert look.store_id == agent.store_id
            assert [one.job_id for one in await look.jobs()] == ["job-1"]
            with pytest.raises(StoreFailed):
                await look.take_command(make_command("job-2"))


async def test_a_newer_agents_database_is_used_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "agent.db"
    async with Store.open(path) as store:
        await store.take_command(make_command())
    with sqlite3.connect(path) as db:
        db.executescript("ALTER TABLE journal ADD COLUMN slot TEXT; PRAGMA user_version = 99;")
    db.close()
    async with Store.open(path) as store:
        assert len(await store.live()) == 1
        await store.take_command(make_command("job-2"))
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (99,)
    db.close()


def test_migrations_only_ever_add() -> None:
    text = "\n".join(load_migrations()).upper()
    for word in ("DROP ", "RENAME ", "DELETE "):
        assert word not in text


async def test_manifest_numbers_grow(store: Store) -> None:
    assert [await store.next_manifest_seq() for _ in range(3)] == [1, 2, 3]


async def test_ended_jobs_are_forgotten_in_time(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_agent.store.inbox.MOST_ENDED", 3)
    for number in range(10):
        await store.take_command(make_command(f"job-{number}", kind="cancel"))
    await store.take_command(make_command("live"))
    names = [one.job_id for one in await store.jobs()]
    assert names[0] == "live"
    assert names == ["live", "job-9", "job-8"]
    assert await store.revisions() == {"live": 1}


async def test_each_status_of_a_job_of_the_trucks_own_says_what_it_is_to_install(store: Store) -> None:
    """No office knows it: from the first word to the last, thin and repeated ones too."""
    command = make_command("local-1")
    await store.take_command(command)
    await store.take_command(make_command("job-2", component="hoist"))
    [entry] = [one for one in await store.jobs() if one.job_id == "local-1"]
    await store.tell("local-1", 1, WRITING)
    await store.flush_attempt("local-1", 1)
    await store.record(Change(entry=replace(entry, state=UpdateState.DONE), report=FINISHED))
    told = await statuses(store)
    await store.acked([one.message_id for one in told], [])
    await store.take_command(command)
    told += await statuses(store)
    wanted = [one.wanted for one in told if one.job_id == "local-1"]
    assert len(wanted) == 4
    for one in wanted:
        assert one is not None
        assert [(w.component, w.version, w.sha256) for w in one] == [("brakes", "2.0.0", "a" * 64)]
    assert [one.wanted for one in told if one.job_id == "job-2"] == [None]


async def test_a_refused_job_of_the_trucks_own_says_it_too(store: Store) -> None:
    await store.take_command(make_command("local-1", requires=("wings",)))
    [told] = await statuses(store)
    assert told.status is TruckStatus.ERROR
    assert told.wanted is not None
    assert [one.component for one in told.wanted] == ["brakes"]
