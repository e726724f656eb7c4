"""Silence, memory, compression, sparse downloads, block sizes, times: what came with flashing at speed."""

from __future__ import annotations

import hashlib
import zlib
from typing import Any

import pytest

from shared.errors import ConfigError
from sim.mcu.faults import Faults
from sim.mcu.flash import PowerCut
from sim.mcu.memory import KIB, Area, MemoryMap
from sim.mcu.profile import Downloads, Timing

SLOT = 0x0801_0000
DEFLATE = Downloads(deflate=True)


def area(start: int, size: int) -> bytes:
    return b"\x44" + start.to_bytes(4, "big") + size.to_bytes(4, "big")


def deflated(data: bytes, *, window: int = 12) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -window)
    return packer.compress(data) + packer.flush()


# --- silence ------------------------------------------------------------------------------------


def silence(ecu: Any) -> None:
    ecu.ask("1003")
    assert ecu.ask("280101") == "6801"
    assert ecu.ask("8502") == "c502"
    assert (ecu.part.uds.quiet, ecu.part.uds.dtcs_off) == (True, True)


@pytest.mark.parametrize("back", ["1001", "1101", "s3", "power"])
def test_silence_ends_by_itself(ecu: Any, back: str) -> None:
    silence(ecu)
    match back:
        case "s3":
            ecu.now += 5.0
            ecu.ask("3e80")
        case "power":
            ecu.power_on()
        case _:
            ecu.ask(back)
    assert (ecu.part.uds.quiet, ecu.part.uds.dtcs_off) == (False, False)


def test_silence_outlasts_tester_present_and_a_session_that_begins_again(ecu: Any) -> None:
    silence(ecu)
    for _ in range(5):
        ecu.now += 4.0
        assert ecu.all_answers("3e80", functional=True) == []
    ecu.ask("1003")
    assert (ecu.part.uds.quiet, ecu.part.uds.dtcs_off) == (True, True)
    assert ecu.ask("280001") == "6800"
    assert ecu.ask("8501") == "c501"
    assert (ecu.part.uds.quiet, ecu.part.uds.dtcs_off) == (False, False)


def test_silence_may_be_asked_of_all(ecu: Any) -> None:
    ecu.ask("1003")
    answers = [ecu.all_answers(one, functional=True) for one in ("288101", "8582", "280301", "280102")]
    assert answers == [[]] * 4
    assert (ecu.part.uds.quiet, ecu.part.uds.dtcs_off) == (True, True)


# --- compression --------------------------------------------------------------------------------


def open_download(ecu: Any, size: int, dfi: int = 0x10, start: int = SLOT) -> str:
    answer: str = ecu.ask(bytes([0x34, dfi]) + area(start, size))
    return answer


@pytest.fixture
def packed_ecu(make_ecu: Any, signer: Any) -> Any:
    ecu = make_ecu(holds=signer.sign(), downloads=DEFLATE)
    ecu.prepare()
    ecu.erase(SLOT, 0x1_0000)
    return ecu


