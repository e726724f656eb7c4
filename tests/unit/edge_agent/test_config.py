"""The agent's configuration: one good file, and every way to get it wrong named by file and key."""

from __future__ import annotations

import re
import tomllib
from dataclasses import FrozenInstanceError
from importlib import resources
from pathlib import Path

import pytest

from edge_agent.addresses import tls_context
from edge_agent.config import AgentConfig, Office, load_config
from edge_agent.sections import MOST_CONFIG_BYTES
from firmware_flashers.jetson_settings import JetsonSettings
from firmware_flashers.registry import EcuSettings
from firmware_flashers.uds_profile import UdsProfile
from shared.errors import ConfigError
from shared.trust.keys import new_key
from sim.uptane_world import UptaneWorld

GOOD = """
data_dir = "data"
[office]
url = "http://127.0.0.1:8080"
[trust]
firmware_keys = ["key.pem"]
threshold = 1
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
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the files that GOOD names."""
    (tmp_path / "key.pem").write_bytes(new_key()[1])
    (tmp_path / "other.pem").write_bytes(new_key()[1])
    (tmp_path / "private.pem").write_bytes(new_key()[0])
    secret = tmp_path / "brake.secret"
    secret.touch(mode=0o600)
    secret.write_bytes(b"\x07" * 32)
    return tmp_path


def load(folder: Path, text: str) -> AgentConfig:
    file = folder / "agent.toml"
    file.write_text(text)
    return load_config(file)


def ecus(config: AgentConfig) -> list[EcuSettings]:
    return [one for one in config.components if isinstance(one, EcuSettings)]


def test_a_good_file_becomes_one_frozen_value(folder: Path) -> None:
    config = load(folder, GOOD)
    assert config.data_dir == folder / "data"
    assert config.device_id is None
    assert config.log_level == "info"
    assert config.office == Office(url="http://127.0.0.1:8080")
    assert len(config.trust.keys) == 1
    assert config.vehicle.source == "bench"
    assert config.policy.need_parked
    assert config.policy.least_voltage_v == 22.0
    [ecu] = ecus(config)
    assert (ecu.component, ecu.tx_id, ecu.rx_id) == ("brake", 0x7E0, 0x7E8)
    assert ecu.security_secret_file == folder / "brake.secret"
    with pytest.raises(FrozenInstanceError):
        config.data_dir = folder  # type: ignore[misc]


def test_everything_that_can_be_said_is_taken(folder: Path) -> None:
    text = GOOD.replace(
        "[office]",
        'device_id = "truck-1"\nlog_level = "debug"\n[office]\nmqtt_host = "127.0.0.1"\nmqtt_port = 1',
    ).replace('source = "bench"', 'source = "file"\npath = "/run/vehicle.json"')
    config = load(
        folder,
        text
        + "[component.profile]\npadding = 0\n[component.profile.timing]\nboot_s = 30\n"
        + "[safety]\nleast_voltage_v = 0\n[downloads]\nidle_timeout_s = 5\nmost_stored_mib = 64\n",
    )
    assert config.device_id == "truck-1"
    assert (config.office.mqtt_host, config.office.mqtt_port) == ("127.0.0.1", 1)
    assert config.vehicle.path == Path("/run/vehicle.json")
    profile = ecus(config)[0].profile
    assert isinstance(profile, UdsProfile)
    assert (profile.padding, profile.timing.boot_s) == (0, 30)
    assert config.policy.least_voltage_v is None
    assert config.downloads.idle_timeout_s == 5.0
    assert config.downloads.most_stored_bytes == 64 * 1024 * 1024


