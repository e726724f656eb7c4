"""`[vehicle]` and `[safety]`: what is said becomes the policy, and each mistake is named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edge_agent.config import AgentConfig, load_config
from edge_agent.interlocks.j1939 import CCVS, EEC1, ETC2, VEP1
from edge_agent.interlocks.safety import Policy
from edge_agent.interlocks.signals import FASTEST_RPM
from shared.errors import ConfigError
from shared.trust.keys import new_key
from shared.trust.uptane.safety_policy import LOOSEST, Period, SafetyPolicy

GOOD = """
data_dir = "data"
[office]
url = "http://127.0.0.1:8080"
[trust]
firmware_keys = ["key.pem"]
threshold = 1
[vehicle]
source = "j1939"
interface = "virtual"
channel = "can0"
[vehicle.senders]
ccvs1 = [0x0B]
eec1 = [0x00]
etc2 = [0x03]
vep1 = [0x27, 0x31]
[safety]
[[component]]
name = "brake"
kind = "brake-controller"
hardware = "rev-b"
flasher = "stm32-uds"
interface = "virtual"
channel = "can0"
tx_id = 0x7E0
rx_id = 0x7E8
security_secret_file = "brake.secret"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "key.pem").write_bytes(new_key()[1])
    secret = tmp_path / "brake.secret"
    secret.touch(mode=0o600)
    secret.write_bytes(b"\x07" * 32)
    return tmp_path


def load(folder: Path, text: str) -> AgentConfig:
    file = folder / "agent.toml"
    file.write_text(text)
    return load_config(file)


def test_a_bus_becomes_a_source_that_knows_our_own_identifiers(folder: Path) -> None:
    config = load(folder, GOOD)
    bus = config.vehicle.bus
    assert bus is not None
    assert (bus.interface, bus.channel, bus.bitrate, bus.fd) == ("virtual", "can0", None, False)
    assert bus.senders == {CCVS.pgn: (0x0B,), EEC1.pgn: (0x00,), ETC2.pgn: (0x03,), VEP1.pgn: (0x27, 0x31)}
    assert bus.own_tx == {0x7E0}
    assert bus.own_rx == {0x7E8}
    assert (config.policy, config.holds_folder, config.vehicle.addresses) == (Policy(), None, {})


def test_components_of_other_buses_are_strangers_on_this_one(folder: Path) -> None:
    bus = load(folder, GOOD.replace('channel = "can0"\ntx_id', 'channel = "can1"\ntx_id')).vehicle.bus
    assert bus is not None
    assert not bus.own_tx | bus.own_rx


def test_an_address_comes_from_a_29_bit_identifier_or_by_name(folder: Path) -> None:
    wide = GOOD.replace("0x7E0", "0x18DA31F1").replace("0x7E8", "0x18DAF131")
    assert load(folder, wide).vehicle.addresses == {"brake": 0x31}
    named = GOOD.replace("[safety]", "[vehicle.component_address]\nbrake = 0x31\n[safety]")
    assert load(folder, named).vehicle.addresses == {"brake": 0x31}


def test_all_of_safety_is_taken(folder: Path) -> None:
    said = """[safety]
need_parked = false
need_engine_off = false
least_voltage_v = 25.5
most_voltage_v = 32
oldest_s = 1.5
speed_at_most_km_h = 0.5
standstill_signals = 3
need_neutral = false
need_key_switch_on = false
need_consent = true
steady_for_s = 0.5
silent_engine_is_off = true
flash_gateway_only = false
quiet_hours = ["22:00-06:00"]
maintenance_hours = ["01:00-03:30", "12:00-13:00"]
time_zone = "Asia/Yekaterinburg"
holds_folder = "holds"
"""
    config = load(folder, GOOD.replace("[safety]\n", said))
    policy = config.policy
    expected = {
        "need_parking_brake": False,
        "engine_speed_at_most_rpm": FASTEST_RPM,
        "battery_at_least": 25_500,
        "stale_after": 1_500,
        "speed_at_most": 500,
        "standstill_signals": 3,
        "need_neutral": False,
        "need_key_switch_on": False,
        "need_consent": True,
        "steady_for": 500,
        "may_take_silent_engine_as_off": True,
        "may_flash_gateway_only": False,
        "forbidden": (
            Period(start=210, end=720),
            Period(start=780, end=60),
            Period(start=1320, end=360),
        ),
    }
    assert {name: getattr(policy.rules, name) for name in expected} == expected
    assert {name: getattr(policy.local, name) for name in expected} == expected
    # What was not said: the strict default alone, nothing beside a signed policy.
    assert policy.rules.may_go_without_way_back is SafetyPolicy().may_go_without_way_back
    assert policy.local.may_go_without_way_back is LOOSEST.may_go_without_way_back
    assert (policy.need_parked, policy.need_engine_off, policy.least_voltage_v, policy.oldest_s) == (
        False,
        False,
        25.5,
        1.5,
    )
    assert policy.most_voltage_v == 32
    assert str(policy.zone) == "Asia/Yekaterinburg"
    assert config.holds_folder == folder / "holds"


