"""Sending less: what the ECU holds already, what is erased anyway, and what compresses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from firmware_flashers.base import FlashError
from firmware_flashers.security import Secret
from firmware_flashers.uds_ecu import UdsEcu
from firmware_flashers.uds_flash import UdsSteps

KIB = 1024
DOCUMENT_AREA, SLOT = 0x0800_8000, 0x0801_0000
SECTORS = [SLOT, 0x0802_0000, 0x0804_0000, 0x0806_0000]


def stage(bench: Any, image: Any, **profile: Any) -> UdsSteps:
    ecu = UdsEcu(
        bench.client,
        replace(bench.profile, **profile),
        Secret(bench.secret.value),
        kind="brake-controller",
        hardware="B2",
    )
    steps = UdsSteps(ecu)
    steps.download.stage(image, lambda *_: None)
    return steps


def runs_it(bench: Any, image: Any) -> bool:
    bench.ecu.reset()
    return bool(bench.ecu.installed() == image.spec) and not bench.ecu.in_bootloader


def with_bytes(bench: Any, image: Any, changes: dict[int, bytes], version: str) -> Any:
    """The image with bytes changed, signed anew."""
    data = bytearray(image.data)
    for at, new in changes.items():
        data[at : at + len(new)] = new
    return bench.make_image(version=version, nbytes=len(data), head=bytes(data))


def sent_bytes(bench: Any, *, address: int | None = None) -> int:
    """Bytes of all TransferData, or of those behind a RequestDownload into the area from `address` on."""
    total, here = 0, address is None
    for request in bench.ecu.log:
        if request[0] == 0x34:
            here = address is None or int.from_bytes(request[3:7], "big") >= address
        if request[0] == 0x36 and here:
            total += len(request) - 2
    return total


@pytest.fixture
def big(bench: Any) -> Any:
    """An ECU that runs an image over all four sectors."""
    image = bench.make_image(version="2.0.0", nbytes=400 * KIB)
    bench.ecu.install(image)
    bench.ecu.log.clear()
    return image


def test_one_changed_sector_is_all_that_is_erased_and_sent(bench: Any, big: Any) -> None:
    new = with_bytes(bench, big, {100 * KIB: b"new"}, "2.0.1")
    stage(bench, new)
    assert bench.ecu.erased == [DOCUMENT_AREA, SECTORS[1]]
    assert sent_bytes(bench, address=SLOT) == 128 * KIB
    assert runs_it(bench, new)


def test_neighbours_go_in_one_download(bench: Any, big: Any) -> None:
    new = with_bytes(bench, big, {100 * KIB: b"new", 200 * KIB: b"new"}, "2.0.1")
    stage(bench, new)
    assert bench.ecu.erased == [DOCUMENT_AREA, *SECTORS[1:3]]
    assert len(bench.ecu.asked("34")) == 2
    assert runs_it(bench, new)


def test_what_a_longer_image_left_behind_the_end_is_seen(bench: Any, big: Any) -> None:
    new = with_bytes(bench, big, {}, "2.0.1")
    shorter = bench.make_image(version="2.0.2", nbytes=390 * KIB, head=new.data[: 390 * KIB])
    stage(bench, shorter)
    assert bench.ecu.erased == [DOCUMENT_AREA, SECTORS[3]]
    assert runs_it(bench, shorter)


def test_after_a_cut_no_sector_is_trusted_however_it_reads(bench: Any, big: Any) -> None:
    """Without a whole document nobody knows which sectors were touched last."""
    bench.ecu.put(DOCUMENT_AREA, b"\xff" * 16)
    bench.ecu.reset()
    stage(bench, big)
    assert bench.ecu.erased == [DOCUMENT_AREA, *SECTORS]
    assert runs_it(bench, big)


def test_a_sector_that_was_begun_is_not_compared_again_within_a_run(bench: Any, big: Any) -> None:
    """The session is lost in the middle; the second try erases all that was planned first."""
    new = with_bytes(bench, big, {100 * KIB: b"new", 350 * KIB: b"new"}, "2.0.1")
    seen: list[int] = []

    def script(ecu: Any, request: bytes) -> list[bytes] | None:
        if request[:2] == b"\x36\x03" and ecu.download and ecu.download[0] == SECTORS[3] and not seen:
            seen.append(1)
            ecu.reset()
            return []
        return None

    bench.ecu.script = script
    stage(bench, new)
    assert bench.ecu.erased == [DOCUMENT_AREA, SECTORS[1], SECTORS[3]] * 2
    assert runs_it(bench, new)


def test_a_lost_place_goes_on_from_the_sector_it_was_lost_in(bench: Any) -> None:
    image = bench.make_image(version="2.0.0", nbytes=400 * KIB)
    seen: list[int] = []

    def script(ecu: Any, request: bytes) -> list[bytes] | None:
        if request[0] == 0x36 and ecu.written > 250 * KIB and not seen:
            seen.append(1)
            return [bench.negative(request, 0x73)]
        return None

    bench.ecu.script = script
    stage(bench, image)
    assert bench.ecu.erased == [DOCUMENT_AREA, *SECTORS, *SECTORS[2:]]
    assert runs_it(bench, image)


def test_an_ecu_that_can_not_compare_sectors_gets_all_of_them(bench: Any, big: Any) -> None:
    new = with_bytes(bench, big, {100 * KIB: b"new"}, "2.0.1")
    refused: list[int] = []

    def script(ecu: Any, request: bytes) -> list[bytes] | None:
        if request.startswith(b"\x31\x01\x02\x02") and not refused:
            refused.append(1)
            return [bench.negative(request, 0x31)]
        return None

    bench.ecu.script = script
    stage(bench, new)
    assert bench.ecu.erased == [DOCUMENT_AREA, *SECTORS]
    assert runs_it(bench, new)


@pytest.mark.parametrize("in_bootloader", [False, True])
def test_an_image_that_the_ecu_holds_is_not_staged_again(bench: Any, big: Any, in_bootloader: bool) -> None:
    bench.ecu.in_bootloader = in_bootloader
    steps = stage(bench, big)
    assert not steps.download.touched
    assert all(request[0] == 0x22 for request in bench.ecu.log)
    steps.start.activate()
    assert bool(bench.ecu.asked("1101")) == in_bootloader
    steps.start.verify(big)


def test_the_same_bytes_under_another_version_cost_a_document(bench: Any, big: Any) -> None:
    renamed = with_bytes(bench, big, {}, "2.0.1")
    assert renamed.data == big.data
    stage(bench, renamed)
    assert bench.ecu.erased == [DOCUMENT_AREA]
    assert sent_bytes(bench, address=SLOT) == 0
    assert runs_it(bench, renamed)


def sparse(bench: Any) -> Any:
    body = bytearray(bench.make_image(version="3.0.0", nbytes=300 * KIB).data)
    body[40 * KIB : 200 * KIB] = b"\xff" * (160 * KIB)
    body[210 * KIB + 1 : 290 * KIB + 3] = b"\xff" * (80 * KIB + 2)
    return bench.make_image(version="3.0.1", nbytes=len(body), head=bytes(body))


def test_erased_stretches_are_not_sent(bench: Any) -> None:
    image = sparse(bench)
    stage(bench, image)
    assert sent_bytes(bench, address=SLOT) == 60 * KIB + 4
    assert [int.from_bytes(one[3:7], "big") - SLOT for one in bench.ecu.asked("34")][:-1] == [
        *(0, 200 * KIB, 290 * KIB)
    ]
    assert runs_it(bench, image)


def test_a_profile_may_have_all_of_it_sent(bench: Any) -> None:
    image = sparse(bench)
    bench.ecu.put(DOCUMENT_AREA, b"\xff" * 16)
    bench.ecu.reset()
    stage(bench, image, erased_run_bytes=0)
    assert sent_bytes(bench, address=SLOT) == 300 * KIB
    assert runs_it(bench, image)


def text(bench: Any) -> Any:
    body = b"".join(b"line %d of a text that compresses\n" % n for n in range(4000))
    head = bench.new.data[:512] + body
    return bench.make_image(version="4.0.0", nbytes=len(head), head=head)


def test_what_compresses_is_sent_compressed(bench: Any) -> None:
    bench.ecu.has_deflate = True
    image = text(bench)
    stage(bench, image, compression="deflate")
    assert sent_bytes(bench, address=SLOT) < len(image.data) / 4
    assert {one[1] for one in bench.ecu.asked("34")} == {0x10}
    assert runs_it(bench, image)


def test_what_does_not_compress_is_sent_plain(bench: Any) -> None:
    bench.ecu.has_deflate = True
    stage(bench, bench.new, compression="deflate")
    assert [one[1] for one in bench.ecu.asked("34")] == [0x00, 0x10]  # noise; then its document
    assert runs_it(bench, bench.new)


def test_an_ecu_without_compression_is_asked_once(bench: Any) -> None:
    image = text(bench)
    stage(bench, image, compression="deflate")
    assert [one[1] for one in bench.ecu.asked("34")] == [0x10, 0x00, 0x00]
    assert runs_it(bench, image)


def test_another_refusal_of_compression_is_told(bench: Any) -> None:
    bench.ecu.script = lambda _, request: (
        [bench.negative(request, 0x70)] if request[:2] == b"\x34\x10" else None
    )
    with pytest.raises(FlashError) as caught:
        stage(bench, text(bench), compression="deflate")
    assert caught.value.code == "upload_download_not_accepted"


def test_smaller_blocks_by_profile(bench: Any) -> None:
    stage(bench, bench.new, block_bytes=130)
    assert max(len(one) for one in bench.ecu.asked("36")) == 130


def test_content_is_proved_by_reading_it_where_the_profile_says_so(bench: Any) -> None:
    stage(bench, bench.new, proof="read")
    assert sum(len(one) for one in bench.ecu.asked("23")) > 0
    assert runs_it(bench, bench.new)

    def flip(ecu: Any, request: bytes) -> list[bytes] | None:
        if request[0] == 0x37:
            ecu.put(SLOT + 4000, bytes([ecu.content(SLOT + 4000, 1)[0] ^ 1]))
        return None

    bench.ecu.script = flip
    with pytest.raises(FlashError, match="0x08010fa0") as caught:
        stage(bench, bench.old, proof="read")
    assert caught.value.code == "not_proved"
