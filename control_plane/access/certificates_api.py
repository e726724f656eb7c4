"""Trucks' certificates over HTTP: a truck renews its own, an operator looks at them and revokes a truck.

Certificates are for the broker. These doors go by bearer token as all others: TLS ends at the proxy in
front of the office, which has no client's certificate to look at.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Path, Response
from pydantic import BaseModel, ConfigDict, Field

from control_plane.access.certificates import Proof
from control_plane.access.service import AccessService
from control_plane.errors import Forbidden, Invalid
from control_plane.web import PROBLEMS, Device, Operator
from shared.certificates import MOST_CSR_BYTES
from shared.ids import ID_PATTERN

_PEM = r"^-----BEGIN [A-Z ]{1,40}-----[A-Za-z0-9+/=\s]+-----END [A-Z ]{1,40}-----\s*$"
CsrPem = Annotated[
    str, Field(max_length=MOST_CSR_BYTES, examples=["-----BEGIN CERTIFICATE REQUEST-----\nMIHx...\n"])
]
PublicPem = Annotated[
    str, Field(max_length=1000, pattern=_PEM, examples=["-----BEGIN PUBLIC KEY-----\nMCow...\n"])
]
DeviceId = Annotated[str, Path(pattern=ID_PATTERN, examples=["truck-001"])]


class Enrolled(BaseModel):
    """Who the truck is, where its broker is, and the certificate that it shows there.

    `mqtt_tls`: the broker speaks TLS only. `mqtt_ca` is whom to believe it by (PEM), empty where the
    truck's own trust decides. `ca_chain` goes behind `certificate`. MQTT user name is the device_id.
    """

    device_id: str = Field(examples=["truck-001"])
    mqtt_host: str = Field(examples=["127.0.0.1"])
    mqtt_port: int = Field(examples=[1883])
    mqtt_tls: bool = Field(examples=[False])
    mqtt_ca: str = Field(examples=[""])
    certificate: str | None = Field(examples=[None])
    ca_chain: str = Field(examples=[""])


@dataclass(frozen=True, kw_only=True)
class BrokerForTrucks:
    """The broker as trucks are told of it; see Enrolled."""

    host: str
    port: int
    tls: bool = False
    ca: str = ""

    def told(self, device_id: str, certificate: str | None, chain: str) -> Enrolled:
        """What one truck is told."""
        return Enrolled(
            device_id=device_id,
            mqtt_host=self.host,
            mqtt_port=self.port,
            mqtt_tls=self.tls,
            mqtt_ca=self.ca,
            certificate=certificate,
            ca_chain="" if certificate is None else chain,
        )


class Renewal(BaseModel):
    """A truck's request for its next certificate.

    `serial` names the one that it has, and `proof` is the signature of that one's key over the request
    (base64; see shared/certificates.py). Both are left out by a truck that never had one.
    """

    model_config = ConfigDict(extra="forbid")

    csr: CsrPem
    serial: str | None = Field(default=None, pattern=r"^[0-9a-f]{1,40}$", examples=["5f3a"])
    proof: str | None = Field(default=None, max_length=400, examples=["MEUCIQ=="])
    manifest_key: PublicPem | None = None

    def signed_by(self) -> Proof | None:
        """The proof. Raises Invalid where only half of one is there."""
        if self.serial is None and self.proof is None:
            return None
        if self.serial is None or self.proof is None:
            raise Invalid("serial and proof go together", fields={"proof": "goes together with serial"})
        try:
            return Proof(serial=self.serial, signature=base64.b64decode(self.proof, validate=True))
        except (binascii.Error, ValueError) as error:
            raise Invalid("proof is no base64", fields={"proof": "no base64"}) from error


class CertificateOut(BaseModel):
    """A certificate. `state`: live, replaced or revoked; `issued_for`: enrolment, renewal or first."""

    serial: str = Field(examples=["5f3a"])
    key_sha256: str = Field(examples=["5e" * 32])
    state: str = Field(examples=["live"])
    issued_for: str = Field(examples=["enrolment"])
    not_before: datetime
    not_after: datetime
    issued_at: datetime
    ended_at: datetime | None


class Certificates(BaseModel):
    """A truck's certificates, the newest first."""

    items: list[CertificateOut]


class RevokedOut(BaseModel):
    """What was taken from a truck: its token and password, and so many certificates."""

    device_id: str = Field(examples=["truck-001"])
    credential: bool = Field(examples=[True])
    certificates: int = Field(examples=[1])


def make_router(access: AccessService, *, broker: BrokerForTrucks) -> APIRouter:
    """The endpoints. `broker` is what trucks are told."""
    router = APIRouter(prefix="/api/v1/devices/{device_id}", tags=["access"], responses=PROBLEMS)

    @router.post("/certificate")
    async def renew_certificate(by: Device, device_id: DeviceId, asked: Renewal) -> Enrolled:
        """Give this truck its next certificate; the same key is given the same one again."""
        if by.device_id != device_id:
            raise Forbidden(f"{by.name} is not {device_id}")
        certificate = await access.renew(
            device_id, csr=asked.csr, proof=asked.signed_by(), manifest_key=asked.manifest_key
        )
        return broker.told(device_id, certificate, access.chain)

    @router.get("/certificates")
    async def list_certificates(_: Operator, device_id: DeviceId) -> Certificates:
        """The certificates of a truck."""
        return Certificates(
            items=[
                CertificateOut(**{name: getattr(one, name) for name in CertificateOut.model_fields})
                for one in await access.certificates(device_id)
            ]
        )

    @router.post("/revocation")
    async def revoke_device(by: Operator, response: Response, device_id: DeviceId) -> RevokedOut:
        """Take everything from a truck: it connects nowhere until it is enrolled anew. May be repeated."""
        response.headers["Cache-Control"] = "no-store"
        revoked = await access.revoke(device_id, by=by.name)
        return RevokedOut(
            device_id=device_id, credential=revoked.credential, certificates=revoked.certificates
        )

    return router
