"""The simulated ECUs by the book of others: udsoncan's client over can-isotp, both as they come."""

from __future__ import annotations

import hashlib
import hmac
import importlib
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import can
import isotp
import pytest
import udsoncan
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from udsoncan.client import Client
from udsoncan.connections import PythonIsoTpConnection
from udsoncan.exceptions import NegativeResponseException

from sim.mcu.isotp import Transport
from sim.mcu.profile import Downloads
from sim.mcu.trouble_codes import TroubleCodes

# Its package says what it exports to readers, not to type checkers.
services: Any = importlib.import_module("udsoncan.services")
SLOT, DOCUMENT = 0x0801_0000, 0x0800_8000
SECRET = bytes(range(32))

ADDRESSES = {
    "11-bit": (isotp.Address(isotp.AddressingMode.Normal_11bits, txid=0x7E0, rxid=0x7E8), {}),
    "29-bit": (
        isotp.Address(isotp.AddressingMode.NormalFixed_29bits, target_address=0x10, source_address=0xF1),
        {"request_id": 0x18DA10F1, "response_id": 0x18DAF110, "functional_id": 0x18DB33F1},
    ),
}
FRAMES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "classic": ({}, {}),
    "fd": ({"can_fd": True, "bitrate_switch": True, "tx_data_length": 64}, {"fd": True}),
}
SERVERS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "small blocks": {
        "transport": Transport(block_size=8, st_min=1, waits=1, wait_s=0.01),
        "downloads": Downloads(block_bytes=130),
    },
    "long blocks, pipelined, compressed": {
        "downloads": Downloads(block_bytes=6000, pipelined=True, deflate=True),
        "transport": Transport(st_min=0xF1),
    },
}


class Bytes(udsoncan.DidCodec):
    """Identifiers as they are."""

    def encode(self, value: bytes) -> bytes:
        return value

    def decode(self, value: bytes) -> bytes:
        return value

    def __len__(self) -> int:
        raise udsoncan.DidCodec.ReadAllRemainingData


CONFIG: Any = {
    **udsoncan.configs.default_client_config,
    "data_identifiers": {"default": Bytes},
    "security_algo": lambda level, seed, params: hmac.digest(params, seed, hashlib.sha256)[:16],
    "security_algo_params": SECRET,
    "server_address_format": 32,
    "server_memorysize_format": 32,
    "request_timeout": 10,
    # A busy machine is slower than the 50 ms that the ECU names.
    "use_server_timing": False,
    "p2_timeout": 5,
}


@contextmanager
def asking(bus: can.BusABC, address: Any, params: dict[str, Any]) -> Iterator[Any]:
    notifier = can.Notifier(bus, [], timeout=0.05)
    try:
        stack = isotp.NotifierBasedCanStack(bus=bus, notifier=notifier, address=address, params=params)
        stack.set_sleep_timing(0.001, 0.001)
        with Client(PythonIsoTpConnection(stack), config=CONFIG) as client:
            yield client
    finally:
        notifier.stop()


def read(client: Any, did: int) -> bytes:
    value: bytes = client.read_data_by_identifier_first(did)
    return value


def enter(client: Any) -> None:
    client.change_session(3)
    client.change_session(2)
    client.unlock_security_access(1)
    client.write_data_by_identifier(0xF15A, b"workshop 7")


def area(start: int, size: int) -> bytes:
    return udsoncan.MemoryLocation(start, size, 32, 32).alfid.get_byte() + b"".join(
        number.to_bytes(4, "big") for number in (start, size)
    )


def status(response: Any) -> bytes:
    data: bytes = response.service_data.routine_status_record
    return data


