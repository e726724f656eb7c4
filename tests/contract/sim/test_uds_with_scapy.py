"""The simulated ECU as scapy's UDS scanner finds it: sessions, services, access; over scapy's own ISO-TP."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from sim.mcu.profile import Timing


@pytest.fixture(scope="module")
def scapy() -> Any:
    with warnings.catch_warnings():
        # Of its own imports.
        warnings.simplefilter("ignore")
        return SimpleNamespace(
            can=importlib.import_module("scapy.contrib.cansocket_python_can"),
            isotp=importlib.import_module("scapy.contrib.isotp"),
            uds=importlib.import_module("scapy.contrib.automotive.uds"),
            scan=importlib.import_module("scapy.contrib.automotive.uds_scan"),
        )


@pytest.fixture
def scanned(works: Any, scapy: Any) -> Iterator[dict[str, Any]]:
    """The scanner's test cases by name, after a whole scan."""
    mcu = works.stm32(holds=works.sign("1.0.0", works.build_stm32("1.0.0", 4096)), timing=Timing(reset_s=0.0))
    sockets: list[Any] = []

    def connect() -> Any:
        socket = scapy.isotp.ISOTPSoftSocket(
            scapy.can.PythonCANSocket(interface="virtual", channel=works.channel),
            tx_id=0x7E0,
            rx_id=0x7E8,
            basecls=scapy.uds.UDS,
        )
        sockets.append(socket)
        return socket

    scan = scapy.scan
    scanner = scan.UDS_Scanner(
        connect(),
        reconnect_handler=connect,
        reset_handler=mcu.power_cycle,
        test_cases=[
            scan.UDS_ServiceEnumerator,
            scan.UDS_DSCEnumerator,
            scan.UDS_SAEnumerator,
            scan.UDS_TDEnumerator,
        ],
        timeout=2,
        UDS_ServiceEnumerator_kwargs={
            "request_length": 1,
            "scan_range": [*range(0x10, 0x3F), *range(0x83, 0x89)],
        },
        UDS_DSCEnumerator_kwargs={
            "scan_range": range(1, 6),
            "overwrite_timeout": False,
            "delay_state_change": 0,
        },
        UDS_SAEnumerator_kwargs={"scan_range": range(1, 5)},
        UDS_TDEnumerator_kwargs={"scan_range": range(3)},
    )
    try:
        scanner.scan(timeout=100)
        yield {type(case).__name__: case for case in scanner.configuration.test_cases}
    finally:
        for socket in sockets:
            socket.close()


def positive(case: Any) -> set[tuple[int, bytes]]:
    """(session, request) of everything that was granted."""
    return {(one.state.session, bytes(one.req)) for one in case.results_with_positive_response}


def refused(case: Any) -> dict[tuple[int, bytes], int]:
    """The code of everything that was refused."""
    return {
        (one.state.session, bytes(one.req)): one.resp.negativeResponseCode
        for one in case.results_with_negative_response
    }


def test_scapy_finds_what_the_profile_says(scanned: dict[str, Any]) -> None:
    assert all(not case.results_without_response for case in scanned.values()), "all are answered"

    sessions = positive(scanned["UDS_DSCEnumerator"])
    assert {(1, b"\x10\x03"), (3, b"\x10\x02"), (3, b"\x10\x01"), (2, b"\x10\x03")} <= sessions
    assert refused(scanned["UDS_DSCEnumerator"])[1, b"\x10\x02"] == 0x7E
    assert refused(scanned["UDS_DSCEnumerator"])[3, b"\x10\x04"] == 0x12

    services = refused(scanned["UDS_ServiceEnumerator"])
    here = {
        session: {raw[0] for (at, raw), nrc in services.items() if at == session and nrc != 0x11}
        for session in (1, 2, 3)
    }
    known = {0x10, 0x11, 0x22, 0x23, 0x27, 0x28, 0x2E, 0x31, 0x34, 0x36, 0x37, 0x3E, 0x85}
    # Trouble codes are the application's to tell, not the bootloader's.
    assert here == {1: known | {0x19}, 2: known, 3: known | {0x19}}
    elsewhere = {
        session: {raw[0] for (at, raw), nrc in services.items() if at == session and nrc == 0x7F}
        for session in (1, 2, 3)
    }
    programming = {0x23, 0x27, 0x2E, 0x34, 0x36, 0x37}
    assert elsewhere == {1: programming | {0x28, 0x31, 0x85}, 2: set(), 3: programming}

    assert {one for one in positive(scanned["UDS_SAEnumerator"]) if one[0] != 2} == set()
    assert (2, b"\x27\x01") in positive(scanned["UDS_SAEnumerator"])
    assert positive(scanned["UDS_TDEnumerator"]) == set(), "no transfer without a download"
