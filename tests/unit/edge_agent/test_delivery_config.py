"""What the configuration says of links, budgets, proxy and queues, and every way to get it wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent.delivery.delivery_config import MIB, read_downloads, read_queue
from edge_agent.delivery.links import ANY_WAY, Way
from edge_agent.sections import Section
from edge_agent.store.queue_bounds import QueueLimits
from shared.errors import ConfigError


def section(folder: Path, text: str) -> Section:
    file = folder / "agent.toml"
    file.write_text(text)
    return Section.of_file(file)


def test_without_a_word_nothing_is_bounded_and_no_proxy_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://elsewhere:1")
    downloads = read_downloads(section(tmp_path, ""))
    assert (downloads.proxy, downloads.job_bytes, downloads.bytes_per_s) == (None, None, None)
    assert downloads.ways == (ANY_WAY,)
    assert downloads.local_folders == ()
    assert read_queue(section(tmp_path, "")) == QueueLimits()


def test_links_keep_their_order_and_their_bounds(tmp_path: Path) -> None:
    secret = tmp_path / "proxy.secret"
    secret.touch(mode=0o600)
    secret.write_text("truck:with:colons\n")
    text = """
    most_mib_per_job = 3
    most_mib_per_day = 5
    most_kib_per_s = 2
    proxy = "https://proxy.example:3128"
    proxy_credentials_file = "proxy.secret"
    local_folders = ["stick"]
    [[link]]
    name = "wifi"
    interface = "wlan0"
    [[link]]
    name = "satellite"
    address = "10.0.0.2"
    most_mib_per_day = 1
    most_mib_per_image = 0
    """
    downloads = read_downloads(section(tmp_path, text))
    assert downloads.ways == (
        Way(name="wifi", interface="wlan0"),
        Way(name="satellite", address="10.0.0.2", day_bytes=MIB, image_bytes=0),
    )
    assert (downloads.budget.job_bytes, downloads.budget.day_bytes) == (3 * MIB, 5 * MIB)
    assert downloads.budget.links == {"wifi": None, "satellite": MIB}
    assert downloads.bytes_per_s == 2048
    assert downloads.local_folders == (tmp_path / "stick",)
    assert downloads.proxy is not None
    assert (downloads.proxy.user, downloads.proxy.password) == ("truck", "with:colons")
    assert "colons" not in repr(downloads)


WRONG = {
    'proxy = "socks5://p"': "proxy",
    'proxy = "http://user:word@p:1"': "proxy",
    'proxy_credentials_file = "open.secret"': "proxy_credentials_file",
    'proxy = "http://proxy.example:1"\nproxy_credentials_file = "good.secret"': "proxy",
    'proxy = "https://p:1"\nproxy_credentials_file = "open.secret"': "proxy_credentials_file",
    'proxy = "https://p:1"\nproxy_credentials_file = "none.secret"': "proxy_credentials_file",
    "most_kib_per_s = 0": "most_kib_per_s",
    "most_mib_per_job = -1": "most_mib_per_job",
    "most_mib_a_day = 1": "most_mib_a_day",
    "link = []": "link",
    '[[link]]\ninterface = "wlan0"': "name",
    '[[link]]\nname = "a"\n[[link]]\nname = "a"': "name",
    '[[link]]\nname = "a"\ninterface = "an-interface-too-long"': "interface",
    '[[link]]\nname = "a"\nspeed = 3': "speed",
}


@pytest.mark.parametrize("text", WRONG)
def test_each_mistake_is_named(tmp_path: Path, text: str) -> None:
    for name, mode in (("good.secret", 0o600), ("open.secret", 0o644)):
        (tmp_path / name).write_text("truck:secret")
        (tmp_path / name).chmod(mode)
    with pytest.raises(ConfigError, match=WRONG[text]):
        read_downloads(section(tmp_path, text))


@pytest.mark.parametrize(
    "text", ["most_statuses = 1", "most_status_mib = 0", "write_every_s = 0", "most = 1"]
)
def test_queues_have_bounds_that_can_be(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=text.split(" ", maxsplit=1)[0]):
        read_queue(section(tmp_path, text))