def download(client: Any, start: int, data: bytes, *, deflate: bool) -> int:
    """The number of blocks that it took."""
    location = udsoncan.MemoryLocation(start, len(data), 32, 32)
    sent = data
    if deflate:
        packer = zlib.compressobj(9, zlib.DEFLATED, -12)
        sent = packer.compress(data) + packer.flush()
    dfi = udsoncan.DataFormatIdentifier(compression=1 if deflate else 0)
    room = client.request_download(location, dfi).service_data.max_length - 2
    blocks = [sent[at : at + room] for at in range(0, len(sent), room)]
    for number, block in enumerate(blocks):
        client.transfer_data((number + 1) & 0xFF, block)
    client.request_transfer_exit()
    digest = hashlib.sha256(data).digest()
    assert status(client.start_routine(0x0202, area(start, len(data)) + digest)) == b"\x00"
    return len(blocks)


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("frames", FRAMES)
@pytest.mark.parametrize("ids", ADDRESSES)
def test_udsoncan_programs_an_stm32(works: Any, ids: str, frames: str, server: str) -> None:
    address, id_words = ADDRESSES[ids]
    params, fd_words = FRAMES[frames]
    params = {**params, "wftmax": 1}
    old = works.sign("1.0.0", works.build_stm32("1.0.0", 8192))
    new = works.sign("1.1.0", works.build_stm32("1.1.0", 6000))
    mcu = works.stm32(holds=old, **id_words, **fd_words, **SERVERS[server])
    deflate = "compressed" in server
    with asking(works.open_bus(), address, params) as client:
        assert read(client, 0xF189) == b"1.0.0"
        client.change_session(3)
        assert status(client.start_routine(0x0203)) == b"\x00"
        client.control_dtc_setting(services.ControlDTCSetting.SettingType.off)
        client.communication_control(
            services.CommunicationControl.ControlType.enableRxAndDisableTx,
            udsoncan.CommunicationType(
                subnet=udsoncan.CommunicationType.Subnet.node, normal_msg=True, network_management_msg=False
            ),
        )
        assert mcu.uds.quiet
        assert mcu.uds.dtcs_off
        enter(client)
        for start, size in ((DOCUMENT, 0x4000), (SLOT, 0x1_0000)):
            assert status(client.start_routine(0xFF00, area(start, size))) == b"\x00"
        blocks = download(client, SLOT, new.image, deflate=deflate)
        assert deflate or blocks == (47 if server == "small blocks" else 2)
        download(client, DOCUMENT, new.packed, deflate=deflate)
        for start, expected in ((SLOT, new.image), (SLOT + 2000, new.image[2000:])):
            location = udsoncan.MemoryLocation(start, 4000, 32, 32)
            read_back = client.read_memory_by_address(location).service_data.memory_block
            assert read_back == expected[:4000]
        assert status(client.start_routine(0xFF01)) == b"\x00"
        client.ecu_reset(services.ECUReset.ResetType.hardReset)
    assert mcu.boots().spec is not None
    assert mcu.content(6000) == new.image


def test_udsoncan_reads_trouble_codes(works: Any) -> None:
    address, _ = ADDRESSES["11-bit"]
    trouble = TroubleCodes(always={0xC10000 + number: 0x2F for number in range(40)}, kept_bits=0x7F)
    works.stm32(holds=works.sign("1.0.0", works.build_stm32("1.0.0", 8192)), trouble=trouble)
    with asking(works.open_bus(), address, {}) as client:
        told = client.get_dtc_by_status_mask(0x08).service_data
        assert told.status_availability.get_byte() == b"\x7f"
        assert {one.id: one.status.get_byte_as_int() for one in told.dtcs} == trouble.always
        assert client.get_dtc_by_status_mask(0x10).service_data.dtcs == []
        with pytest.raises(NegativeResponseException):
            client.get_supported_dtc()


