"""`quarry sim` as people run it: processes that say when they are ready and end when they are told."""

from __future__ import annotations

import hashlib
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import can
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from cli.main import dispatch
from shared.release import FirmwareSpec
from shared.trust.document import make_document
from shared.trust.keys import load_signer
from sim.mcu.images import build_image
from sim.truck_config import HARDWARE, KIND

SLOT = 0x0801_0000
READY_WITHIN_S = 60.0
END_WITHIN_S = 30.0


class Running:
    """A command in a process of its own."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._out = b""

    def ready(self) -> str:
        """Its ready line."""
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            until = time.monotonic() + READY_WITHIN_S
            while b"\n" not in self._out:
                assert selector.select(until - time.monotonic()), "it does not become ready"
                piece = os.read(self._process.stdout.fileno(), 4096)
                assert piece, self._stderr()
                self._out += piece
        return self._out.decode().strip()

    def end(self, how: signal.Signals | None = signal.SIGTERM) -> tuple[int, str]:
        """Its exit code and stderr, after a signal or by itself."""
        if how is not None:
            self._process.send_signal(how)
        code = self._process.wait(END_WITHIN_S)
        return code, self._stderr()

    def _stderr(self) -> str:
        assert self._process.stderr is not None
        return self._process.stderr.read().decode()


Run = Callable[..., Running]


@pytest.fixture
def run() -> Iterator[Run]:
    with ExitStack() as stack:

        def start(*words: object) -> Running:
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-P", "-m", "cli.main", "sim", *map(str, words)],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                )
            )
            stack.callback(process.kill)
            return Running(process)

        yield start


@pytest.fixture
def files(tmp_path: Path, keys: tuple[bytes, bytes], sign: Any) -> dict[str, Path]:
    """What the commands read."""
    old = sign("1.0.0", 8192)
    contents = {
        "key.pub": keys[1],
        "old.bin": old.image,
        "old.json": old.document,
        "secret": bytes(range(32)),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "secret").chmod(0o600)
    return {name: tmp_path / name for name in (*contents, "can.sock", "flash.bin")}


def mcu_words(files: dict[str, Path], *more: object) -> list[object]:
    return [
        *("mcu", "stm32-uds", "--interface", "quarry-hub", "--channel", files["can.sock"]),
        *("--flash", files["flash.bin"], "--public-key", files["key.pub"]),
        *("--security-secret", files["secret"], *more),
    ]


def test_a_bus_and_an_mcu_that_dies_while_it_is_programmed(
    run: Run, files: dict[str, Path], sign: Any, make_tester: Any
) -> None:
    bus = run("bus", "--socket", files["can.sock"])
    assert bus.ready() == f'ready: CAN bus; interface "quarry-hub", channel "{files["can.sock"]}"'
    mcu = run(*mcu_words(files, "--image", files["old.bin"], "--document", files["old.json"]))
    assert mcu.ready().endswith("runs 1.0.0")

    new = sign("1.1.0", 20_000)
    tester = make_tester(files["can.sock"])
    tester.enter()
    tester.erase()
    for request in tester.requests(SLOT, new.image)[:3]:
        assert tester.ask(request)[0] == request[0] + 0x40
    assert mcu.end(signal.SIGKILL)[0] == -signal.SIGKILL

    mcu = run(*mcu_words(files))
    assert mcu.ready().endswith("waits in its bootloader")
    tester.program(new)
    assert tester.ask(b"\x22\xf1\x89") == b"\x62\xf1\x89" + b"1.1.0"
    assert mcu.end(signal.SIGINT)[0] == 0

    mcu = run(*mcu_words(files, "--image", files["old.bin"], "--document", files["old.json"]))
    assert mcu.ready().endswith("runs 1.1.0"), "factory content is for a flash that is new"
    tester.close()
    assert bus.end()[0] == 0
    assert not files["can.sock"].exists()
    code, stderr = mcu.end(None)
    assert code == 1
    assert "has gone -- Start the bus first" in stderr
    assert "Traceback" not in stderr


def test_faults_are_ordered_on_the_command_line(run: Run, files: dict[str, Path], make_tester: Any) -> None:
    bus = run("bus", "--socket", files["can.sock"], "--bitrate", 500_000)
    bus.ready()
    run(*mcu_words(files, "--fault", "busy=1", "--fault", "moving=1", "--kind", "mixer")).ready()
    tester = make_tester(files["can.sock"])
    assert tester.ask(b"\x22\xf1\x97") == b"\x7f\x22\x21"
    assert tester.ask(b"\x22\xf1\x97") == b"\x62\xf1\x97" + b"mixer"
    assert tester.ask(b"\x11\x01") == b"\x7f\x11\x22"
    tester.close()


def test_an_esp32_by_can_fd_29_bit_ids_and_a_certificate(
    run: Run, files: dict[str, Path], tmp_path: Path, keys: tuple[bytes, bytes]
) -> None:
    image = tmp_path / "esp.bin"
    assert call("image", "--kind", "esp32", "--version", "3.0.0", "--bytes", 8192, "--out", image) == 0
    document, ca = sign_for(image, keys[0]), certificate_authority()
    (tmp_path / "esp.json").write_bytes(document)
    (tmp_path / "ca.pem").write_bytes(ca)
    run("bus", "--socket", files["can.sock"]).ready()
    mcu = run(
        *("mcu", "esp32-uds", "--interface", "quarry-hub", "--channel", files["can.sock"]),
        *("--flash", tmp_path / "esp.flash", "--public-key", files["key.pub"], "--ca", tmp_path / "ca.pem"),
        *("--image", image, "--document", tmp_path / "esp.json", "--fd", "--tx-id", "0x18DA10F1"),
        *("--rx-id", "0x18DAF110", "--functional-id", "0x18DB33F1", "--block-bytes", 514),
        *("--block-size", 4, "--st-min", "0xF3", "--fault", "refuse_at_request=2"),
        *("--fault", "refuse_with=0x93"),
    )
    assert mcu.ready().endswith("runs 3.0.0 from slot 0")
    with ExitStack() as stack:
        bus = stack.enter_context(
            can.Bus(str(files["can.sock"]), interface="quarry-hub", fd=True, ignore_config=True)
        )

        def ask(data: str) -> str:
            frame = bytes.fromhex(data)
            frame = (bytes([len(frame)]) + frame).ljust(8, b"\xcc")
            bus.send(can.Message(arbitration_id=0x18DA10F1, data=frame, is_fd=True, bitrate_switch=True))
            got = bus.recv(10)
            assert got is not None
            assert (got.arbitration_id, got.is_fd, got.is_extended_id) == (0x18DAF110, True, True)
            # A single frame; its length has a byte of its own in long frames.
            size, start = (got.data[0], 1) if got.data[0] else (got.data[1], 2)
            return bytes(got.data[start : start + size]).hex()

        assert ask("22fd02") == "62fd0200"
        assert ask("22fd02") == "7f2293"
        assert ask("22fd07") == "62fd07" + "0011000000100000" + "0021400000004000"
        assert ask("2701") == "7f2711"
        assert ask("1003")[:4] == "5003"
        assert ask("2908") == "690802"


def sign_for(image: Path, private: bytes) -> bytes:
    """The document of an image for the kind and hardware that the commands take by default."""
    data = image.read_bytes()
    spec = FirmwareSpec(
        kind=KIND,
        hardware=(HARDWARE,),
        version="3.0.0",
        release_counter=1,
        length=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )
    return make_document(spec, load_signer(private), datetime(2035, 1, 1, tzinfo=UTC))


def certificate_authority() -> bytes:
    """A CA's certificate in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "workshop CA")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + timedelta(days=1))
    return builder.sign(key, SHA256()).public_bytes(Encoding.PEM)


