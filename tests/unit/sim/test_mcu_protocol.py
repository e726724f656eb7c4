"""The simulated bootloader is strict: each rule of the profile, and what a wrong request is told."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from shared.trust.keys import new_key
from sim.mcu.boot import Verdict
from sim.mcu.faults import Faults
from sim.mcu.flash import PowerCut
from sim.mcu.images import build_image
from sim.mcu.profile import Timing
from sim.mcu.security import key_of

SLOT = "08010000"
DOCUMENT = "08008000"

# Where a case begins.
STATES: dict[str, Callable[[Any], object]] = {
    "application": lambda ecu: None,
    "extended": lambda ecu: ecu.ask("1003"),
    "programming": lambda ecu: (ecu.ask("1003"), ecu.ask("1002")),
    "unlocked": lambda ecu: ecu.unlock(),
    "prepared": lambda ecu: ecu.prepare(),
    "erased": lambda ecu: (ecu.prepare(), ecu.erase(0x0801_0000, 0x1_0000)),
    "downloading": lambda ecu: (
        ecu.prepare(),
        ecu.erase(0x0801_0000, 0x1_0000),
        ecu.ask(f"340044{SLOT}00000008"),
        ecu.ask("360111223344"),
    ),
}

CASES = [
    # what, where, request, answer
    ("unknown service", "application", "8702", "7f8711"),
    ("session: default", "extended", "1001", "5001003201f4"),
    ("session: extended", "application", "1003", "5003003201f4"),
    ("session: programming from default", "application", "1002", "7f107e"),
    ("session: programming again", "programming", "1002", "5002003201f4"),
    ("session: unknown", "application", "1004", "7f1012"),
    ("session: nothing", "application", "10", "7f1013"),
    ("session: too long", "application", "100300", "7f1013"),
    ("session: suppressed", "application", "1083", ""),
    ("reset: hard", "application", "1101", "5101"),
    ("reset: other", "application", "1102", "7f1112"),
    ("reset: too long", "application", "110100", "7f1113"),
    ("tester present", "application", "3e00", "7e00"),
    ("tester present: suppressed", "application", "3e80", ""),
    ("tester present: other", "application", "3e01", "7f3e12"),
    ("tester present: nothing", "application", "3e", "7f3e13"),
    ("read: kind", "application", "22f197", "62f197" + b"brake-controller".hex()),
    ("read: hardware", "application", "22f191", "62f191" + b"rev-b".hex()),
    ("read: version", "application", "22f189", "62f189" + b"1.0.0".hex()),
    ("read: serial", "application", "22f18c", "62f18c" + b"S-77".hex()),
    ("read: application runs", "application", "22fd01", "62fd0100"),
    ("read: bootloader runs", "programming", "22fd01", "62fd0101"),
    ("read: version in the bootloader", "programming", "22f189", "62f189" + b"1.0.0".hex()),
    ("read: unknown", "application", "22f190", "7f2231"),
    ("read: half an identifier", "application", "22f1", "7f2213"),
    ("read: two identifiers", "application", "22f197f191", "7f2213"),
    ("communication: silence", "extended", "280101", "6801"),
    ("communication: sound again", "extended", "280001", "6800"),
    ("communication: in the bootloader", "programming", "280101", "6801"),
    ("communication: suppressed", "extended", "288101", ""),
    ("communication: default session", "application", "280101", "7f287f"),
    ("communication: disable reception", "extended", "280301", "7f2812"),
    ("communication: enhanced address", "extended", "2804010001", "7f2812"),
    ("communication: network management", "extended", "280102", "7f2831"),
    ("communication: another subnet", "extended", "280111", "7f2831"),
    ("communication: short", "extended", "2801", "7f2813"),
    ("communication: long", "extended", "28010100", "7f2813"),
    ("communication: nothing", "extended", "28", "7f2813"),
    ("trouble codes: off", "extended", "8502", "c502"),
    ("trouble codes: on", "extended", "8501", "c501"),
    ("trouble codes: suppressed", "extended", "8582", ""),
    ("trouble codes: default session", "application", "8502", "7f857f"),
    ("trouble codes: other", "extended", "8503", "7f8512"),
    ("trouble codes: an option", "extended", "8502ffffff", "7f8513"),
    ("trouble codes: nothing", "extended", "85", "7f8513"),
    ("memory: locked", "programming", f"2344{SLOT}00000004", "7f2333"),
    ("memory: in the application", "extended", f"2344{SLOT}00000004", "7f237f"),
    ("memory: slot", "unlocked", f"2344{SLOT}00000004", "6300000220"),
    ("memory: more than fits", "unlocked", f"2344{SLOT}00000ffe", "7f2331"),
    ("memory: nothing", "unlocked", f"2344{SLOT}00000000", "7f2331"),
    ("memory: bootloader", "unlocked", "23440800000000000004", "7f2331"),
    ("memory: bootloader's state", "unlocked", "23440800c00000000004", "7f2331"),
    ("memory: RAM", "unlocked", "23442000000000000004", "7f2331"),
    ("memory: past the slot", "unlocked", "23440807fffe00000004", "7f2331"),
    ("memory: other format", "unlocked", "2324080100000004", "7f2313"),
    ("memory: format of another length", "unlocked", f"2343{SLOT}00000004", "7f2331"),
    ("authentication: not here", "programming", "2908", "7f2911"),
    ("preconditions: good", "extended", "31010203", "7101020300"),
    ("preconditions: default session", "application", "31010203", "7f317f"),
    ("preconditions: programming session", "programming", "31010203", "7f3131"),
    ("preconditions: too long", "extended", "3101020300", "7f3113"),
    ("routine: stop", "extended", "31020203", "7f3112"),
    ("routine: unknown", "extended", "31010204", "7f3131"),
    ("routine: short", "extended", "310102", "7f3113"),
    ("security: in the application", "extended", "2701", "7f277f"),
    ("security: key before seed", "programming", "2702" + "00" * 16, "7f2724"),
    ("security: other level", "programming", "2703", "7f2712"),
    ("security: short key", "programming", "2702" + "00" * 15, "7f2713"),
    ("security: unlocked already", "unlocked", "2701", "6701" + "00" * 16),
    ("write: locked", "programming", "2ef15a41", "7f2e33"),
    ("write: in the application", "extended", "2ef15a41", "7f2e7f"),
    ("write: empty fingerprint", "unlocked", "2ef15a", "7f2e13"),
    ("write: 33 bytes", "unlocked", "2ef15a" + "41" * 33, "7f2e13"),
    ("write: 32 bytes", "unlocked", "2ef15a" + "41" * 32, "6ef15a"),
    ("write: not ASCII", "unlocked", "2ef15a80", "7f2e31"),
    ("write: other identifier", "unlocked", "2ef19741", "7f2e31"),
    ("erase: locked", "programming", f"3101ff0044{DOCUMENT}00004000", "7f3133"),
    ("erase: without fingerprint", "unlocked", f"3101ff0044{DOCUMENT}00004000", "7f3122"),
    ("erase: document area", "prepared", f"3101ff0044{DOCUMENT}00004000", "7101ff0000"),
    ("erase: part of the document area", "prepared", f"3101ff0044{DOCUMENT}00002000", "7f3131"),
    ("erase: slot", "prepared", f"3101ff0044{SLOT}00070000", "7101ff0000"),
    ("erase: half a sector", "prepared", f"3101ff0044{SLOT}00008000", "7f3131"),
    ("erase: begins in a sector", "prepared", "3101ff00440801800000008000", "7f3131"),
    ("erase: nothing", "prepared", f"3101ff0044{SLOT}00000000", "7f3131"),
    ("erase: bootloader", "prepared", "3101ff00440800000000004000", "7f3131"),
    ("erase: bootloader's state", "prepared", "3101ff00440800c00000004000", "7f3131"),
    ("erase: all", "prepared", "3101ff00440800000000080000", "7f3131"),
    ("erase: document and slot", "prepared", f"3101ff0044{DOCUMENT}00018000", "7f3131"),
    ("erase: past the end", "prepared", f"3101ff0044{SLOT}00080000", "7f3131"),
    ("erase: address wraps", "prepared", "3101ff0044fffffff000000010", "7f3131"),
    ("erase: other format", "prepared", f"3101ff0033{SLOT}00010000", "7f3131"),
    ("erase: short", "prepared", f"3101ff0044{SLOT}000100", "7f3113"),
    ("erase: extended session", "extended", f"3101ff0044{SLOT}00010000", "7f3131"),
    ("download: locked", "programming", f"340044{SLOT}00000100", "7f3433"),
    ("download: in the application", "extended", f"340044{SLOT}00000100", "7f347f"),
    ("download: good", "prepared", f"340044{SLOT}00000100", "74200fff"),
    ("download: again", "downloading", f"340044{SLOT}00000100", "74200fff"),
    ("download: compressed", "prepared", f"341044{SLOT}00000100", "7f3431"),
    ("download: other format", "prepared", f"340034{SLOT}00000100", "7f3431"),
    ("download: short", "prepared", f"340044{SLOT}000001", "7f3413"),
    ("download: bootloader", "prepared", "3400440800000000000100", "7f3431"),
    ("download: RAM", "prepared", "3400442000000000000100", "7f3431"),
    ("download: past the slot", "prepared", "3400440807ff0000000104", "7f3431"),
    ("download: not a word", "prepared", f"340044{SLOT}00000102", "7f3431"),
    ("download: nothing", "prepared", f"340044{SLOT}00000000", "7f3431"),
    ("transfer: no download", "prepared", "360100112233", "7f3624"),
    ("transfer: in the application", "extended", "360100112233", "7f367f"),
    ("transfer: next", "downloading", "360255667788", "7602"),
    ("transfer: same again", "downloading", "360111223344", "7601"),
    ("transfer: same counter, other bytes", "downloading", "360111223345", "7f3673"),
    ("transfer: counter skipped", "downloading", "360355667788", "7f3673"),
    ("transfer: counter back", "downloading", "360055667788", "7f3673"),
    ("transfer: more than announced", "downloading", "36025566778899", "7f3671"),
    ("transfer: nothing", "downloading", "3602", "7f3613"),
    ("exit: incomplete", "downloading", "37", "7f3724"),
    ("exit: no download", "prepared", "37", "7f3724"),
    ("exit: too long", "downloading", "3700", "7f3713"),
    ("check: while downloading", "downloading", f"3101020244{SLOT}00000008" + "00" * 32, "7f3124"),
    ("check: differs", "prepared", f"3101020244{SLOT}00000008" + "00" * 32, "7101020201"),
    ("check: locked", "programming", f"3101020244{SLOT}00000008" + "00" * 32, "7f3133"),
    ("check: bootloader", "prepared", "31010202440800000000000008" + "00" * 32, "7f3131"),
    ("check: short hash", "prepared", f"3101020244{SLOT}00000008" + "00" * 31, "7f3113"),
    ("dependencies: as before", "prepared", "3101ff01", "7101ff0100"),
    ("dependencies: locked", "programming", "3101ff01", "7f3133"),
    ("dependencies: while downloading", "downloading", "3101ff01", "7f3124"),
    ("dependencies: slot erased", "erased", "3101ff01", "7101ff0104"),
]


@pytest.mark.parametrize(("where", "request_", "answer"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_each_rule(ecu: Any, where: str, request_: str, answer: str) -> None:
    STATES[where](ecu)
    assert ecu.ask(request_) == answer


def test_the_whole_sequence_updates(ecu: Any, signer: Any) -> None:
    new = signer.sign("1.1.0", image=build_image("1.1.0", 20_000, 0x0801_0000))
    ecu.program(new)
    assert ecu.resets == 2
    assert ecu.ask("22f189") == "62f189" + b"1.1.0".hex()
    assert ecu.ask("22fd00") == "62fd00" + new.spec.sha256
    assert ecu.ask("22fd01") == "62fd0100"
    assert ecu.part.programmer.programmed_bytes == 20_000


def test_an_empty_part_waits_in_its_bootloader(make_ecu: Any) -> None:
    ecu = make_ecu()
    assert ecu.ask("22fd01") == "62fd0101"
    assert ecu.ask("22f189") == "7f2231"
    assert ecu.ask("22fd00") == "7f2231"
    ecu.prepare()
    assert ecu.ask("3101ff01") == "7101ff0101"


def test_the_application_answers_pending_before_it_enters_the_bootloader(ecu: Any) -> None:
    ecu.ask("1003")
    assert [one.hex() for one in ecu.all_answers("1002")] == ["7f1078", "5002003201f4"]
    assert ecu.resets == 1
    ecu.ask("1003")
    assert [one.hex() for one in ecu.all_answers("1002")] == ["5002003201f4"], "it is there already"


def test_what_was_announced_is_answered_though_suppressed(ecu: Any) -> None:
    ecu.ask("1003")
    assert [one.hex() for one in ecu.all_answers("1082")] == ["7f1078", "5002003201f4"]


def test_erase_answers_pending_while_it_takes_long(make_ecu: Any, signer: Any) -> None:
    ecu = make_ecu(holds=signer.sign(), timing=Timing(erase_s=2.5), faults=Faults(pending_s=3))
    ecu.prepare()
    began = ecu.now
    answers = ecu.all_answers(f"3101ff0044{DOCUMENT}00004000")
    assert [one.hex() for one in answers] == ["7f3178"] * 5 + ["7101ff0000"]
    assert ecu.now - began == 5.5


def test_programming_unerased_flash_ends_the_download(ecu: Any) -> None:
    ecu.prepare()
    before = ecu.flash.read(0x0801_0000, 64)
    assert ecu.ask(f"340044{SLOT}00000008") == "74200fff"
    assert ecu.ask("360111223344") == "7f3672"
    assert ecu.ask("360111223344") == "7f3624"
    assert ecu.flash.read(0x0801_0000, 64) == before


def test_the_block_counter_wraps_from_ff_to_00(ecu: Any) -> None:
    ecu.prepare()
    ecu.erase(0x0801_0000, 0x1_0000)
    data = bytes(range(256)) * 3
    ecu.download(0x0801_0000, data, block=3)  # 256 blocks, none of whole words
    assert ecu.flash.read(0x0801_0000, len(data)) == data


def test_a_repeated_block_is_written_once(ecu: Any) -> None:
    ecu.prepare()
    ecu.erase(0x0801_0000, 0x1_0000)
    ecu.ask(f"340044{SLOT}0000000c")
    for request in ("360100010203", "360100010203", "360204050607", "360204050607", "36030809", "36030809"):
        assert ecu.ask(request) == f"76{request[2:4]}"
    assert ecu.ask("36040a0b") == "7604"
    assert ecu.ask("36040a0b") == "7604"
    assert ecu.ask("37") == "77"
    assert ecu.flash.read(0x0801_0000, 12) == bytes(range(12))


@pytest.mark.parametrize(
    ("faults", "precondition"),
    [(Faults(moving=True), "7f3188"), (Faults(engine_running=True), "7f3183")],
    ids=["moving", "engine"],
)
def test_a_vehicle_in_use_is_not_programmed(
    make_ecu: Any, signer: Any, faults: Faults, precondition: str
) -> None:
    ecu = make_ecu(holds=signer.sign(), faults=faults)
    ecu.ask("1003")
    assert ecu.ask("31010203") == precondition
    assert ecu.ask("1002") == "7f1022"
    assert ecu.ask("1101") == "7f1122"
    assert ecu.ask("22fd01") == "62fd0100"
    assert ecu.resets == 0


def test_a_busy_part_says_so_and_then_serves(make_ecu: Any, signer: Any) -> None:
    ecu = make_ecu(holds=signer.sign(), faults=Faults(busy=2))
    assert [ecu.ask("3e00") for _ in range(3)] == ["7f3e21", "7f3e21", "7e00"]


def test_a_wrong_counter_is_answered_on_order_only_once(make_ecu: Any, signer: Any) -> None:
    ecu = make_ecu(holds=signer.sign(), faults=Faults(wrong_counter_at_block=2))
    ecu.prepare()
    ecu.erase(0x0801_0000, 0x1_0000)
    ecu.ask(f"340044{SLOT}0000000c")
    answers = [ecu.ask(one) for one in ("360100000000", "360200000000", "360200000000", "360300000000")]
    assert answers == ["7601", "7603", "7602", "7603"]


def test_a_reset_in_the_middle_forgets_everything(make_ecu: Any, signer: Any) -> None:
    ecu = make_ecu(holds=signer.sign(), faults=Faults(reset_at_block=2))
    ecu.prepare()
    ecu.erase(0x0801_0000, 0x1_0000)
    ecu.ask(f"340044{SLOT}0000000c")
    assert ecu.ask("360100000000") == "7601"
    assert ecu.ask("360200000000") == ""
    assert ecu.ask("360200000000") == "7f367f"
    assert ecu.ask("22fd01") == "62fd0101", "the slot was erased: nothing to boot"


@pytest.mark.parametrize("leave", ["1001", "1003", "1002"], ids=["default", "extended", "programming again"])
def test_a_download_does_not_outlive_its_session(ecu: Any, leave: str) -> None:
    STATES["downloading"](ecu)
    ecu.ask(leave)
    if leave != "1002":
        STATES["programming"](ecu)
    assert ecu.ask("360255667788") == "7f3624"
    assert ecu.ask("2ef15a41") == "7f2e33", "nor does the access"


# --- sessions in time ---------------------------------------------------------------------------


def test_s3_ends_a_session_and_locks(ecu: Any) -> None:
    ecu.prepare()
    ecu.now += 4.9
    assert ecu.ask("3e80") == ""
    ecu.now += 4.9
    assert ecu.ask("2701") == "6701" + "00" * 16, "still unlocked: TesterPresent keeps the session"
    ecu.now += 5.0
    assert ecu.ask("2701") == "7f277f"
    assert ecu.ask("22fd01") == "62fd0101", "falls back to the bootloader's default session"
    ecu.ask("1003")
    ecu.ask("1002")
    assert ecu.ask("2701") != "6701" + "00" * 16


def test_functional_requests_keep_the_session_and_are_not_refused(ecu: Any) -> None:
    ecu.prepare()
    for _ in range(3):
        ecu.now += 4.0
        assert ecu.all_answers("3e80", functional=True) == []
    assert ecu.ask("2701") == "6701" + "00" * 16
    for request in ("8702", "2201", "22f190", "1002", "1101", "2701", "3e01", "1004"):
        expected = ["7f2213"] if request == "2201" else []
        assert [one.hex() for one in ecu.all_answers(request, functional=True)] == expected, request


# --- security access ----------------------------------------------------------------------------


def wrong_key(ecu: Any) -> str:
    seed = ecu.ask("2701")
    if not seed.startswith("6701"):
        return str(seed)
    return str(ecu.ask("2702" + "5a" * 16))


def test_wrong_keys_lock_and_the_delay_outlives_resets_and_power_cuts(make_ecu: Any) -> None:
    ecu = make_ecu()
    STATES["programming"](ecu)
    assert [wrong_key(ecu) for _ in range(4)] == ["7f2735", "7f2735", "7f2736", "7f2737"]
    ecu.now += 9.0
    assert ecu.ask("1101") == "5101"
    STATES["programming"](ecu)
    assert wrong_key(ecu) == "7f2737", "the delay begins anew after a reset"
    ecu.now += 9.0
    ecu.power_on()
    STATES["programming"](ecu)
    assert wrong_key(ecu) == "7f2737", "and after a power cut"
    ecu.now += 10.0
    ecu.unlock()


def test_tries_before_a_reset_count_after_it(make_ecu: Any) -> None:
    ecu = make_ecu()
    for answer in ("7f2735", "7f2735", "7f2736"):
        STATES["programming"](ecu)
        assert wrong_key(ecu) == answer
        ecu.power_on()


def test_a_right_key_clears_the_tries(make_ecu: Any) -> None:
    ecu = make_ecu()
    for _ in range(3):
        STATES["programming"](ecu)
        assert [wrong_key(ecu), wrong_key(ecu)] == ["7f2735", "7f2735"]
        ecu.unlock()


def test_a_seed_is_used_up_by_a_key(make_ecu: Any) -> None:
    ecu = make_ecu()
    STATES["programming"](ecu)
    seed = bytes.fromhex(ecu.ask("2701"))[2:]
    assert ecu.ask("2702" + "00" * 16) == "7f2735"
    assert ecu.ask(b"\x27\x02" + key_of(bytes(range(32)), seed)) == "7f2724"


def test_a_full_log_of_tries_begins_afresh_without_losing_count(make_ecu: Any) -> None:
    ecu = make_ecu()
    ecu.flash.write(0x0800_C000, b"DRLC" * (0x4000 // 4 - 1))  # cleared, cleared, ... and one word free
    ecu.power_on()
    STATES["programming"](ecu)
    assert [wrong_key(ecu) for _ in range(2)] == ["7f2735", "7f2735"]
    ecu.power_on()
    STATES["programming"](ecu)
    assert wrong_key(ecu) == "7f2736"


def test_a_power_cut_while_the_tries_are_written_counts_as_all_of_them(make_ecu: Any) -> None:
    ecu = make_ecu()
    STATES["programming"](ecu)
    ecu.ask("2701")
    ecu.flash.cut_at_byte = 2
    with pytest.raises(PowerCut):
        ecu.ask("2702" + "00" * 16)
    ecu.power_on()
    STATES["programming"](ecu)
    assert wrong_key(ecu) == "7f2737"


# --- what boots ---------------------------------------------------------------------------------


def tamper(document: bytes) -> bytes:
    return document.replace(b'"version":"1.0.0"', b'"version":"9.0.0"')


def bad_vectors(signer: Any, start: bytes) -> Any:
    return signer.sign(image=start + build_image("1.0.0", 4096, 0x0801_0000)[len(start) :])


def broken(signer: Any) -> dict[str, tuple[Any, Verdict]]:
    good = signer.sign()
    stranger = dataclasses.replace(good, document=tamper(good.document))
    private, public = new_key()
    other = dataclasses.replace(signer, private=private, public=public)
    reset = (0x0801_0100 | 1).to_bytes(4, "little")
    return {
        "good": (good, Verdict.BOOTABLE),
        "not a document": (dataclasses.replace(good, document=b"{}"), Verdict.NO_DOCUMENT),
        "tampered with": (stranger, Verdict.SIGNATURE),
        "a stranger's": (other.sign(), Verdict.SIGNATURE),
        "another kind": (signer.sign(kind="engine-controller"), Verdict.OTHER_ECU),
        "another hardware": (signer.sign(hardware="rev-a"), Verdict.OTHER_ECU),
        "one bit off": (
            dataclasses.replace(good, image=good.image[:-1] + bytes([good.image[-1] ^ 1])),
            Verdict.CONTENT,
        ),
        "an image of the bootloader's place": (
            signer.sign(image=build_image("1.0.0", 4096, 0x0800_0000)),
            Verdict.VECTORS,
        ),
        "stack beyond RAM": (
            bad_vectors(signer, (0x2002_0008).to_bytes(4, "little") + reset),
            Verdict.VECTORS,
        ),
        "stack askew": (bad_vectors(signer, (0x2001_FFFC).to_bytes(4, "little") + reset), Verdict.VECTORS),
        "an even reset vector": (
            bad_vectors(signer, (0x2002_0000).to_bytes(4, "little") + (0x0801_0100).to_bytes(4, "little")),
            Verdict.VECTORS,
        ),
        "reset beyond the image": (
            bad_vectors(signer, (0x2002_0000).to_bytes(4, "little") + (0x0801_1001).to_bytes(4, "little")),
            Verdict.VECTORS,
        ),
    }


def test_only_a_signed_fitting_image_boots(make_ecu: Any, signer: Any) -> None:
    for name, (firmware, verdict) in broken(signer).items():
        ecu = make_ecu(holds=firmware)
        assert ecu.part.uds.installed().verdict is verdict, name
        assert ecu.ask("22fd01") == f"62fd010{int(verdict is not Verdict.BOOTABLE)}", name
        ecu.prepare()
        assert ecu.ask("3101ff01") == f"7101ff010{int(verdict)}", name


def test_an_expired_document_boots(make_ecu: Any, signer: Any) -> None:
    """A part has no clock: a truck must not stand still in the pit because a date has passed."""
    ecu = make_ecu(holds=signer.sign())
    ecu.now += 100 * 365 * 24 * 3600.0
    ecu.power_on()
    assert ecu.ask("22fd01") == "62fd0100"
