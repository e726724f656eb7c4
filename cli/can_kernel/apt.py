"""Debian packages by the machine's own apt, downloaded and unpacked, never installed.

Promises: nothing outside the given folder is written and no root is needed; where packages come from is the
machine's apt configuration alone; a file is used only if it has the SHA-256 that apt's signed lists
name. What can't be had raises Unavailable, what is wrong Broken.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from cli.can_kernel.choice import Broken, Unavailable

UPDATE_S = 300
DOWNLOAD_S = 1200
QUESTION_S = 120
LINE = re.compile(r"'(?P<uri>[^']+)' (?P<name>[^ ]+) (?P<size>\d+)(?: (?P<hash>\S+))?")


@dataclass(frozen=True, kw_only=True)
class Offer:
    """One file that apt would download."""

    name: str
    size: int
    digest: str
    """As apt writes it: `SHA256:` and hex digits; another algorithm where the lists are not asked alone."""

    @property
    def package(self) -> str:
        """`name=version`, as apt-get takes it."""
        name, version, _ = self.name.split("_", 2)
        return f"{name}={unquote(version)}"


def parse_offers(text: str) -> list[Offer]:
    """What `apt-get --print-uris` printed; lines that don't begin with a quoted address are no offers.

    Raises Broken for one that does and has another form.
    """
    offers = []
    for line in text.splitlines():
        if line.startswith("'"):
            found = LINE.fullmatch(line.strip())
            if found is None:
                raise Broken(f"apt offers a file in a form that is not understood: {line[:200]}")
            # An installation names no hash at all where the lists have SHA-256 alone.
            offers.append(Offer(name=found["name"], size=int(found["size"]), digest=found["hash"] or ""))
    return offers


def check(file: Path, offer: Offer) -> None:
    """That a downloaded file is what the signed lists name. Raises Broken."""
    algorithm, _, expected = offer.digest.partition(":")
    if algorithm != "SHA256" or len(expected) != 64:
        raise Broken(f"apt names no SHA-256 for {offer.name}, only '{offer.digest}'")
    with file.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if (file.stat().st_size, found) != (offer.size, expected):
        raise Broken(
            f"{offer.name} is not what apt's lists name: {file.stat().st_size} bytes, SHA-256 {found}"
        )


def last_line(text: str) -> str:
    """The last line that says something, for a sentence."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no word of it"


def complaint(text: str) -> str:
    """The first warning or error of apt's, which names the cause; its last only sums up."""
    for line in text.splitlines():
        if line.startswith(("W: ", "E: ")):
            return line[3:].strip()
    return last_line(text)


class Apt:
    """apt-get and apt-cache with a state of their own under `folder`."""

    def __init__(self, folder: Path) -> None:
        """Raises Unavailable where there is no apt."""
        if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
            raise Unavailable("this machine has no apt")
        self._folder = folder
        self._own_lists = False

    def _options(self) -> list[str]:
        lists, cache = self._folder / "lists", self._folder / "cache"
        for one in (lists / "partial", cache / "archives" / "partial"):
            one.mkdir(parents=True, exist_ok=True)
        options = {
            "Dir::Cache": str(cache),
            "APT::Sandbox::User": "root",
            "Acquire::Retries": "2",
            "Acquire::http::Timeout": "20",
            "Acquire::https::Timeout": "20",
            "Debug::NoLocking": "1",
            # Else an update that fetched nothing is a success.
            "APT::Update::Error-Mode": "any",
        }
        if self._own_lists:
            options["Dir::State::lists"] = str(lists)
        return [part for key, value in options.items() for part in ("-o", f"{key}={value}")]

    def _run(self, program: str, *arguments: str, within_s: float, cwd: Path | None = None) -> str:
        command = [program, "-q", *self._options(), *arguments]
        try:
            done = subprocess.run(
                command,
                cwd=cwd or self._folder,
                env=os.environ | {"LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=within_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise Unavailable(f"{program} {arguments[0]} did not end within {within_s:.0f} s") from error
        except OSError as error:
            raise Unavailable(f"{program} can't be run: {error.strerror}") from error
        if done.returncode != 0:
            raise Unavailable(f"{program} {arguments[0]} failed: {complaint(done.stderr)}")
        return done.stdout

    def _asked(self, program: str, *arguments: str) -> str:
        """A question to the machine's lists; where they don't know, to lists of our own, freshly fetched."""
        try:
            if text := self._run(program, *arguments, within_s=QUESTION_S):
                return text
        except Unavailable:
            if self._own_lists:
                raise
        if not self._own_lists:
            self.update()
            return self._run(program, *arguments, within_s=QUESTION_S)
        return ""

    def update(self) -> None:
        """Fetch the lists into the own folder. Raises Unavailable, offline for instance."""
        self._own_lists = True
        self._run("apt-get", "update", within_s=UPDATE_S)

    def versions(self, package: str) -> list[str]:
        """The versions of a package that the lists hold, the newest first; none when they hold none."""
        rows = self._asked("apt-cache", "madison", package).splitlines()
        return [row.split("|")[1].strip() for row in rows if row.count("|") >= 2]

    def missing(self, packages: Sequence[str]) -> list[str]:
        """What an installation of `packages` would add to this machine, as name=version."""
        text = self._asked("apt-get", "install", "--print-uris", "-y", "--no-install-recommends", *packages)
        return [offer.package for offer in parse_offers(text)]

    def fetch(self, packages: Sequence[str], into: Path) -> list[Path]:
        """Download packages (name or name=version) into an empty folder; every file is checked.

        Raises Unavailable, Broken.
        """
        try:
            return self._fetch(packages, into)
        except Unavailable:
            if self._own_lists:
                raise
            # The machine's lists may name files that its mirror has replaced since.
            self.update()
            return self._fetch(packages, into)

    def _fetch(self, packages: Sequence[str], into: Path) -> list[Path]:
        shutil.rmtree(into, ignore_errors=True)
        into.mkdir(parents=True)
        offers = parse_offers(
            self._run("apt-get", "download", "--print-uris", *packages, within_s=QUESTION_S)
        )
        if len(offers) != len(packages):
            raise Unavailable(f"apt offers {len(offers)} files for {', '.join(packages)}")
        self._run("apt-get", "download", *packages, within_s=DOWNLOAD_S, cwd=into)
        files = []
        for offer in offers:
            file = into / offer.name
            if not file.is_file():
                raise Unavailable(f"apt downloaded no {offer.name}")
            check(file, offer)
            files.append(file)
        return files


def unpack(package: Path, into: Path) -> None:
    """Unpack a .deb without installing it. Raises Broken."""
    into.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["dpkg-deb", "-x", str(package), str(into)], capture_output=True, text=True, timeout=600, check=False
    )
    if done.returncode != 0:
        raise Broken(f"{package.name} can't be unpacked: {last_line(done.stderr)}")
