"""`quarry flash` as an engineer runs it: a process of its own on the hub; its words, JSON and exit codes."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sim.mcu.boot import Verdict
from sim.mcu.faults import Faults

QUICK = """
protocol = "stm32-uds"
[can]
tx_id = 0x7E0
rx_id = 0x7E8
[profile.timing]
margin_s = 0.3
boot_s = 3.0
flow_control_s = 0.3
"""
RUN = "import sys; from cli.main import dispatch; sys.exit(dispatch(['flash', *sys.argv[1:]]))"


def quarry_flash(truck: Any, verb: str, *more: str, **changes: str) -> subprocess.CompletedProcess[str]:
    options = {
        "profile": "stm32-uds",
        "interface": truck.interface,
        "channel": truck.channel,
        "kind": "brake-controller",
        "hardware": "B2",
        "security-secret": str(truck.secret_file),
    } | {key.replace("_", "-"): value for key, value in changes.items()}
    words = [word for key, value in options.items() for word in (f"--{key}", value)]
    return subprocess.run(
        [sys.executable, "-P", "-c", RUN, verb, *words, *more],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def files(truck: Any, image: Any) -> list[str]:
    (truck.folder / "image.bin").write_bytes(image.data)
    (truck.folder / "image.json").write_bytes(image.document)
    return [
        *("--image", str(truck.folder / "image.bin")),
        *("--document", str(truck.folder / "image.json")),
        *("--public-key", str(truck.public_file)),
    ]


@pytest.fixture
def quick(hub_truck: Any) -> Any:
    """The truck, and a profile file that does not wait long for an ECU that says nothing."""
    hub_truck.profile_file = hub_truck.folder / "quick.toml"
    hub_truck.profile_file.write_text(QUICK)
    return hub_truck


def test_identify_write_verify(quick: Any) -> None:
    told = quarry_flash(quick, "identify")
    assert told.returncode == 0, told.stderr
    assert "1.0.0" in told.stdout
    differs = quarry_flash(quick, "verify", *files(quick, quick.new))
    assert differs.returncode == 4
    assert "1.0.0" in differs.stderr
    written = quarry_flash(quick, "write", *files(quick, quick.new), "--json")
    assert written.returncode == 0, written.stderr
    assert json.loads(written.stdout)["ecu"]["sha256"] == quick.new.spec.sha256
    assert quick.mcu.boots().spec == quick.new.spec
    same = quarry_flash(quick, "verify", *files(quick, quick.new), "--json")
    assert same.returncode == 0
    assert json.loads(same.stdout)["ok"] is True


def test_another_ecu_than_named_is_shown_and_told(quick: Any) -> None:
    told = quarry_flash(quick, "identify", "--json", hardware="B9")
    assert told.returncode == 4
    assert json.loads(told.stdout)["ecu"]["hardware"] == "B2"
    assert "hardware is B2, not B9" in told.stderr


def test_ctrl_c_in_the_middle_says_what_to_do(quick: Any) -> None:
    image = quick.image("2.0.0", 440 * 1024)
    words = ["--profile", "stm32-uds", "--interface", quick.interface, "--channel", quick.channel]
    words += files(quick, image)
    words += ["--kind", "brake-controller", "--hardware", "B2", "--security-secret", str(quick.secret_file)]
    with subprocess.Popen(
        [sys.executable, "-P", "-c", RUN, "write", *words], stderr=subprocess.PIPE, text=True
    ) as running:
        deadline = time.monotonic() + 60
        while quick.mcu.programmed_bytes < 20_000:
            assert running.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.001)
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=30)
    assert running.returncode == 130, said
    assert "write again" in said
    assert "Traceback" not in said
    again = quarry_flash(quick, "write", *files(quick, quick.new))
    assert again.returncode == 0, again.stderr


def test_identifiers_may_be_hex(quick: Any) -> None:
    assert quarry_flash(quick, "identify", "--tx-id", "0x7E0", "--rx-id", "2024").returncode == 0
    bad = quarry_flash(quick, "identify", "--tx-id", "seven")
    assert bad.returncode == 2
    assert "Traceback" not in bad.stderr


@pytest.mark.parametrize("stolen", [True, False], ids=["stolen-key", "changed-bytes"])
def test_what_does_not_verify_is_not_sent(quick: Any, stolen: bool) -> None:
    image = quick.image("6.6.6", 1024, stolen_key=stolen)
    words = files(quick, image)
    if not stolen:
        (quick.folder / "image.bin").write_bytes(image.data[:-1] + b"\x00")
    before = quick.hub.frames
    refused = quarry_flash(quick, "write", *words, "--json")
    assert refused.returncode == 1
    assert json.loads(refused.stdout)["error"]["code"] == ("unsigned" if stolen else "wrong_image")
    assert quick.hub.frames == before


def test_without_a_public_key_nothing_is_written(quick: Any) -> None:
    words = files(quick, quick.new)[:4]
    refused = quarry_flash(quick, "write", *words)
    assert refused.returncode == 2
    assert quick.mcu.boots().spec == quick.old.spec


def test_a_failure_before_and_after_the_erase_have_their_own_codes(quick: Any) -> None:
    profile = {"profile": str(quick.profile_file)}
    quick.mcu.order(Faults(moving=True))
    before = quarry_flash(quick, "write", *files(quick, quick.new), **profile)
    assert before.returncode == 1
    assert "standstill" in before.stderr
    assert quick.mcu.boots().spec == quick.old.spec
    quick.mcu.order(Faults(power_cut_at_byte=700))
    after = quarry_flash(quick, "write", *files(quick, quick.new), **profile)
    assert after.returncode == 3
    assert "Traceback" not in after.stderr
    quick.mcu.order(Faults())
    quick.mcu.power_cycle()
    assert quick.mcu.boots().verdict is not Verdict.BOOTABLE
    again = quarry_flash(quick, "write", *files(quick, quick.new), **profile)
    assert again.returncode == 0, again.stderr


async def test_the_command_and_the_agent_never_share_an_interface(quick: Any) -> None:
    async with quick.flasher() as ecu:
        told = await asyncio.to_thread(quarry_flash, quick, "identify")
        assert told.returncode == 1
        assert "is held by quarry, flashing brakes" in told.stderr
        await ecu.identify()
    told = await asyncio.to_thread(quarry_flash, quick, "identify")
    assert told.returncode == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"interface": "socketcam"}, "interface"),
        ({"hardware": "B 2"}, "hardware"),
        ({"security_secret": "/nonexistent"}, "security_secret_file"),
        ({"profile": "/nonexistent"}, "profile"),
        ({"trace": "frames.txt"}, "suffix"),
        ({"tx_id": "0x7E8"}, "rx_id"),
        ({"rx_id": "0x18DAF110"}, "rx_id"),
        ({"bitrate": "1"}, "bitrate"),
    ],
)
def test_wrong_use_names_its_key(quick: Any, changes: dict[str, str], said: str) -> None:
    refused = quarry_flash(quick, "identify", **changes)
    assert refused.returncode == 2
    assert said in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_profile_with_an_unknown_key_is_wrong_use(quick: Any) -> None:
    path = Path(quick.folder) / "bad.toml"
    path.write_text('protocol = "stm32-uds"\n[profile.timing]\np9_s = 1\n')
    refused = quarry_flash(quick, "identify", profile=str(path))
    assert refused.returncode == 2
    assert f"{path}: profile.timing.p9_s" in refused.stderr
