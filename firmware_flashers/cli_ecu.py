"""The options that every `quarry flash` command shares: which ECU, on which bus, opened by what."""

from __future__ import annotations

import shlex
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from firmware_flashers.base import BenchFlasher
from firmware_flashers.can_link import open_link
from firmware_flashers.cli_options import can_id, with_options
from firmware_flashers.profile import examples, read_profile
from firmware_flashers.registry import EcuSettings, flasher_on
from shared.errors import ConfigError

UNNAMED = "unnamed"
"""Stands for a kind or hardware that nobody named: such an ECU is only asked, never written."""


OPTIONS: dict[str, Any] = {
    "profile": Annotated[
        str,
        typer.Option(
            metavar="FILE|NAME",
            help=f"The ECU's profile: a TOML file, or one of {', '.join(examples())} (see: flash profiles).",
        ),
    ],
    "interface": Annotated[
        str, typer.Option(help="A python-can interface: socketcan, pcan, slcan, quarry-hub, ...")
    ],
    "channel": Annotated[str, typer.Option(help="Its channel: can0, a socket's path, ...")],
    "bitrate": Annotated[int | None, typer.Option(help="bit/s, for interfaces that set it themselves.")],
    "fd": Annotated[bool | None, typer.Option("--fd/--no-fd", help="The bus carries CAN FD frames.")],
    "data_bitrate": Annotated[int | None, typer.Option(help="CAN FD: bit/s after the switch.")],
    "tx_id": Annotated[int | None, can_id("The ECU listens to it (over 0x7FF: 29-bit).")],
    "rx_id": Annotated[int | None, can_id("The ECU answers with it.")],
    "kind": Annotated[str | None, typer.Option(help="What the ECU must say it is (F197).")],
    "hardware": Annotated[str | None, typer.Option(help="Which revision it must say it is (F191).")],
    "security_secret": Annotated[
        Path | None, typer.Option(metavar="FILE", help="Security access: 32 bytes or 64 hex digits, 0600.")
    ],
    "security_command": Annotated[
        str | None,
        typer.Option(
            metavar="PROGRAM", help="Security access by a program: seed (hex) on stdin, key (hex) on stdout."
        ),
    ],
    "certificate": Annotated[
        Path | None, typer.Option(metavar="FILE", help="Authentication (0x29): our certificate, PEM or DER.")
    ],
    "certificate_key": Annotated[
        Path | None, typer.Option(metavar="FILE", help="Its private key, PEM, mode 0600.")
    ],
    "enter_command": Annotated[
        str | None,
        typer.Option(metavar="PROGRAM", help="ROM loaders: a program that brings the part into its loader."),
    ],
    "functional_id": Annotated[int | None, can_id("All ECUs listen to it.")],
    "isotp": Annotated[
        str | None, typer.Option(help="Who makes frames of messages: auto, kernel or python.")
    ],
    "trace": Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write every frame down: .log (candump), .asc, .blf or .csv."),
    ],
}
DEFAULTS: dict[str, Any] = {"profile": ..., "interface": "socketcan", "channel": "can0"}


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What was asked on the command line, before it is checked."""

    profile: str
    interface: str
    channel: str
    bitrate: int | None
    fd: bool | None
    data_bitrate: int | None
    tx_id: int | None
    rx_id: int | None
    kind: str | None
    hardware: str | None
    security_secret: Path | None
    security_command: str | None
    certificate: Path | None
    certificate_key: Path | None
    enter_command: str | None
    functional_id: int | None
    isotp: str | None
    trace: Path | None

    def settings(self) -> EcuSettings:
        """The profile's values, and over them what was given. Raises ConfigError that names the key."""
        profile = read_profile(self.profile)
        return profile.settings(
            component="bench",
            interface=self.interface,
            channel=self.channel,
            bitrate=self.bitrate,
            fd=self.fd,
            data_bitrate=self.data_bitrate,
            tx_id=self.tx_id,
            rx_id=self.rx_id,
            kind=self.kind or profile.kind or UNNAMED,
            hardware=self.hardware or profile.hardware or UNNAMED,
            security_secret_file=self.security_secret,
            security_command=_words("security-command", self.security_command),
            security_certificate_file=self.certificate,
            security_key_file=self.certificate_key,
            enter_command=_words("enter-command", self.enter_command),
            functional_id=self.functional_id,
            isotp=self.isotp,
        )

    @asynccontextmanager
    async def opened(self, holder: str) -> AsyncIterator[BenchFlasher]:
        """The ECU's flasher, its interface held and traced."""
        settings = self.settings()
        async with (
            open_link(
                interface=settings.interface,
                channel=settings.channel,
                bitrate=settings.bitrate,
                fd=settings.fd,
                data_bitrate=settings.data_bitrate,
                trace=self.trace,
                holder=holder,
            ) as link,
            flasher_on(link, settings) as flasher,
        ):
            yield flasher

    def named(self) -> tuple[str, str]:
        """Kind and hardware that the ECU must say of itself. Raises ConfigError when nobody named them."""
        settings = self.settings()
        for key in ("kind", "hardware"):
            if getattr(settings, key) == UNNAMED:
                raise ConfigError(
                    f"the ECU's {key} is not named",
                    advice=f"Give --{key}, or {key} in the profile; `quarry flash identify` shows it.",
                )
        return settings.kind, settings.hardware


def _words(option: str, text: str | None) -> tuple[str, ...] | None:
    """A program and its arguments as a shell would split them; no shell runs it."""
    if text is None:
        return None
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise ConfigError(f"--{option} {text!r} can't be split into words: {error}") from error


def with_ecu(act: Callable[..., None]) -> Callable[..., None]:
    """A command whose first parameter, a Wish, is filled from the options of every command."""
    return with_options(act, OPTIONS, DEFAULTS, lambda given: nullcontext(Wish(**given)))