QUIET_NODE = "[component.profile]\nquiet_nodes = [{tx_id = 0x18DA0BF1, rx_id = 0x18DAF10B}]\n"
ZONED = '[safety]\ntime_zone = "UTC"\n'


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ('source = "j1939" -> source = "can"', "vehicle.source: must be one of bench, file, j1939"),
        (
            'interface = "virtual"\nchannel = "can0"\n[v -> channel = "can0"\n[v',
            "vehicle.interface: is missing",
        ),
        ('channel = "can0"\n[v -> [v', "vehicle.channel: is missing"),
        ("[vehicle.senders] -> bitrate = 1\n[vehicle.senders]", "vehicle.bitrate: must be 10000 to"),
        ("[vehicle.senders] -> path = 'x'\n[vehicle.senders]", "vehicle.path: there is no such key"),
        (
            'interface = "virtual"\n -> interface = "socketcan"\nbitrate = 250000\n',
            "vehicle.bitrate: is set by the system",
        ),
        ("ccvs1 = [0x0B] -> ccvs1 = 0x0B", "vehicle.senders.ccvs1: must be a list"),
        ("ccvs1 = [0x0B] -> ccvs1 = []", "vehicle.senders.ccvs1: must be a list of 1 to 4"),
        ("ccvs1 = [0x0B] -> ccvs1 = [1, 1]", "vehicle.senders.ccvs1: must be a list of 1 to 4 different"),
        ("ccvs1 = [0x0B] -> ccvs1 = [true]", "vehicle.senders.ccvs1: must be a list of whole numbers"),
        ("ccvs1 = [0x0B] -> ccvs1 = [0xFE]", "vehicle.senders.ccvs1: must be a list of whole numbers"),
        ("ccvs1 -> ccvs", "vehicle.senders.ccvs: there is no such key"),
        ("[safety] -> [vehicle.component_address]\nbrake = 0xFF\n[safety]", "component_address.brake: must"),
        ("[safety] -> [vehicle.component_address]\nx = 1\n[safety]", "component_address.x: there is no such"),
        (
            "[safety] -> [vehicle.component_address]\nbrake = 0x0B\n[safety]",
            "vehicle.senders.ccvs1: brake is its only sender",
        ),
        (f"[nothing] -> {QUIET_NODE}", "vehicle.senders: 0x0b is to be silent while brake is flashed"),
        ("[safety]\n -> [safety]\nneed_consent = 1\n", "safety.need_consent: must be true or false"),
        ("[safety]\n -> [safety]\nstandstill_signals = 1\n", "safety.standstill_signals: must be 2 to 3"),
        ("[safety]\n -> [safety]\nsteady_for_s = -1\n", "safety.steady_for_s: must be 0 to 60"),
        ("[safety]\n -> [safety]\nspeed_at_most_km_h = 30\n", "safety.speed_at_most_km_h: must be 0 to 5"),
        ('[safety]\n -> [safety]\ntime_zone = "Mars/Base"\n', "safety.time_zone: there is no time zone"),
        ('[safety]\n -> [safety]\ntime_zone = "../x"\n', "safety.time_zone: there is no time zone"),
        ('[safety]\n -> [safety]\nquiet_hours = ["22:00-06:00"]\n', "safety.time_zone: is missing"),
        (f'[safety]\n -> {ZONED}quiet_hours = ["22-06"]\n', "safety.quiet_hours: '22-06' is no period"),
        (f'[safety]\n -> {ZONED}quiet_hours = ["22:00-25:00"]\n', "safety.quiet_hours: .* is no period"),
        (f'[safety]\n -> {ZONED}quiet_hours = ["22:60-23:00"]\n', "safety.quiet_hours: .* is no period"),
        (f'[safety]\n -> {ZONED}maintenance_hours = ["05:00-05:00"]\n', "safety.maintenance_hours: "),
        ("[safety]\n -> [safety]\nneed_parking = true\n", "safety.need_parking: there is no such key"),
    ],
)
def test_a_mistake_is_named(folder: Path, change: str, says: str) -> None:
    old, new = change.split(" -> ")
    text = GOOD + new if old == "[nothing]" else GOOD.replace(old, new, 1)
    assert text != GOOD
    with pytest.raises(ConfigError, match=says):
        load(folder, text)


def test_an_owner_takes_back_what_a_release_permits(folder: Path) -> None:
    said = "[safety]\nflash_gateway_only = false\ngo_without_way_back = false\n"
    policy = load(folder, GOOD.replace("[safety]\n", said)).policy
    permits = SafetyPolicy(may_flash_gateway_only=True, may_go_without_way_back=True)
    rules = policy.under(permits).rules
    assert (rules.may_flash_gateway_only, rules.may_go_without_way_back) == (False, False)
    usual = load(folder, GOOD).policy.under(permits).rules
    assert (usual.may_flash_gateway_only, usual.may_go_without_way_back) == (True, True)


def test_an_engine_that_is_flashed_may_be_silent_by_the_owners_word(folder: Path) -> None:
    named = "[vehicle.component_address]\nbrake = 0x00\n"
    with pytest.raises(ConfigError, match=re.escape("vehicle.senders.eec1: brake is its only sender")):
        load(folder, GOOD.replace("[safety]\n", f"{named}[safety]\n"))
    load(folder, GOOD.replace("[safety]\n", f"{named}[safety]\nsilent_engine_is_off = true\n"))


def test_a_day_that_is_all_maintenance_forbids_nothing(folder: Path) -> None:
    config = load(folder, GOOD.replace("[safety]\n", f'{ZONED}maintenance_hours = ["00:00-24:00"]\n'))
    assert config.policy.rules.forbidden == ()