def second(change: str) -> str:
    """A second component, GOOD's with `change` made in it."""
    old, new = change.split(" -> ")
    return GOOD + GOOD[GOOD.index("[[component]]") :].replace(old, new)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("data_dir = -> dota_dir =", "data_dir: is missing"),
        ('"data" -> 7', "data_dir: must be a text"),
        ('"data" -> ""', "data_dir: must not be empty"),
        ('"data" -> "a\\u0000b"', "data_dir: must not be empty"),
        ("[office] -> dat_dir = 1\n[office]", "dat_dir: there is no such key"),
        ('[office] -> device_id = "a/b"\n[office]', "device_id: device_id 'a/b'"),
        ('[office] -> log_level = "loud"\n[office]', "log_level: must be one of"),
        ("[office] -> [ofice]", "office: is missing"),
        ("[office]\nurl -> office = 3\n[x]\nurl", "office: must be a section"),
        ("url = -> urk =", "office.url: is missing"),
        ('"http://127.0.0.1:8080" -> true', "office.url: must be a text, not True"),
        ("http://127.0.0.1:8080 -> office", "office.url: the office 'office' is not an http"),
        (
            "http://127.0.0.1:8080 -> http://10.0.0.7",
            "office.url: the office http://10.0.0.7 is not encrypted",
        ),
        ("http://127.0.0.1:8080 -> http://localhost.example", "is not encrypted"),
        ("http://127.0.0.1:8080 -> https://o.example/?a=1", "office.url: must be scheme, host"),
        ("http://127.0.0.1:8080 -> https://u:p@o.example", "office.url: must be scheme, host"),
        ("[trust] -> mqtt_port = 0\n[trust]", "office.mqtt_port: must be 1 to 65535"),
        ("[trust] -> mqtt_port = true\n[trust]", "office.mqtt_port: must be a whole number, not True"),
        ('[trust] -> mqtt_port = "1883"\n[trust]', "office.mqtt_port: must be a whole number"),
        ('[trust] -> mqtt_host = "b.example"\nmqtt_tls = false\n[trust]', "office.mqtt_tls: "),
        ('[trust] -> ca_file = "none.pem"\n[trust]', "office.ca_file: "),
        ('[trust] -> allow_plain = "yes"\n[trust]', "office.allow_plain: must be true or false"),
        ("[trust] -> password = 1\n[trust]", "office.password: there is no such key"),
        ("[trust] -> [thrust]", "trust: is missing"),
        ('["key.pem"] -> []', "trust.firmware_keys: must be a list"),
        ('["key.pem"] -> "key.pem"', "trust.firmware_keys: must be a list"),
        ("key.pem -> none.pem", "trust.firmware_keys: .*none.pem can't be read"),
        ("key.pem -> brake.secret", "trust.firmware_keys: "),
        ("key.pem -> private.pem", "trust.firmware_keys: "),
        ('"key.pem" -> "key.pem", "key.pem"', "trust.firmware_keys: names the same key twice"),
        ("threshold = 1 -> threshold = 0", "trust.threshold: must be 1 to 1, not 0"),
        ("threshold = 1 -> threshold = 2", "trust.threshold: must be 1 to 1, not 2"),
        ("threshold = 1 -> ", "trust.threshold: is missing"),
        ("[vehicle] -> [vehicles]", "vehicle: is missing"),
        ('source = "bench" -> ', "vehicle.source: is missing"),
        ("bench -> car", "vehicle.source: must be one of bench, file"),
        ('source = "bench" -> source = "file"', "vehicle.path: is missing"),
        ('source = "bench" -> source = "bench"\npath = "x"', "vehicle.path: there is no such key"),
        (
            "[[component]] -> [safety]\nleast_voltage_v = nan\n[[component]]",
            "safety.least_voltage_v: must be a",
        ),
        ("[[component]] -> [safety]\noldest_s = 0\n[[component]]", "safety.oldest_s: must be 0.1 to 60"),
        ("[[component]] -> [safety]\nneed_parkd = true\n[[component]]", "safety.need_parkd: there is no"),
        (
            "[[component]] -> [downloads]\nidle_timeout_s = false\n[[component]]",
            "idle_timeout_s: must be a number",
        ),
        ("[[component]] -> [component]", r"component: must be sections \[\[component\]\]"),
        ("[[component]] -> [[components]]", "component: is missing"),
        ('name = "brake" -> name = "a b"', r"component\[0\].name 'a b'"),
        ('name = "brake" -> ', r"component\[0\].name: is missing"),
        ("stm32-uds -> stm64", r"component\[0\].flasher 'stm64' is not known"),
        ('"virtual" -> "vritual"', r"component\[0\].interface 'vritual'"),
        ("0x7E0 -> 0x7E8", r"component\[0\].rx_id 0x7e8 is tx_id too"),
        ("0x7E0 -> -1", r"component\[0\].tx_id: must be"),
        ("0x7E0 -> 7.5", r"component\[0\].tx_id: must be a whole number"),
        ("brake.secret -> none.secret", r"component\[0\]..*none.secret"),
        ("tx_id = -> bitrate = 1\ntx_id =", r"component\[0\].bitrate: must be"),
        ("security_secret_file -> #", r"component\[0\].security_secret_file .* is missing"),
        ("tx_id = -> #", r"component\[0\].tx_id is missing"),
        ("flasher = -> #", r"component\[0\].flasher: is missing, and so is profile_file"),
        ('flasher = -> profile_file = "x.toml"\nflasher =', r"component\[0\].profile_file: stands alone"),
        ("tx_id = -> data_bitrate = 2000000\ntx_id =", r"component\[0\].data_bitrate is given, but fd"),
        ("tx_id = -> functional_id = 0x7E0\ntx_id =", r"component\[0\].functional_id 0x7e0 is tx_id too"),
        ('tx_id = -> isotp = "best"\ntx_id =', r"component\[0\].isotp 'best' is not one of"),
        ('tx_id = -> security_command = "x"\ntx_id =', r"component\[0\].security_command: must be a list"),
        ("tx_id = -> security_command = []\ntx_id =", r"component\[0\].security_command: must be a program"),
        ('tx_id = -> security_command = ["x"]\ntx_id =', r"component\[0\].security_command is given, but"),
        ('tx_id = -> enter_command = ["x"]\ntx_id =', r"component\[0\].enter_command is given, but"),
        ("tx_id = -> tx = 1\ntx_id =", r"component\[0\].tx: there is no such key"),
        ("tx_id = -> profile = 1\ntx_id =", r"component\[0\].profile: must be a section"),
        ("tx_id = -> profile.pudding = 1\ntx_id =", r"component\[0\].profile.pudding is not a known key"),
        ("tx_id = -> profile.timing.boot_s = 0\ntx_id =", r"component\[0\].profile.timing.boot_s is 0"),
    ],
)
def test_a_mistake_names_the_file_and_the_key(folder: Path, change: str, says: str) -> None:
    old, new = change.split(" -> ")
    assert old in GOOD
    with pytest.raises(ConfigError, match=says) as refused:
        load(folder, GOOD.replace(old, new, 1))
    assert str(folder / "agent.toml") in refused.value.message


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ('"brake" -> "brake"', r"component\[1\].name: there are two components brake"),
        ('"brake" -> "gearbox"', r"component\[1\].tx_id: two components on bench are asked by 0x7e0"),
    ],
)
def test_two_components_are_two(folder: Path, change: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load(folder, second(change))


ROM = """
[[component]]
name = "winch"
kind = "winch-controller"
hardware = "rev-a"
flasher = "stm32-rom"
interface = "virtual"
channel = "stub"
profile.isolated_bus = true
"""


def test_a_rom_loader_is_taken_alone_on_a_bus_that_is_said_to_be_isolated(folder: Path) -> None:
    assert [ecu.flasher for ecu in ecus(load(folder, GOOD + ROM))] == ["stm32-uds", "stm32-rom"]
    with pytest.raises(ConfigError, match=r"component\[1\].profile.isolated_bus is not true"):
        load(folder, GOOD + ROM.replace("isolated_bus = true", "isolated_bus = false"))
    with pytest.raises(ConfigError, match=r"component\[1\].channel: winch has a ROM loader"):
        load(folder, GOOD + ROM.replace('"stub"', '"bench"'))
    with pytest.raises(ConfigError, match=r"component\[1\].tx_id is given"):
        load(folder, GOOD + ROM.replace("profile.isolated", "tx_id = 1\nprofile.isolated"))


GATEWAY = """
[[component]]
name = "gateway"
kind = "jetson-orin"
hardware = "rev-a"
flasher = "jetson-ab"
note_file = "gateway-note.json"
version_file = "/etc/quarry-image"
current_slot_command = ["/usr/sbin/nvbootctrl", "-t", "rootfs", "get-current-slot"]
switch_command = ["/usr/sbin/nvbootctrl", "-t", "rootfs", "set-active-boot-slot", "{slot}"]
[[component.slot]]
name = "0"
path = "/dev/disk/by-partlabel/APP"
[[component.slot]]
name = "1"
path = "/dev/disk/by-partlabel/APP_b"
"""


def test_the_gateway_is_a_component_with_two_slots(folder: Path) -> None:
    gateway = load(folder, GOOD + GATEWAY).components[1]
    assert isinstance(gateway, JetsonSettings)
    assert [one.name for one in gateway.slots] == ["0", "1"]
    assert gateway.note_file == folder / "gateway-note.json"
    for old, new, says in (
        ('"{slot}"', '"1"', r"component\[1\].switch_command: {slot} is missing"),
        ("version_file =", "version_fiel =", r"component\[1\].version_file and version_command"),
        ("switch_command", "confirm_command", r"component\[1\].switch_command: is missing"),
        ('name = "1"', 'name = "0"', r"component\[1\].slots: both have the name 0"),
        ('name = "gateway"', 'name = "brake"', r"component\[1\].name: there are two components brake"),
    ):
        with pytest.raises(ConfigError, match=says):
            load(folder, GOOD + GATEWAY.replace(old, new))
    with pytest.raises(ConfigError, match=r"component\[2\].flasher: there is one gateway only"):
        load(folder, GOOD + GATEWAY + GATEWAY.replace('"gateway"', '"other"'))


def test_a_profile_file_says_what_the_component_does_not(folder: Path) -> None:
    (folder / "brake.toml").write_text(
        'protocol = "stm32-uds"\nkind = "other"\n[can]\ntx_id = 0x18DA10F1\nrx_id = 0x18DAF110\nfd = true\n'
    )
    text = GOOD.replace('flasher = "stm32-uds"', 'profile_file = "brake.toml"')
    text = text.replace("tx_id = 0x7E0\nrx_id = 0x7E8\n", "")
    [ecu] = ecus(load(folder, text))
    assert (ecu.tx_id, ecu.fd, ecu.kind) == (0x18DA10F1, True, "brake-controller")
    (folder / "brake.toml").write_text('protocol = "stm32-uds"\n[can]\ntx = 1\n')
    with pytest.raises(
        ConfigError, match=r"component\[0\].*brake.toml: can.tx is not a known key"
    ) as refused:
        load(folder, text)
    assert str(folder / "agent.toml") in refused.value.message


def test_two_components_on_two_buses_may_use_the_same_ids(folder: Path) -> None:
    text = second('"brake" -> "gearbox"')
    at = text.rindex('channel = "bench"')
    config = load(folder, text[:at] + text[at:].replace('channel = "bench"', 'channel = "other"'))
    assert [ecu.component for ecu in config.components] == ["brake", "gearbox"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"= no toml", "is not TOML"),
        (b"\xff\xfe", "is not TOML"),
        (b"x = " + b"[" * 5000, "is not TOML"),
        (b"#" * (MOST_CONFIG_BYTES + 1), "is over"),
    ],
)
def test_what_is_no_configuration_file_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    file = tmp_path / "agent.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=says):
        load_config(file)