def test_a_vehicle_sends_what_it_does(run: Run, tmp_path: Path) -> None:
    socket = tmp_path / "bus.sock"
    bus = run("bus", "--socket", socket)
    bus.ready()
    with can.Bus(str(socket), interface="quarry-hub", ignore_config=True) as heard:
        where = ("--interface", "quarry-hub", "--channel", socket)
        control = tmp_path / "vehicle.txt"
        vehicle = run("vehicle", *where, "--state", "brake_released", "--control", control)
        assert "vehicle, brake_released" in vehicle.ready()
        seen: dict[int, bytes] = {}
        until = time.monotonic() + READY_WITHIN_S
        while len(seen) < 4 and time.monotonic() < until:
            message = heard.recv(1.0)
            if message is not None:
                seen[message.arbitration_id] = bytes(message.data)
        control.write_text("parked speed_km_h=5")
        while time.monotonic() < until:
            message = heard.recv(1.0)
            if message is not None and bytes(message.data) == bytes.fromhex("f7 00 05 ff ff ff ff ff"):
                break
        else:
            pytest.fail("what was written to its file was not sent")
    assert seen == {
        0x18FEF10B: bytes.fromhex("f3 00 00 ff ff ff ff ff"),
        0x0CF00400: bytes.fromhex("ff ff ff 00 00 ff ff ff"),
        0x18F00503: bytes.fromhex("ff ff ff fb ff ff ff ff"),
        0x18FEF727: bytes.fromhex("ff ff ff ff 00 02 fc 01"),
    }
    code, said = vehicle.end()
    assert (code, "vehicle.shown" in said) == (0, True)
    other = run("vehicle", *where)
    other.ready()
    bus.end()
    code, said = other.end(None)
    assert code == 1
    assert "has gone" in said


