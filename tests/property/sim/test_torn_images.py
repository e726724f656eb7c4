"""Cut the power anywhere, follow the rules or not: what boots is exactly what was signed, or nothing."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sim.mcu.boot import Verdict
from sim.mcu.flash import PowerCut

SLOT = 0x0801_0000
DOCUMENT = 0x0800_8000
SLOT_SECTOR_BYTES = 0x1_0000
DOCUMENT_BYTES = 0x4000

QUICK = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def area(start: int, size: int) -> bytes:
    return b"\x44" + start.to_bytes(4, "big") + size.to_bytes(4, "big")


def erase(start: int) -> list[bytes]:
    size = SLOT_SECTOR_BYTES if start == SLOT else DOCUMENT_BYTES
    return [b"\x31\x01\xff\x00" + area(start, size)]


def download(start: int, data: bytes, block: int) -> list[bytes]:
    blocks = [
        bytes([0x36, (number + 1) & 0xFF]) + data[at : at + block]
        for number, at in enumerate(range(0, len(data), block))
    ]
    return [b"\x34\x00" + area(start, len(data)), *blocks, b"\x37"]


def sequence(firmware: Any, block: int) -> list[bytes]:
    """What a tester that follows the rules asks after it was let in."""
    parts = firmware.parts
    return [
        *erase(DOCUMENT),
        *erase(SLOT),
        *download(SLOT, parts[SLOT], block),
        *download(DOCUMENT, parts[DOCUMENT], block),
        b"\x31\x01\xff\x01",
        b"\x11\x01",
    ]


def check_boot(bench: Any, world: Any) -> Verdict:
    """After power-on: the application runs only if slot and document are one of the two signed pairs."""
    bench.power_on()
    installed = bench.installed()
    assert bench.part.uds.in_bootloader == (installed.verdict is not Verdict.BOOTABLE)
    if installed.spec is not None:
        assert installed.verdict is Verdict.BOOTABLE
        assert installed.spec.sha256 in {world.old.sha256, world.new.sha256}
        assert bench.content_sha256() == installed.spec.sha256
        assert bench.ask(b"\x22\xfd\x00") == b"\x62\xfd\x00" + bytes.fromhex(installed.spec.sha256)
    else:
        assert bench.ask(b"\x22\xf1\x89") == b"\x7f\x22\x31"
    verdict: Verdict = installed.verdict
    return verdict


def test_a_sequence_without_a_cut_installs(world: Any) -> None:
    with world.bench() as bench:
        bench.enter()
        for request in sequence(world.new, 4093):
            assert bench.ask(request)[0] != 0x7F
        assert check_boot(bench, world) is Verdict.BOOTABLE
        assert bench.content_sha256() == world.new.sha256


@QUICK
@given(
    cut=st.one_of(
        st.tuples(st.just("byte"), st.integers(1, 11_000)),
        st.tuples(st.just("erase"), st.integers(1, 3)),
        st.tuples(st.just("request"), st.integers(0, 40)),
    ),
    block=st.sampled_from([512, 1023, 4093]),
)
def test_a_cut_leaves_old_none_or_new_and_a_next_run_finishes(
    world: Any, cut: tuple[str, int], block: int
) -> None:
    where, at = cut
    with world.bench() as bench:
        bench.enter()
        if where == "byte":
            bench.flash.cut_at_byte = at
        elif where == "erase":
            bench.flash.cut_at_erase = at
        try:
            for number, request in enumerate(sequence(world.new, block)):
                if where == "request" and number == at:
                    break
                bench.ask(request)
        except PowerCut:
            pass
        bench.flash.cut_at_byte = bench.flash.cut_at_erase = None
        check_boot(bench, world)
        bench.enter()
        for request in sequence(world.new, 4093):
            assert bench.ask(request)[0] != 0x7F, request[:12].hex()
        assert check_boot(bench, world) is Verdict.BOOTABLE
        assert bench.content_sha256() == world.new.sha256


STEPS = st.sampled_from(
    [
        "erase document",
        "erase slot",
        "old image",
        "new image",
        "half of the new image",
        "old document",
        "new document",
        "cut at the next byte",
        "cut in the next erase",
        "reset",
    ]
)


@QUICK
@given(steps=st.lists(STEPS, min_size=1, max_size=12), at=st.integers(1, 2000))
def test_no_order_of_steps_boots_what_was_not_signed_together(world: Any, steps: list[str], at: int) -> None:
    """A tester that knows the secret but not the rules: it may brick nothing and slip nothing in."""
    old, new = world.old.parts, world.new.parts
    half = new[SLOT][: len(new[SLOT]) // 8 * 4]
    acts = {
        "erase document": erase(DOCUMENT),
        "erase slot": erase(SLOT),
        "old image": download(SLOT, old[SLOT], 4093),
        "new image": download(SLOT, new[SLOT], 4093),
        "half of the new image": download(SLOT, half, 4093),
        "old document": download(DOCUMENT, old[DOCUMENT], 4093),
        "new document": download(DOCUMENT, new[DOCUMENT], 4093),
        "reset": [b"\x11\x01"],
    }
    with world.bench() as bench:
        bench.enter()
        for step in steps:
            if step == "cut at the next byte":
                bench.flash.cut_at_byte = at
            elif step == "cut in the next erase":
                bench.flash.cut_at_erase = 1
            else:
                try:
                    for request in acts[step]:
                        bench.ask(request)
                except PowerCut:
                    bench.power_on()
                if step == "reset" or bench.part.uds.session.name == "DEFAULT":
                    bench.flash.cut_at_byte = bench.flash.cut_at_erase = None
                    check_boot(bench, world)
                    bench.enter()
        bench.flash.cut_at_byte = bench.flash.cut_at_erase = None
        check_boot(bench, world)