def test_a_file_that_is_not_there_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file") as refused:
        load_config(tmp_path / "agent.toml")
    assert "quarry agent init" in refused.value.advice


@pytest.mark.parametrize(
    ("office", "host", "wanted"),
    [
        (Office(url="x"), "127.0.0.1", False),
        (Office(url="x"), "::1", False),
        (Office(url="x"), "localhost", False),
        (Office(url="x"), "broker.example", True),
        (Office(url="x"), "10.0.0.1", True),
        (Office(url="x", allow_plain=True), "broker.example", False),
        (Office(url="x", allow_plain=True, mqtt_tls=True), "broker.example", True),
        (Office(url="x", mqtt_tls=True), "127.0.0.1", True),
    ],
)
def test_tls_is_the_rule_beyond_loopback(office: Office, host: str, wanted: bool) -> None:
    assert office.wants_tls(host) is wanted


def test_tls_is_never_switched_off_by_mistake() -> None:
    with pytest.raises(ConfigError, match=re.escape("office.mqtt_tls")):
        Office(url="x", mqtt_tls=False).wants_tls("broker.example")


def test_a_plain_office_beyond_loopback_needs_the_word(folder: Path) -> None:
    text = GOOD.replace("http://127.0.0.1:8080", "http://10.0.0.7").replace(
        "[trust]", "allow_plain = true\n[trust]"
    )
    assert load(folder, text).office.allow_plain


