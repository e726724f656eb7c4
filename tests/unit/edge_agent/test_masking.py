"""No secret leaves in any usual writing; what is none stays readable."""

from __future__ import annotations

import base64
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.hands.masking import MASK, Masker

SECRET = bytes(range(200, 232))


@pytest.mark.parametrize(
    "written",
    [
        SECRET,
        SECRET.hex().encode(),
        SECRET.hex().upper().encode(),
        base64.b64encode(SECRET),
        base64.urlsafe_b64encode(SECRET).rstrip(b"="),
        quote(SECRET).encode(),
    ],
)
def test_a_known_secret_is_masked_however_it_is_written(written: bytes) -> None:
    masked = Masker([SECRET + b"\n"])(b"before " + written + b" after")
    assert written not in masked
    assert masked.startswith(b"before [masked]")
    assert masked.endswith(b" after")


@given(
    st.lists(st.lists(st.integers(128, 255), min_size=6, max_size=40).map(bytes), min_size=1, max_size=5),
    st.lists(st.integers(0, 31), max_size=50).map(bytes),
)
def test_no_known_secret_is_left(secrets: list[bytes], around: bytes) -> None:
    """Also where one is a part of another, or they stand side by side."""
    masked = Masker(secrets)(around + b"".join(secrets) + around + b"|".join(secrets))
    assert not any(one in masked for one in secrets)
    assert masked.startswith(around + MASK)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (b'password = "hunter22"', b'password = "[masked]"'),
        (b'{"mqtt_password": "hunter22", "port": 1}', b'{"mqtt_password": "[masked]", "port": 1}'),
        (b"http_token: abcdef\n", b'http_token: "[masked]"\n'),
        (b"office https://me:pass@host/x", b"office https://[masked]@host/x"),
        (b"GET /a?x=1&X-Amz-Signature=00ff&y=2", b"GET /a?x=1&X-Amz-Signature=[masked]&y=2"),
        (b"Authorization: Bearer abcdef123456", b"Authorization: Bearer [masked]"),
        (b"a\n-----BEGIN PRIVATE KEY-----\nMC4C\n-----END PRIVATE KEY-----\nb", b"a\n[masked]\nb"),
        (b"-----BEGIN EC PRIVATE KEY-----\ncut off", b"[masked]"),
    ],
)
def test_what_its_name_betrays_is_masked(text: bytes, left: bytes) -> None:
    assert Masker([])(text) == left


@pytest.mark.parametrize(
    "text",
    [
        b'security_secret_file = "brake-controller.secret"',
        b'{"job_id": "job-1", "state": "flashing", "sha256": "00ff"}',
        b"statuses = 3\nkeyboard = 1",
        b'token_id = "truck-7"',
        b"-----BEGIN PUBLIC KEY-----\nMCow\n-----END PUBLIC KEY-----",
    ],
)
def test_what_is_no_secret_stays(text: bytes) -> None:
    assert Masker([b"short", b""])(text) == text
