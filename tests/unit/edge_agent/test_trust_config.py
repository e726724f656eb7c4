"""The trust chain's part of the configuration: both roots or neither, and every mistake by its key."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

import pytest

from edge_agent.config import AgentConfig, load_config
from edge_agent.trust.selection import TruckEcus
from shared.errors import ConfigError
from shared.trust.keys import new_key
from sim.uptane_world import UptaneWorld

TEXT = """
data_dir = "data"
[office]
url = "http://127.0.0.1:8080"
[trust]
firmware_keys = ["key.pem"]
threshold = 1
{trust}
[vehicle]
source = "bench"
[[component]]
name = "brake"
kind = "brake-controller"
hardware = "rev-b"
flasher = "stm32-uds"
interface = "virtual"
channel = "bench"
tx_id = 0x7E0
rx_id = 0x7E8
security_secret_file = "brake.secret"
[[component]]
name = "hoist"
kind = "hoist-controller"
hardware = "rev-a"
flasher = "stm32-uds"
interface = "virtual"
channel = "bench"
tx_id = 0x7E1
rx_id = 0x7E9
security_secret_file = "brake.secret"
"""
ROOTS = 'director_root = "director.json"\nimage_root = "image.json"\n'


@pytest.fixture(scope="module")
def world() -> UptaneWorld:
    return UptaneWorld()


@pytest.fixture
def folder(tmp_path: Path, world: UptaneWorld) -> Path:
    (tmp_path / "key.pem").write_bytes(new_key()[1])
    secret = tmp_path / "brake.secret"
    secret.touch(mode=0o600)
    secret.write_bytes(b"\x07" * 32)
    (tmp_path / "director.json").write_bytes(world.director.published["1.root.json"])
    (tmp_path / "image.json").write_bytes(world.image.published["1.root.json"])
    (tmp_path / "junk.json").write_bytes(b"{}")
    (tmp_path / "huge.json").write_bytes(b" " * 100_000)
    return tmp_path


def load(folder: Path, trust: str) -> AgentConfig:
    file = folder / "agent.toml"
    file.write_text(TEXT.format(trust=trust))
    return load_config(file)


def test_without_roots_the_trust_chain_is_off(folder: Path) -> None:
    assert load(folder, "").trust.uptane is None


def test_two_roots_switch_it_on(folder: Path) -> None:
    config = load(folder, ROOTS)
    trust = config.trust.uptane
    assert trust is not None
    assert (trust.time_url, trust.policy.grace, trust.policy.token_when_behind) == (None, timedelta(0), False)
    assert trust.roots.director == (folder / "director.json").read_bytes()
    ecus = TruckEcus.of(config.components, trust)
    assert [(one.component, one.serial) for one in ecus.ecus] == [("brake", "brake"), ("hoist", "hoist")]
    assert ecus.gateway.serial == "gateway"


def test_everything_may_be_said(folder: Path) -> None:
    trust = load(
        folder,
        ROOTS + 'time_url = "http://ota.example.org/time"\ntoken_when_behind = true\nclock_tolerance_s = 60\n'
        'grace_days = 7\ngateway_serial = "GW-1"\n[trust.serials]\nbrake = "SN-7"',
    ).trust.uptane
    assert trust is not None
    assert trust.time_url == "http://ota.example.org/time"
    assert (trust.policy.tolerance, trust.policy.grace) == (timedelta(seconds=60), timedelta(days=7))
    assert (trust.serial_of("brake"), trust.serial_of("hoist")) == ("SN-7", "hoist")


WRONG: dict[str, tuple[str, str]] = {
    "one root: director": ('director_root = "director.json"', "trust.image_root: is missing"),
    "one root: image": ('image_root = "image.json"', "trust.director_root: is missing"),
    "no such file": ('director_root = "none.json"\nimage_root = "image.json"', "trust.director_root"),
    "no root": ('director_root = "junk.json"\nimage_root = "image.json"', "trust.director_root"),
    "no root either": ('director_root = "director.json"\nimage_root = "junk.json"', "trust.image_root"),
    "huge": ('director_root = "huge.json"\nimage_root = "image.json"', "trust.director_root"),
    "the same twice": ('director_root = "image.json"\nimage_root = "image.json"', "trust.image_root"),
    "settings without roots": ("grace_days = 7", "trust.grace_days"),
    "serials without roots": ('[trust.serials]\nbrake = "x"', "trust.serials"),
    "time over TLS": (ROOTS + 'time_url = "https://ota.example.org/time"', "trust.time_url"),
    "no address": (ROOTS + 'time_url = "http://"', "trust.time_url"),
    "too much grace": (ROOTS + "grace_days = 91", "trust.grace_days"),
    "serial of nobody": (ROOTS + '[trust.serials]\nwheel = "x"', "trust.serials.wheel"),
    "one serial twice": (ROOTS + '[trust.serials]\nbrake = "x"\nhoist = "x"', "trust.serials.hoist"),
    "another's name": (ROOTS + '[trust.serials]\nbrake = "hoist"', "trust.serials.hoist"),
    "the gateway's": (ROOTS + '[trust.serials]\nbrake = "gateway"', "trust.serials.brake"),
    "too long": (ROOTS + f'[trust.serials]\nbrake = "{"x" * 65}"', "trust.serials.brake"),
    "unknown key": (ROOTS + "roots = 2", "trust.roots: there is no such key"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_is_named_by_its_key(folder: Path, case: str) -> None:
    trust, key = WRONG[case]
    with pytest.raises(ConfigError, match=re.escape(key)) as caught:
        load(folder, trust)
    assert "agent.toml" in caught.value.message