def test_the_example_is_a_whole_configuration_but_for_its_files(folder: Path) -> None:
    """Only what a person must bring (keys, the secret) is missing from the example."""
    example = (resources.files("edge_agent") / "packaging" / "agent.toml").read_text()
    assert tomllib.loads(example)["office"]["url"].startswith("https://")
    (folder / "firmware-key.pub.pem").write_bytes((folder / "key.pem").read_bytes())
    (folder / "brake-controller.secret").touch(mode=0o600)
    (folder / "brake-controller.secret").write_bytes(b"\x01" * 32)
    config = load(folder, example)
    assert config.vehicle.source == "file"
    # Every commented setting is a real one too.
    uncommented = re.sub(r"^# (?=[a-z_]+ = |\[)", "", example, flags=re.MULTILINE)
    assert uncommented != example
    (folder / "office-ca.pem").touch()
    (folder / "proxy.secret").touch(mode=0o600)
    (folder / "proxy.secret").write_text("truck:secret")
    world = UptaneWorld()
    (folder / "director.root.json").write_bytes(world.director.published["1.root.json"])
    (folder / "image.root.json").write_bytes(world.image.published["1.root.json"])
    assert ecus(load(folder, uncommented))[0].profile.timing.boot_s == 30.0


def test_an_authority_that_is_none_is_named(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("nothing")
    with pytest.raises(ConfigError, match=r"office.ca_file: .*ca.pem"):
        tls_context(file)
