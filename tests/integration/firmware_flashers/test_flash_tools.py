"""`quarry flash` against a part in its ROM loader: every verb, in this process, over the hub."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bincopy
import can
import pytest
from structlog.testing import capture_logs
from typer.testing import CliRunner

from firmware_flashers import cli
from firmware_flashers.cli import app
from sim.can_hub import hub_in_thread
from sim.mcu.images import build_image
from sim.mcu.rom_mcu import RomMcu
from sim.mcu.rom_settings import RomSettings

START = 0x0800_0000
IMAGE = build_image("1.2.3", 2048, START)
PROFILE = """
protocol = "stm32-rom"
kind = "board"
hardware = "rev-a"
[profile]
family = "stm32f40x"
[profile.timing]
quiet_s = 0.3
sync_s = 0.5
boot_s = 0.05
"""


@dataclass
class Told:
    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)


@dataclass
class Bench:
    mcu: RomMcu
    folder: Path
    flash: Callable[..., Told]


@pytest.fixture(autouse=True)
def logs_stay_out_of_the_way(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # The commands run in this process: their logs would go to a stream that is closed afterwards.
    monkeypatch.setattr(cli, "set_up_logs", lambda *_, **__: None)
    with capture_logs():
        yield


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    channel = str(tmp_path / "can.sock")
    (tmp_path / "part.toml").write_text(PROFILE)
    (tmp_path / "app.bin").write_bytes(IMAGE)

    def flash(verb: str, *words: str) -> Told:
        where = ("--profile", str(tmp_path / "part.toml"), "--interface", "quarry-hub", "--channel", channel)
        result = CliRunner().invoke(app, [verb, *where, *words])
        return Told(result.exit_code, result.stdout, result.stderr)

    with (
        hub_in_thread(channel),
        can.Bus(channel, interface="quarry-hub", ignore_config=True) as bus,
        RomMcu(RomSettings(flash_file=tmp_path / "flash.bin"), bus) as mcu,
    ):
        yield Bench(mcu=mcu, folder=tmp_path, flash=flash)


def unsigned(bench: Bench, name: str = "app.bin") -> tuple[str, ...]:
    return ("--image", str(bench.folder / name), "--version", "1.2.3")


def test_write_verify_read_erase_reset(bench: Bench) -> None:
    written = bench.flash("write", *unsigned(bench), "--json")
    assert written.code == 0, written.err
    assert written.document["ecu"]["sha256"] == hashlib.sha256(IMAGE).hexdigest()
    assert bench.mcu.running == hashlib.sha256(IMAGE).digest()[:8]

    bench.mcu.enter_loader()
    assert bench.flash("verify", *unsigned(bench)).code == 0
    out = bench.folder / "back.bin"
    words = ("--start", hex(START), "--length", str(len(IMAGE)), "--out", str(out))
    read = bench.flash("read", *words, "--json")
    assert read.code == 0, read.err
    assert read.document["read"]["sha256"] == hashlib.sha256(IMAGE).hexdigest()
    assert out.read_bytes() == IMAGE
    again = bench.flash("read", *words)
    assert again.code == 2
    assert "nothing is written over it" in again.err

    assert bench.flash("reset").code == 0
    assert bench.mcu.running is not None
    bench.mcu.enter_loader()
    kept = bench.flash("erase", "--start", hex(START), "--length", "0x4000")
    assert kept.code == 2
    assert "--yes" in kept.err
    assert bench.mcu.content(START, len(IMAGE)) == IMAGE
    assert bench.flash("erase", "--start", hex(START), "--length", "0x4000", "--yes").code == 0
    assert not bench.mcu.content(START, 0x4000).strip(b"\xff")
    assert bench.flash("verify", *unsigned(bench)).code == 4


def test_a_part_whose_loader_has_gone_can_not_be_asked(bench: Bench) -> None:
    assert bench.flash("write", *unsigned(bench)).code == 0
    gone = bench.flash("verify", *unsigned(bench), "--json")
    assert gone.code == 1
    assert gone.document["error"]["code"] == "loader_gone"
    assert "BOOT0" in gone.err


@pytest.mark.parametrize("form", ["as_ihex", "as_srec"])
def test_an_image_may_be_hex_or_s_records(bench: Bench, form: str) -> None:
    file = bincopy.BinFile()
    file.execution_start_address = START
    file.add_binary(IMAGE, address=START)
    (bench.folder / "app.txt").write_text(getattr(file, form)())
    written = bench.flash("write", *unsigned(bench, "app.txt"))
    assert written.code == 0, written.err
    assert bench.mcu.content(START, len(IMAGE)) == IMAGE


def test_an_image_for_another_place_is_refused_before_a_frame_is_sent(bench: Bench) -> None:
    file = bincopy.BinFile()
    file.execution_start_address = START
    file.add_binary(IMAGE, address=START + 0x4000)
    (bench.folder / "app.hex").write_text(file.as_ihex())
    refused = bench.flash("write", *unsigned(bench, "app.hex"))
    assert refused.code == 1
    assert "0x08004000" in refused.err
    assert not bench.mcu.content(START, 0x8000).strip(b"\xff")


def test_the_trace_has_every_frame_as_candump_writes_it(bench: Bench) -> None:
    trace = bench.folder / "frames.log"
    assert bench.flash("identify", "--trace", str(trace)).code == 0
    lines = trace.read_text().splitlines()
    assert all(re.fullmatch(r"\(\d+\.\d{6}\) \S+ [0-9A-F]{3}#[0-9A-F]* [TR]", line) for line in lines)
    assert any("079# T" in line for line in lines)
    assert any(re.search(r"002#0413 R", line) for line in lines)


def test_a_neighbour_on_the_bus_is_a_refusal_and_nothing_is_sent(bench: Bench) -> None:
    assert bench.flash("write", *unsigned(bench)).code == 0
    assert bench.mcu.running is not None
    trace = bench.folder / "frames.log"
    refused = bench.flash("identify", "--trace", str(trace), "--json")
    assert refused.code == 1
    assert refused.document["error"]["code"] == "bus_not_isolated"
    assert " T" not in trace.read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--image", "app.bin"), "neither --document"),
        (("--image", "app.bin", "--version", "1", "--document", "x"), "both given"),
        (("--image", "none.bin", "--version", "1"), "none.bin can't be read"),
        (("--image", "app.bin", "--version", "1", "--kind", "a b"), "kind"),
        (("--image", "app.bin", "--version", "1", "--fd"), "classic CAN only"),
        (("--image", "app.bin", "--version", "1", "--tx-id", "1"), "tx_id is given"),
        (("--image", "app.bin", "--version", "1", "--security-secret", "x"), "security_secret_file"),
        (("--image", "app.bin", "--version", "1", "--certificate", "x"), "security_certificate_file"),
        (("--image", "app.bin", "--version", "1", "--security-command", "x"), "security_command"),
        (("--image", "app.bin", "--version", "1", "--enter-command", "'x"), "--enter-command"),
    ],
)
def test_wrong_use_is_one_sentence(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], said: str
) -> None:
    monkeypatch.chdir(bench.folder)
    refused = bench.flash("write", *words)
    assert refused.code == 2
    assert said in refused.err
    assert "Traceback" not in refused.err


def test_an_unsigned_build_is_not_taken_by_an_ecu_that_checks_signatures(bench: Bench) -> None:
    (bench.folder / "part.toml").write_text(
        'protocol = "stm32-uds"\nkind = "a"\nhardware = "b"\n[can]\ntx_id = 0x7E0\nrx_id = 0x7E8\n'
    )
    refused = bench.flash("write", *unsigned(bench))
    assert refused.code == 2
    assert "--document" in refused.err
    assert bench.flash("write", "--image", "x", "--version", "1", "--kind", "c d").code == 2


def test_the_examples_are_listed_and_all_open(bench: Bench) -> None:
    listed = CliRunner().invoke(app, ["profiles", "--json"])
    names = {one["name"] for one in json.loads(listed.stdout)["profiles"]}
    assert names >= {"stm32-uds", "esp32-uds", "stm32f4-rom", "stm32h7-rom-fd"}
    shown = CliRunner().invoke(app, ["profiles"])
    assert all(name in shown.stdout for name in names)
