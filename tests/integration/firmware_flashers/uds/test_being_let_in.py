"""Seed and key, a helper program's key, certificates: who is let in, who is not, and that no secret shows."""

from __future__ import annotations

import datetime
import stat
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from firmware_flashers.base import AccessDenied, FlashError
from firmware_flashers.can_link import open_link
from firmware_flashers.registry import EcuSettings, flasher_on
from firmware_flashers.uds import UdsClient
from sim.mcu.faults import Faults

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


class Authority:
    """A certificate authority with tester certificates of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = ed25519.Ed25519PrivateKey.generate()
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
        self.certificate = (
            self._builder(self.name, self.key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self.key, None)
        )
        self.pem = self.certificate.public_bytes(Encoding.PEM)

    def _builder(self, subject: x509.Name, public: Any, *, last: Any = NOW + DAY) -> Any:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - 2 * DAY)
            .not_valid_after(last)
        )

    def issue(self, key: Any, *, last: Any = NOW + DAY, der: bool = False) -> dict[str, Any]:
        """Settings that name a certificate of this authority and its key."""
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a tester")])
        builder = self._builder(subject, key.public_key(), last=last).add_extension(
            x509.BasicConstraints(ca=False, path_length=None), critical=True
        )
        signed = builder.sign(self.key, None)
        return self.write(signed, key, der=der)

    def write(self, certificate: x509.Certificate, key: Any, *, der: bool = False) -> dict[str, Any]:
        certificate_file, key_file = self.folder / "tester.crt", self.folder / "tester.key"
        certificate_file.write_bytes(certificate.public_bytes(Encoding.DER if der else Encoding.PEM))
        key_file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        key_file.chmod(0o600)
        return {
            "security_secret_file": None,
            "security_certificate_file": certificate_file,
            "security_key_file": key_file,
        }


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.mark.parametrize("word", ["stm32-uds", "esp32-uds"])
@pytest.mark.parametrize(
    ("make_key", "der"),
    [(ed25519.Ed25519PrivateKey.generate, False), (lambda: ec.generate_private_key(ec.SECP256R1()), True)],
    ids=["ed25519", "p256-der"],
)
async def test_a_certificate_lets_in(
    lab: Any, authority: Authority, word: str, make_key: Any, der: bool
) -> None:
    ecu = lab.ecu(word, security_ca=authority.pem)
    await ecu.flash(security="certificate", settings=authority.issue(make_key(), der=der))
    assert ecu.runs() == ecu.new.spec


async def test_a_certificate_that_ran_out_is_named_and_nothing_touched(
    lab: Any, authority: Authority
) -> None:
    ecu = lab.ecu(security_ca=authority.pem)
    settings = authority.issue(ed25519.Ed25519PrivateKey.generate(), last=NOW - DAY)
    async with ecu.flasher(security="certificate", settings=settings) as flasher:
        with pytest.raises(AccessDenied) as caught:
            await flasher.stage(ecu.new)
    assert caught.value.code == "certificate_time_period"
    assert not caught.value.touched
    await ecu.settle()
    assert ecu.runs() == ecu.old.spec


async def test_a_certificate_of_another_authority_is_named(
    lab: Any, authority: Authority, tmp_path: Path
) -> None:
    ecu = lab.ecu(security_ca=authority.pem)
    settings = Authority(tmp_path).issue(ed25519.Ed25519PrivateKey.generate())
    async with ecu.flasher(security="certificate", settings=settings) as flasher:
        with pytest.raises(AccessDenied) as caught:
            await flasher.stage(ecu.new)
    assert caught.value.code in {"certificate_chain", "certificate_signature"}
    assert not caught.value.touched


@pytest.mark.parametrize("lost", [9, 10])
async def test_a_lost_answer_of_the_exchange_is_survived(lab: Any, authority: Authority, lost: int) -> None:
    """9 is the challenge, 10 the end: the proof is not sent again, the exchange is."""
    ecu = lab.ecu(security_ca=authority.pem, faults=Faults(lose_response=lost))
    settings = authority.issue(ed25519.Ed25519PrivateKey.generate())
    await ecu.flash(security="certificate", settings=settings)
    assert ecu.runs() == ecu.new.spec


@pytest.mark.parametrize("nrc", range(0x50, 0x5E))
async def test_each_refusal_of_a_certificate_is_named(lab: Any, authority: Authority, nrc: int) -> None:
    ecu = lab.ecu(security_ca=authority.pem, faults=Faults(refuse_at_request=9, refuse_with=nrc))
    settings = authority.issue(ed25519.Ed25519PrivateKey.generate())
    async with ecu.flasher(security="certificate", settings=settings) as flasher:
        with pytest.raises(AccessDenied, match=f"0x{nrc:02X}") as caught:
            await flasher.stage(ecu.new)
    assert caught.value.code != "access_denied"
    assert not caught.value.touched


async def test_the_wrong_kind_of_access_is_named(lab: Any, authority: Authority) -> None:
    """An ECU with certificates, and a profile that says seed and key; and the other way round."""
    ecu = lab.ecu(security_ca=authority.pem)
    async with ecu.flasher() as flasher:
        with pytest.raises(FlashError, match="security seed") as caught:
            await flasher.stage(ecu.new)
    assert caught.value.code == "service_not_supported"
    other = lab.ecu()
    settings = authority.issue(ed25519.Ed25519PrivateKey.generate())
    async with other.flasher(security="certificate", settings=settings) as flasher:
        with pytest.raises(FlashError, match="the certificate") as caught:
            await flasher.stage(other.new)
    assert caught.value.code == "service_not_supported"


HELPER = """#!{python}
import hashlib, hmac, sys
seed = bytes.fromhex(sys.stdin.readline())
print(hmac.new(bytes(range(32)), seed, hashlib.sha256).digest()[:16].hex())
"""


async def test_a_helper_program_makes_the_key(lab: Any, tmp_path: Path) -> None:
    helper = tmp_path / "make-key"
    helper.write_text(HELPER.format(python=sys.executable))
    helper.chmod(helper.stat().st_mode | stat.S_IXUSR)
    ecu = lab.ecu()
    settings = {"security_secret_file": None, "security_command": (str(helper),)}
    await ecu.flash(security="command", settings=settings)
    assert ecu.runs() == ecu.new.spec


async def test_a_helper_that_fails_sends_no_key(lab: Any, tmp_path: Path) -> None:
    ecu = lab.ecu()
    settings = {"security_secret_file": None, "security_command": ("/bin/false",)}
    async with ecu.flasher(security="command", settings=settings) as flasher:
        with pytest.raises(AccessDenied) as caught:
            await flasher.stage(ecu.new)
    assert caught.value.code == "security_command"
    assert not caught.value.touched
    # Not one of the ECU's three tries was spent.
    assert not any(one[2][1:3] == b"\x27\x02" for one in ecu.model.log)
    await ecu.flash()


async def test_an_ecu_that_nothing_was_configured_for_is_not_touched(lab: Any) -> None:
    ecu = lab.ecu()
    async with ecu.flasher(settings={"security_secret_file": None}) as flasher:
        assert (await flasher.identify()).version == "1.0.0"
        with pytest.raises(AccessDenied, match="nothing is configured") as caught:
            await flasher.stage(ecu.new)
    assert not caught.value.touched


@pytest.mark.parametrize("security", ["hmac-sha256", "certificate"])
async def test_no_seed_no_key_and_no_proof_is_in_a_trace(
    lab: Any, authority: Authority, tmp_path: Path, monkeypatch: Any, security: str
) -> None:
    said: list[bytes] = []
    for name in ("request_seed", "send_key", "authenticate"):
        real = getattr(UdsClient, name)

        def spy(client: UdsClient, *what: Any, real: Any = real, **how: Any) -> Any:
            answer = real(client, *what, **how)
            said.extend(one for one in (*what, answer) if isinstance(one, bytes))
            return answer

        monkeypatch.setattr(UdsClient, name, spy)
    is_pki = security == "certificate"
    ecu = lab.ecu(**({"security_ca": authority.pem} if is_pki else {}))
    opener = (
        authority.issue(ed25519.Ed25519PrivateKey.generate())
        if is_pki
        else {"security_secret_file": lab.secret_file}
    )
    settings = EcuSettings(
        component="brakes",
        flasher=ecu.word,
        interface="quarry-model",
        channel=ecu.model.name,
        kind="brake-controller",
        hardware="B2",
        profile=replace(ecu.profile, security=security),
        **ecu.ids,
        **opener,
    )
    trace = tmp_path / "frames.log"
    async with (
        open_link(interface="quarry-model", channel=ecu.model.name, trace=trace) as link,
        flasher_on(link, settings) as flasher,
    ):
        await flasher.stage(ecu.new)
    written = trace.read_text().lower()
    on_the_bus = "".join(one[2].hex() for one in ecu.model.log)
    pieces = [one[at : at + 4].hex() for one in said for at in range(len(one) - 3)]
    random_ones = [one for one in pieces if len(set(one)) > 4]
    assert len(random_ones) > 20
    assert any(one in on_the_bus for one in random_ones)
    assert not [one for one in random_ones if one in written]
    # What is no secret is there in full: the erase of the document area, say.
    assert "100d3101ff004408" in written