@pytest.mark.parametrize("block", [1, 3, 100, 4093])
def test_what_comes_compressed_is_written_plain(packed_ecu: Any, block: int) -> None:
    data = (b"quarry " * 40 + bytes(range(256)))[: 500 // 4 * 4]
    stream = deflated(data)
    assert open_download(packed_ecu, len(data)) == "74200fff"
    for number, at in enumerate(range(0, len(stream), block)):
        counter = (number + 1) & 0xFF
        request = bytes([0x36, counter]) + stream[at : at + block]
        assert packed_ecu.ask(request) == f"76{counter:02x}"
        assert packed_ecu.ask(request) == f"76{counter:02x}", "a repeat is not unpacked again"
    assert packed_ecu.ask("37") == "77"
    assert packed_ecu.flash.read(SLOT, len(data)) == data


BROKEN_STREAMS: dict[str, tuple[bytes, str, str]] = {
    # what is sent for 256 zeros: stream, answer to the block, answer to 37 after it
    "more than announced": (deflated(bytes(257)), "7f3671", "7f3724"),
    "a bomb": (deflated(bytes(10_000_000)), "7f3671", "7f3724"),
    "less than announced": (deflated(bytes(255)), "7601", "7f3724"),
    "bytes behind the end": (deflated(bytes(256)) + b"more", "7f3671", "7f3724"),
    "no deflate": (b"\xff" * 40, "7f3671", "7f3724"),
    "a zlib header": (zlib.compress(bytes(256)), "7f3671", "7f3724"),
    "exactly": (deflated(bytes(256)), "7601", "77"),
}


@pytest.mark.parametrize("case", BROKEN_STREAMS)
def test_a_broken_stream_ends_the_download(packed_ecu: Any, case: str) -> None:
    stream, answer, end = BROKEN_STREAMS[case]
    assert open_download(packed_ecu, 256) == "74200fff"
    assert packed_ecu.ask(b"\x36\x01" + stream[:4093]) == answer
    assert packed_ecu.ask("37") == end


def test_a_wider_window_than_the_ecu_has_is_refused(packed_ecu: Any) -> None:
    far = hashlib.shake_256(b"far").digest(6000)
    data = far + far
    stream = deflated(data, window=15)
    assert open_download(packed_ecu, len(data)) == "74200fff"
    answers = [
        packed_ecu.ask(bytes([0x36, number + 1]) + stream[at : at + 4093])
        for number, at in enumerate(range(0, len(stream), 4093))
    ]
    assert answers[0] == "7601"
    assert "7f3671" in answers


@pytest.mark.parametrize("dfi", [0x01, 0x11, 0x20, 0xFF])
def test_other_formats_are_refused(packed_ecu: Any, dfi: int) -> None:
    assert open_download(packed_ecu, 256, dfi) == "7f3431"
    assert open_download(packed_ecu, 256, 0x00) == "74200fff"


# --- several downloads, blocks, words -----------------------------------------------------------


def test_several_downloads_after_one_erase_leave_the_rest_erased(ecu: Any) -> None:
    ecu.prepare()
    ecu.erase(SLOT, 0x1_0000)
    ecu.download(SLOT + 0x400, b"\x11" * 512)
    ecu.download(SLOT, b"\x22" * 64)
    ecu.download(SLOT + 0x2000, b"\x33" * 64)
    expected = b"\x22" * 64 + b"\xff" * 0x3C0 + b"\x11" * 512
    assert ecu.flash.read(SLOT, len(expected)) == expected
    assert open_download(ecu, 64, 0x00, SLOT + 0x5FC) == "74200fff"
    assert ecu.ask(b"\x36\x01" + bytes(64)) == "7f3672", "the first word was written before"


def test_an_ecu_says_the_block_that_it_takes_and_keeps_to_it(make_ecu: Any) -> None:
    ecu = make_ecu(downloads=Downloads(block_bytes=130))
    ecu.prepare()
    ecu.erase(SLOT, 0x1_0000)
    assert open_download(ecu, 512, 0x00) == "74200082"
    assert ecu.ask(b"\x36\x01" + bytes(129)) == "7f3613"
    assert ecu.ask(b"\x36\x01" + bytes(128)) == "7601"
    with pytest.raises(ConfigError, match="block_bytes"):
        Downloads(block_bytes=0x1_0000)


def test_memory_is_read_as_it_is_and_as_much_as_a_message_holds(ecu: Any) -> None:
    ecu.prepare()
    ecu.erase(SLOT, 0x1_0000)
    data = bytes(range(250)) * 17
    ecu.download(SLOT + 4, data + b"\x11\x22")
    for start, size in ((SLOT + 4, 4093), (SLOT + 7, 3), (SLOT + 0xFFFC, 4)):
        answer = bytes.fromhex(ecu.ask(b"\x23" + area(start, size)))
        assert answer == b"\x63" + ecu.flash.read(start, size)
    assert ecu.ask(b"\x23" + area(0x0800_8000, 4)) != "63ffffffff", "the document too"
    open_download(ecu, 8, 0x00, SLOT + 0x8000)
    assert ecu.ask(b"\x23" + area(SLOT + 4, 2)) == "630001", "and while a download is open"


BIG = MemoryMap(
    sectors=(16 * KIB,) * 4 + (64 * KIB,) + (128 * KIB,) * 16,
    slot=Area(start=0x0802_0000, end=0x0822_0000),
    word_bytes=32,
)


def test_a_slot_of_two_mebibytes_of_long_words(make_ecu: Any) -> None:
    ecu = make_ecu(memory=BIG)
    ecu.prepare()
    ecu.erase(0x0802_0000, 128 * KIB)
    ecu.erase(0x0820_0000, 128 * KIB)
    assert open_download(ecu, 48, 0x00, 0x0802_0000) == "7f3431", "no whole words"
    assert open_download(ecu, 64, 0x00, 0x0802_0010) == "7f3431"
    data = bytes(range(160)) * 2
    ecu.download(0x0802_0020, data, block=50)
    assert ecu.flash.read(0x0802_0020, 320) == data
    last = 0x0822_0000 - 32
    ecu.download(last, bytes(32))
    assert ecu.ask(b"\x31\x01\xff\x00" + area(0x0802_0000, 0x20_0000)) == "7101ff0000"
    ecu.ask("2701")
    wrong = [ecu.ask(b"\x27\x02" + bytes(16)) for _ in range(2)]
    assert wrong == ["7f2724"] * 2, "unlocked already: no seed waits for a key"


# --- times --------------------------------------------------------------------------------------


def test_a_block_is_answered_when_it_is_programmed(make_ecu: Any) -> None:
    ecu = make_ecu(timing=Timing(program_s=0.03))
    ecu.prepare()
    ecu.erase(SLOT, 0x1_0000)
    open_download(ecu, 16, 0x00)
    began = ecu.now
    assert [one.hex() for one in ecu.all_answers(b"\x36\x01" + bytes(8))] == ["7f3678", "7601"]
    assert ecu.now == pytest.approx(began + 0.03)
    assert len(ecu.all_answers(b"\x36\x01" + bytes(8))) == 1
    assert ecu.now == pytest.approx(began + 0.03), "the same block again takes no time"


def test_a_pipelined_ecu_answers_first_and_programs_while_it_receives(make_ecu: Any) -> None:
    ecu = make_ecu(timing=Timing(program_s=0.03), downloads=Downloads(pipelined=True))
    ecu.prepare()
    ecu.erase(SLOT, 0x1_0000)
    open_download(ecu, 24, 0x00)
    began = ecu.now
    assert [one.hex() for one in ecu.all_answers(b"\x36\x01" + b"\x11" * 8)] == ["7601"]
    assert ecu.now == began
    assert ecu.flash.read(SLOT, 8) == b"\x11" * 8
    assert [one.hex() for one in ecu.all_answers(b"\x36\x02" + b"\x22" * 8)] == ["7f3678", "7602"]
    assert ecu.now == pytest.approx(began + 0.03), "it waits for the first block's programming"
    ecu.now += 0.05
    assert [one.hex() for one in ecu.all_answers(b"\x36\x03" + b"\x33" * 8)] == ["7603"]
    assert [one.hex() for one in ecu.all_answers("37")] == ["7f3778", "77"], "and before the end"
    assert ecu.flash.read(SLOT, 24) == b"\x11" * 8 + b"\x22" * 8 + b"\x33" * 8


def test_a_pipelined_ecu_tells_later_what_could_not_be_programmed(make_ecu: Any) -> None:
    ecu = make_ecu(downloads=Downloads(pipelined=True))
    ecu.prepare()
    ecu.erase(SLOT, 0x1_0000)
    ecu.download(SLOT, bytes(8))
    open_download(ecu, 16, 0x00)
    assert ecu.ask(b"\x36\x01" + bytes(8)) == "7601"
    assert ecu.ask(b"\x36\x02" + bytes(8)) == "7f3672"
    assert ecu.ask("37") == "7f3724"
    open_download(ecu, 8, 0x00)
    assert ecu.ask(b"\x36\x01" + bytes(8)) == "7601"
    assert ecu.ask("37") == "7f3772"


def test_what_a_pipelined_ecu_had_answered_is_lost_with_its_power(make_ecu: Any) -> None:
    ecu = make_ecu(downloads=Downloads(pipelined=True))
    ecu.prepare()
    ecu.erase(SLOT, 0x1_0000)
    open_download(ecu, 16, 0x00)
    answers: list[bytes] = []

    def cut(answer: bytes) -> None:
        answers.append(answer)
        raise PowerCut

    with pytest.raises(PowerCut):
        ecu.part.uds.handle(b"\x36\x01" + bytes(8), functional=False, reply=cut)
    assert answers == [b"\x76\x01"]
    assert ecu.flash.read(SLOT, 8) == b"\xff" * 8


def test_each_sector_of_an_erase_takes_its_time(make_ecu: Any) -> None:
    ecu = make_ecu(timing=Timing(erase_s=0.8))
    ecu.prepare()
    began = ecu.now
    answers = ecu.all_answers(b"\x31\x01\xff\x00" + area(SLOT, 0x7_0000))
    assert ecu.now == pytest.approx(began + 4 * 0.8)
    assert [one.hex() for one in answers] == ["7f3178", "7101ff0000"]


def test_a_stuck_ecu_says_pending_for_ever(make_ecu: Any) -> None:
    ecu = make_ecu(faults=Faults(stuck_at_request=2))
    assert ecu.ask("3e00") == "7e00"
    answers: list[bytes] = []

    def take(answer: bytes) -> None:
        answers.append(answer)
        if len(answers) == 100:
            raise PowerCut

    with pytest.raises(PowerCut):
        ecu.part.uds.handle(b"\x3e\x00", functional=False, reply=take)
    assert set(answers) == {b"\x7f\x3e\x78"}
    assert ecu.now == pytest.approx(1000 + 99)


def test_any_refusal_can_be_ordered(make_ecu: Any) -> None:
    ecu = make_ecu(faults=Faults(refuse_at_request=2, refuse_with=0x93))
    assert [ecu.ask("1003") for _ in range(3)] == ["5003003201f4", "7f1093", "5003003201f4"]


def test_a_write_protected_sector_is_a_programming_failure(make_ecu: Any) -> None:
    ecu = make_ecu()
    ecu.prepare()
    ecu.flash.write_protect([4])
    assert ecu.ask(b"\x31\x01\xff\x00" + area(SLOT, 0x1_0000)) == "7f3172"
    open_download(ecu, 8, 0x00)
    assert ecu.ask(b"\x36\x01" + bytes(8)) == "7f3672"


ID_CASES = {
    "mixed": {"request_id": 0x7E0, "response_id": 0x18DAF110, "functional_id": 0x7DF},
    "29-bit with one short": {"request_id": 0x18DA10F1, "response_id": 0x7E8, "functional_id": 0x18DB33F1},
    "the same twice": {"request_id": 0x7E0, "response_id": 0x7E0},
    "over 29 bits": {"request_id": 0x2000_0000, "response_id": 1 << 30, "functional_id": 1 << 31},
}


@pytest.mark.parametrize("words", ID_CASES.values(), ids=ID_CASES)
def test_impossible_ids_are_refused(make_ecu: Any, words: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="CAN ids"):
        make_ecu(**words)
    assert make_ecu(
        request_id=0x18DA10F1, response_id=0x18DAF110, functional_id=0x18DB33F1
    ).settings.extended_ids
