"""The truck's token goes to its own office's image repository, and to nobody else."""

from __future__ import annotations

import httpx
import pytest

from edge_agent.delivery.transfer import OurOffice

TOKEN = "secret-token"


@pytest.mark.parametrize(
    ("base", "address"),
    [
        ("https://office.example", "https://office.example/repo/image/targets/a/b.bin"),
        ("https://office.example/", "https://office.example:443/repo/image/x"),
        ("https://office.example/quarry", "https://office.example/quarry/repo/image/x"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080/repo/image/x"),
    ],
)
def test_our_own_repository_gets_it(base: str, address: str) -> None:
    made = OurOffice(base=base, token=TOKEN).headers(httpx.URL(address))
    assert made == {"Authorization": f"Bearer {TOKEN}"}


@pytest.mark.parametrize(
    "address",
    [
        "https://store.example/repo/image/x",
        "https://office.example.evil.example/repo/image/x",
        "https://office.example:8443/repo/image/x",
        "http://office.example/repo/image/x",
        "https://office.example@evil.example/repo/image/x",
        "https://me@office.example/repo/image/x",
        "https://evil.example/https://office.example/repo/image/x",
        "https://office.example/files/x?signature=1",
        "https://office.example/repo/imagery/x",
        "https://office.example/other/repo/image/x",
        "https://office.example/repo/image/../../admin",
        "https://office.example/repo/image/%2e%2e/admin",
    ],
)
def test_nobody_else_does(address: str) -> None:
    assert OurOffice(base="https://office.example", token=TOKEN).headers(httpx.URL(address)) == {}


def test_it_is_not_shown() -> None:
    assert TOKEN not in repr(OurOffice(base="https://office.example", token=TOKEN))
