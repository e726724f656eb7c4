"""Enrolment over HTTP: an operator makes a token for a truck, the truck trades it for its credential."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Body, Path, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from control_plane.access.attempts import WrongAttempts
from control_plane.access.certificates_api import BrokerForTrucks, CsrPem, Enrolled, PublicPem
from control_plane.access.service import (
    LEAST_ENROLMENT_S,
    MOST_ENROLMENT_S,
    USUAL_ENROLMENT_S,
    AccessService,
    BadEnrolmentToken,
)
from control_plane.web import PROBLEMS, Operator
from shared.ids import ID_PATTERN

# 256 random bits in base64url are 43 characters; bcrypt reads at most 72 bytes.
Secret = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{43,72}$")]
_EXAMPLE = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3I"


class NewEnrolmentToken(BaseModel):
    """How long a token shall be good."""

    model_config = ConfigDict(extra="forbid")

    valid_for_s: int = Field(
        default=USUAL_ENROLMENT_S, ge=LEAST_ENROLMENT_S, le=MOST_ENROLMENT_S, examples=[86400], strict=True
    )


class EnrolmentTokenOut(BaseModel):
    """A one-time token, shown this once."""

    token: str = Field(examples=[_EXAMPLE])
    device_id: str = Field(examples=["truck-001"])
    expires_at: datetime


class Enrolment(BaseModel):
    """A truck's request: the token it was given, and the two secrets that it made and saved before.

    `csr` asks for a client certificate for the key that it made; `manifest_key` is what its gateway signs
    vehicle manifests with.
    """

    model_config = ConfigDict(extra="forbid")

    enrolment_token: str = Field(pattern=r"^[A-Za-z0-9_-]{1,128}$", examples=[_EXAMPLE])
    http_token: Secret = Field(examples=[_EXAMPLE])
    mqtt_password: Secret = Field(examples=[_EXAMPLE])
    csr: CsrPem | None = None
    manifest_key: PublicPem | None = None


def make_router(
    access: AccessService, *, broker: BrokerForTrucks, attempts: WrongAttempts | None = None
) -> APIRouter:
    """The endpoints of enrolment. `broker` is what trucks are told."""
    router = APIRouter(prefix="/api/v1", tags=["access"], responses=PROBLEMS)
    tries = attempts or WrongAttempts()

    @router.post("/devices/{device_id}/enrolment-tokens", status_code=201)
    async def new_enrolment_token(
        response: Response,
        _: Operator,
        device_id: Annotated[str, Path(pattern=ID_PATTERN)],
        wanted: Annotated[NewEnrolmentToken | None, Body()] = None,
    ) -> EnrolmentTokenOut:
        """Make a one-time enrolment token for a device; an open one of the device ends."""
        made = await access.new_enrolment_token(device_id, for_s=(wanted or NewEnrolmentToken()).valid_for_s)
        response.headers["Cache-Control"] = "no-store"
        return EnrolmentTokenOut(token=made.token, device_id=made.device_id, expires_at=made.expires_at)

    @router.post("/enrolments")
    async def enrol(request: Request, asked: Enrolment) -> Enrolled:
        """Enrol a truck; needs no bearer, the enrolment token says who it is. May be repeated."""
        source = request.client.host if request.client else ""
        tries.check(source)
        try:
            truck = await access.enrol(
                enrolment_token=asked.enrolment_token,
                http_token=asked.http_token,
                mqtt_password=asked.mqtt_password,
                csr=asked.csr,
                manifest_key=asked.manifest_key,
            )
        except BadEnrolmentToken:
            tries.wrong(source)
            raise
        return broker.told(truck.device_id, truck.certificate, access.chain)

    return router
