"""Which kernel the SocketCAN tests run on: decided from what is known of the machine. Pure."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

from shared.errors import ConfigError, OtaError

INTERFACES = ("vcan0", "vcan1")
WISH_VARIABLE = "QUARRY_KERNEL_CAN"


class Unavailable(OtaError):
    """Such a kernel can't be had on this machine, or not now: a loud skip."""

    code = "can_kernel_unavailable"
    retryable = True
    advice = "Run it where the kernel has vcan, or on Debian (amd64) with a network."


class Broken(OtaError):
    """Such a kernel should be had on this machine, and something is wrong: a failure."""

    code = "can_kernel_broken"
    advice = (
        "Remove .cache/can-kernel and try again; `quarry test --no-kernel-can` leaves these tests out, "
        "and says so."
    )


class Wish(StrEnum):
    """What the person wants; the values of QUARRY_KERNEL_CAN."""

    AUTO = "auto"
    OFF = "off"
    REQUIRED = "required"


class Where(StrEnum):
    """The kernel that is taken."""

    NAMESPACE = "namespace"
    """The machine's own, in a network namespace of the run's own."""
    INTERFACES = "interfaces"
    """The machine's own, on vcan0 and vcan1 as somebody has made them."""
    GUEST = "guest"
    """User-mode Linux."""
    NOWHERE = "nowhere"


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What is known of the machine."""

    system: str
    """As platform.system()."""
    architecture: str
    """As platform.machine()."""
    namespace_refusal: str | None
    """Why no vcan can be made in a network namespace of our own; None: it can."""
    interfaces: Collection[str]
    """CAN interfaces that are up."""
    has_apt: bool
    has_guest: bool
    """A guest kernel is in the cache already."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A kernel, or the reason why there is none."""

    where: Where
    reason: str = ""


def wish_of(text: str | None) -> Wish:
    """The wish that the environment names. Raises ConfigError."""
    try:
        return Wish(text or Wish.AUTO)
    except ValueError as error:
        raise ConfigError(
            f"{WISH_VARIABLE} is '{text}', not one of {', '.join(Wish)}",
            advice=f"Unset {WISH_VARIABLE}, or give it one of these words.",
        ) from error


def choose(machine: Machine) -> Choice:
    """The machine's own kernel where it has vcan, else a guest where one can be had, else the reason."""
    if machine.system != "Linux":
        return Choice(where=Where.NOWHERE, reason=f"SocketCAN is Linux's own; this is {machine.system}")
    if machine.namespace_refusal is None:
        return Choice(where=Where.NAMESPACE)
    if set(INTERFACES) <= set(machine.interfaces):
        return Choice(where=Where.INTERFACES)
    if machine.has_guest:
        return Choice(where=Where.GUEST)
    own = f"this kernel has none ({machine.namespace_refusal})"
    if machine.architecture != "x86_64":
        return Choice(
            where=Where.NOWHERE, reason=f"{own}, and there is no user-mode Linux for {machine.architecture}"
        )
    if not machine.has_apt:
        return Choice(
            where=Where.NOWHERE, reason=f"{own}, and user-mode Linux comes by apt, which is not here"
        )
    return Choice(where=Where.GUEST)


def is_failure(error: OtaError, wish: Wish) -> bool:
    """Whether the lack of a kernel fails the run: a service that this kind of machine can have must be had.

    What is Unavailable (another system, no network, a package that the mirror no longer has) is a skip
    unless it is required; whatever else is wrong is a failure.
    """
    return wish is Wish.REQUIRED or not isinstance(error, Unavailable)