def test_an_image_is_built(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "image.bin"
    assert call("image", "--version", "2.0.0", "--out", out, "--bytes", 4096) == 0
    assert out.read_bytes() == build_image("2.0.0", 4096, SLOT)
    assert "version 2.0.0, 4096 bytes, SHA-256" in capsys.readouterr().out


TRUCKS: dict[str, tuple[list[object], str]] = {
    "an ECU of too few words": (["--ecu", "brake:brake-controller"], "is not NAME:KIND:HARDWARE:FLASHER"),
    "an ECU that nobody flashes": (["--ecu", "a:b:c:paper"], "flasher 'paper' is not one of"),
    "an ECU with a bad name": (["--ecu", "a/b:b:c:stm32-uds"], "--ecu NAME"),
    "an ECU twice": (["--ecu", "stm32-uds", "--ecu", "stm32-uds"], "two ECUs have one name"),
    "an ECU said in two ways": (["--ecu", "stm32-uds", "--kind", "x"], "--kind is for a truck without --ecu"),
    "an image for nobody": (
        ["--ecu", "stm32-uds", "--ecu", "esp32-uds", "--image", "x.bin"],
        "--image 'x.bin' does not say for which ECU: begin with one of brake, body=",
    ),
    "an image twice": (["--image", "x.bin", "--image", "brake=y.bin"], "--image is given twice for brake"),
    "a fault for nobody": (
        ["--ecu", "stm32-uds", "--ecu", "esp32-uds", "--fault", "busy=1"],
        "--fault 'busy=1' does not say for which ECU",
    ),
    "a fault that is none": (["--fault", "brake:fire=1"], "fault 'fire' is not one of"),
    "a vehicle in no state": (["--vehicle", "flying"], "there is no state 'flying'"),
    "half of the trust chain": (
        ["--director-root", "x.json"],
        "--director-root and --image-root go together",
    ),
    "time of nobody": (["--time-url", "http://x/repo/time"], "--time-url is of the trust chain"),
    "an image without its document": (["--image", "x.bin"], "an image and its document go together"),
}


def truck_words(files: dict[str, Path], *more: object) -> list[object]:
    return [
        *("truck", "--office", "http://127.0.0.1:9", "--data", files["can.sock"].parent / "truck"),
        *("--firmware-key", files["key.pub"], *more),
    ]


def call(*words: object) -> int:
    """A command in this process; typer ends by SystemExit."""
    try:
        return dispatch(["sim", *map(str, words)])
    except SystemExit as end:
        return int(end.code or 0)


def test_wrong_use_is_one_sentence(
    tmp_path: Path, files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "short").write_bytes(b"1")
    (tmp_path / "short").chmod(0o600)
    out = tmp_path / "out.bin"
    cases: dict[str, tuple[list[object], int, str]] = {
        "no bus": (mcu_words(files), 1, "no hub at"),
        "no interface": ([*mcu_words(files), "--interface", "pigeon"], 1, "can't be opened"),
        "unknown fault": (mcu_words(files, "--fault", "fire=1"), 1, "fault 'fire' is not one of"),
        "bad number": (mcu_words(files, "--fault", "busy=x"), 1, "fault 'busy=x'"),
        "half of the factory content": (mcu_words(files, "--image", files["old.bin"]), 1, "go together"),
        "no key file": ([*mcu_words(files), "--public-key", tmp_path / "nothing"], 1, "can't read"),
        "no key": ([*mcu_words(files), "--public-key", files["secret"]], 1, "public key can't be read"),
        "bad secret": ([*mcu_words(files), "--security-secret", tmp_path / "short"], 1, "secret"),
        "no folder for the bus": (["bus", "--socket", tmp_path / "no" / "s"], 1, "No such file"),
        "long path for the bus": (["bus", "--socket", tmp_path / ("x" * 120)], 1, "is over 107"),
        "data bit rate alone": (
            ["bus", "--socket", tmp_path / "s", "--data-bitrate", 2_000_000],
            1,
            "without a bitrate",
        ),
        "bit rate": (["bus", "--socket", tmp_path / "s", "--bitrate", 5], 1, "bitrate 5"),
        "image too small": (["image", "--version", "1", "--out", out, "--bytes", 8], 1, "8 bytes"),
        "image too large": (["image", "--version", "1", "--out", out, "--bytes", 2**20], 1, "over the slot"),
        "image without version": (["image", "--out", out], 2, "Missing option"),
        "bytes that are no number": (["image", "--version", "1", "--out", out, "--bytes", "x"], 2, "--bytes"),
        "both ways in": ([*mcu_words(files), "--ca", files["key.pub"]], 1, "the one or the other"),
        "no way in": (
            ["mcu", "esp32-uds", "--interface", "x", "--channel", "y", "--public-key", files["key.pub"]],
            1,
            "security_secret or security_ca",
        ),
        "an id that is none": ([*mcu_words(files), "--tx-id", "seven"], 2, "is not a number"),
        "ids of two lengths": ([*mcu_words(files), "--tx-id", "0x18DA10F1"], 1, "CAN ids"),
        "a block of nothing": ([*mcu_words(files), "--block-bytes", 5], 1, "block_bytes is 5"),
        "STmin": ([*mcu_words(files), "--st-min", "0x100"], 1, "st_min"),
        "esp image of odd size": (
            ["image", "--kind", "esp32", "--version", "1", "--out", out, "--bytes", 1030],
            1,
            "a multiple of 16",
        ),
        "esp image too large": (
            ["image", "--kind", "esp32", "--version", "1", "--out", out, "--bytes", 2**21],
            1,
            "over the slot",
        ),
        "image of no kind": (["image", "--kind", "z80", "--version", "1", "--out", out], 2, "z80"),
        "mcu of no kind": (["mcu", "z80"], 2, "z80"),
        "a vehicle in no state": (
            ["vehicle", "--interface", "virtual", "--channel", "x", "--state", "flying"],
            1,
            "there is no state 'flying'",
        ),
        "a vehicle without a bus": (
            ["vehicle", "--interface", "quarry-hub", "--channel", out],
            1,
            "can't be opened",
        ),
        "a vehicle that is set to nothing": (
            ["vehicle", "--interface", "virtual", "--channel", "x", "--state", "parked parking_brake=on"],
            1,
            "parking_brake is released, set, error, not_available, not 'on'",
        ),
        "truck without office": (["truck", "--data", tmp_path], 2, "Missing option"),
        **{name: (truck_words(files, *words), 1, sentence) for name, (words, sentence) in TRUCKS.items()},
    }
    for name, (words, code, sentence) in cases.items():
        assert call(*words) == code, name
        stderr = capsys.readouterr().err
        assert sentence in " ".join(stderr.split()), name
        assert "Traceback" not in stderr, name
    assert not out.exists()


@pytest.fixture
def make_tester(tester_on: Any) -> Iterator[Any]:
    """Testers on a hub that another process runs."""
    with ExitStack() as stack:

        def make(channel: Path) -> Any:
            bus = stack.enter_context(can.Bus(str(channel), interface="quarry-hub", ignore_config=True))
            tester = tester_on(bus)
            stack.callback(tester.close)
            return tester

        yield make