def test_udsoncan_updates_an_esp32_and_confirms(works: Any) -> None:
    address, _ = ADDRESSES["11-bit"]
    old = works.sign("1.0.0", works.build_esp32(version="1.0.0", nbytes=8192))
    new = works.sign("1.1.0", works.build_esp32(version="1.1.0", nbytes=16_384, secure_version=4))
    mcu = works.esp32(holds=old)
    with asking(works.open_bus(), address, {}) as client:
        assert read(client, 0xFD02) == b"\x00"
        passive = read(client, 0xFD07)
        image_at, image_size, document_at, document_size = (
            int.from_bytes(passive[at : at + 4], "big") for at in range(0, 16, 4)
        )
        assert (image_at, image_size, document_at, document_size) == (0x11_0000, 0x10_0000, 0x21_4000, 0x4000)
        enter(client)
        client.start_routine(0xFF00, area(document_at, document_size))
        client.start_routine(0xFF00, area(image_at, 0x4000))
        download(client, image_at, new.image, deflate=False)
        download(client, document_at, new.packed, deflate=False)
        assert status(client.start_routine(0xFF01)) == b"\x00"
        client.ecu_reset(services.ECUReset.ResetType.hardReset)
        # What is asked while the part resets is lost.
        client.set_config("request_timeout", 0.3)
        for _ in range(30):
            try:
                assert read(client, 0xF189) == b"1.1.0"
                break
            except udsoncan.exceptions.TimeoutException:
                continue
        assert (read(client, 0xFD02), read(client, 0xFD03), read(client, 0xFD04)) == (
            b"\x01",
            b"\x01",
            bytes(4),
        )
        client.change_session(3)
        client.unlock_security_access(1)
        assert status(client.start_routine(0x0210)) == b"\x00"
        assert (read(client, 0xFD03), read(client, 0xFD04)) == (b"\x02", b"\x00\x00\x00\x04")
        with pytest.raises(NegativeResponseException) as refused:
            client.start_routine(0x0211)
        assert refused.value.response.code == 0x22, "the old one is below the eFuse now"
    assert mcu.content(1, 16_384) == new.image


@pytest.mark.parametrize("curve", ["ed25519", "p-256"])
def test_udsoncan_authenticates_by_certificate(works: Any, curve: str) -> None:
    key: Any = (
        ed25519.Ed25519PrivateKey.generate()
        if curve == "ed25519"
        else ec.generate_private_key(ec.SECP256R1())
    )
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "workshop CA")])
    now = datetime.now(UTC)

    def certificate(name: x509.Name, public: Any) -> x509.Certificate:
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(ca_name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .sign(ca_key, hashes.SHA256())
        )

    ca = certificate(ca_name, ca_key.public_key())
    mine = certificate(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tester 7")]), key.public_key()
    ).public_bytes(Encoding.DER)
    works.stm32(
        holds=works.sign("1.0.0", works.build_stm32("1.0.0", 4096)),
        security_ca=ca.public_bytes(Encoding.PEM),
    )
    address, _ = ADDRESSES["11-bit"]
    with asking(works.open_bus(), address, {}) as client:
        client.change_session(3)
        client.change_session(2)
        assert client.authentication_configuration().service_data.return_value == 0x02
        answer = client.verify_certificate_unidirectional(
            communication_configuration=0, certificate_client=mine
        ).service_data
        assert answer.return_value == 0x11
        assert answer.ephemeral_public_key_server == b""
        with pytest.raises(NegativeResponseException) as locked:
            client.write_data_by_identifier(0xF15A, b"too early")
        assert locked.value.response.code == 0x33
        challenge = answer.challenge_server
        proof = key.sign(challenge) if curve == "ed25519" else key.sign(challenge, ec.ECDSA(hashes.SHA256()))
        answer = client.proof_of_ownership(proof_of_ownership_client=proof).service_data
        assert (answer.return_value, answer.session_key_info) == (0x12, b"")
        client.write_data_by_identifier(0xF15A, b"workshop 7")
        assert client.deauthenticate().service_data.return_value == 0x10
        with pytest.raises(NegativeResponseException) as locked:
            client.write_data_by_identifier(0xF15A, b"too late")
        assert locked.value.response.code == 0x33
