"""The office's configuration: where values come from, and that nothing wrong is let in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from control_plane.config import KILL_POINTS, OfficeConfig, load_config
from shared.errors import ConfigError

DATA = Path("/nowhere")


def test_later_sources_win(tmp_path: Path) -> None:
    file = tmp_path / "office.toml"
    file.write_text('http_port = 1\nmqtt_port = 2\nsend_burst = 3\nfirmware_keys = ["a.pem"]\n')
    config = load_config(
        data=DATA,
        file=file,
        environment={
            "QUARRY_MQTT_PORT": "20",
            "QUARRY_SEND_BURST": "30",
            "HOME": "/x",
            "QUARRY_PYTHON": "p",
            "QUARRY_DATA": "/x",
        },
        send_burst=300,
        http_host=None,
    )
    assert (config.http_port, config.mqtt_port, config.send_burst) == (1, 20, 300)
    assert (config.http_host, config.firmware_keys) == ("127.0.0.1", ("a.pem",))


@pytest.mark.parametrize(
    ("toml", "key"),
    [
        ("http_prot = 1", "http_prot"),
        ('data = "/x"', "data"),
        ('http_port = "8080"', "http_port"),
        ("http_port = 1.5", "http_port"),
        ("http_port = -1", "http_port"),
        ("send_rate_per_s = 0", "send_rate_per_s"),
        ("send_rate_per_s = nan", "send_rate_per_s"),
        ("resend_first_s = 9.0\nresend_most_s = 8.0", "resend_most_s"),
        ('log_level = "loud"', "log_level"),
        ('public_url = "ftp://x"', "public_url"),
        ('http_host = "localhost"', "http_host"),
        ('http_host = "0.0.0.0"', "http_host"),
        ("[server]\nport = 1", "server"),
        ("not toml", "not TOML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, toml: str, key: str) -> None:
    file = tmp_path / "office.toml"
    file.write_text(toml)
    with pytest.raises(ConfigError, match=key):
        load_config(data=DATA, file=file)


@pytest.mark.parametrize(
    "environment",
    [{"QUARRY_HTTP_PORT": "many"}, {"QUARRY_NO_SUCH": "1"}, {"QUARRY_KILL_AT": "x"}],
)
def test_a_wrong_environment_is_named(environment: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=next(iter(environment)).removeprefix("QUARRY_").lower()):
        load_config(data=DATA, environment=environment)


def test_files_that_can_not_be_read(tmp_path: Path) -> None:
    large = tmp_path / "large.toml"
    large.write_bytes(b"#" * 100_000)
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    for file in (tmp_path / "none.toml", tmp_path, large, binary):
        with pytest.raises(ConfigError, match=file.name):
            load_config(data=DATA, file=file)


def test_a_point_that_is_not_asked_for_is_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[Any] = []
    monkeypatch.setattr("control_plane.config.os.kill", lambda *args: killed.append(args))
    config = OfficeConfig(data=DATA, kill_at="outbox.before_mark")
    for point in sorted(KILL_POINTS):
        config.reached(point)
    assert len(killed) == 1
    for point in KILL_POINTS:
        OfficeConfig(data=DATA).reached(point)
    assert len(killed) == 1
