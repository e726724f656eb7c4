"""The guest's kernel: Debian's user-mode Linux in this checkout's cache, got once.

Promises: nothing is installed and no root is needed; two runs at once do the work once; what is in the
cache is whole (made in a `.new` folder and moved); a kernel is given out only after a guest has
booted with it on this kind of CPU.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cli.can_kernel.apt import Apt, unpack
from cli.can_kernel.choice import Broken, Unavailable
from cli.can_kernel.isotp import build_isotp
from cli.can_kernel.modules import CAN_MODULES, ISOTP_MODULE, load_order
from cli.can_kernel.toolchain import find_toolchain
from shared.errors import OtaError

RECIPE = "1"
"""Changed with anything here that makes a cached kernel another one."""
PACKAGE = "user-mode-linux"


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A kernel that boots here."""

    program: Path
    version: str
    modules: tuple[Path, ...]
    """In the order of loading."""
    shim: Path | None
    """A library to preload (xstate.c)."""
    no_isotp: OtaError | None
    """Why it has no ISO-TP of its own; None: it has."""


def cache_folder(checkout: Path) -> Path:
    """Where kernels of this recipe are kept."""
    return checkout / ".cache" / "can-kernel" / RECIPE


def is_cached(checkout: Path) -> bool:
    """Whether a kernel is there already, so that nothing must be downloaded."""
    return (cache_folder(checkout) / "kernel" / "about.json").is_file()


def say(text: str) -> None:
    """Tell on stderr what takes its time: stdout belongs to the command."""
    print(f"quarry: {text}", file=sys.stderr, flush=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the cache against other runs of this checkout."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another quarry is preparing the CAN kernel; waiting for it ...")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def cpu_flags() -> frozenset[str]:
    """The CPU's features, as Linux names them."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "flags":
            return frozenset(value.split())
    return frozenset()


class Cache:
    """The steps of the set-up, each done once. Used under the lock."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kernel = folder / "kernel"
        self._apt: Apt | None = None

    @property
    def apt(self) -> Apt:
        if self._apt is None:
            (self.folder / "apt").mkdir(exist_ok=True)
            self._apt = Apt(self.folder / "apt")
        return self._apt

    def have_kernel(self) -> None:
        """The package's kernel and its CAN modules. Raises Unavailable, Broken."""
        if (self.kernel / "about.json").is_file():
            return
        say(
            "getting a Linux kernel with SocketCAN (Debian's user-mode Linux, once; nothing is installed) ..."
        )
        new = self.folder / "kernel.new"
        shutil.rmtree(new, ignore_errors=True)
        (package,) = self.apt.fetch([PACKAGE], new / "deb")
        unpack(package, new / "x")
        (modules,) = (new / "x").glob("usr/lib/uml/modules/*")
        (new / "x/usr/bin/linux.uml").rename(new / "linux.uml")
        (new / "x/usr/share/doc/user-mode-linux/config.gz").rename(new / "config.gz")
        dep = (modules / "modules.dep").read_text()
        for name in load_order(
            dep, [*CAN_MODULES, *([ISOTP_MODULE] if f"/{ISOTP_MODULE}.ko:" in dep else [])]
        ):
            (new / "modules" / name).parent.mkdir(parents=True, exist_ok=True)
            (modules / name).rename(new / "modules" / name)
        (new / "modules/modules.dep").write_text(dep)
        shutil.rmtree(new / "x")
        shutil.rmtree(new / "deb")
        about = {"version": modules.name, "package": package.name}
        (new / "about.json").write_text(json.dumps(about) + "\n")
        shutil.rmtree(self.kernel, ignore_errors=True)
        new.rename(self.kernel)

    def isotp(self) -> Path:
        """The ISO-TP module, compiled once. Raises Unavailable; Broken, the same until the cache goes."""
        module, failed = self.folder / "can-isotp.ko", self.folder / "can-isotp.failed"
        if module.is_file():
            return module
        if failed.is_file():
            raise Broken(failed.read_text().strip())
        say("compiling the kernel's ISO-TP for it (once, about half a minute) ...")
        log = self.folder / "can-isotp.log"
        log.unlink(missing_ok=True)
        try:
            # Make can't work in a folder whose name has a space, as a checkout's may have.
            with tempfile.TemporaryDirectory(prefix="quarry-isotp-", dir=place_without_spaces()) as work:
                built = build_isotp(
                    self.apt,
                    find_toolchain(self.apt, Path(work)),
                    version=self.version,
                    config=self.kernel / "config.gz",
                    work=Path(work),
                    log=log,
                )
                new = module.with_suffix(".new")
                shutil.copyfile(built, new)
            new.rename(module)
        except Broken as error:
            failed.write_text(f"{error.message}\n")
            raise
        return module

    def shim(self) -> Path | None:
        """The library to preload, on the CPUs that need it. Raises Unavailable, Broken."""
        if "amx_tile" not in cpu_flags():
            return None
        library = self.folder / "xstate.so"
        if not library.is_file():
            source = Path(__file__).with_name("xstate.c")
            with tempfile.TemporaryDirectory(prefix="quarry-xstate-", dir=place_without_spaces()) as work:
                tools = find_toolchain(self.apt, Path(work))
                tools.run(
                    *("gcc", "-shared", "-fPIC", "-O2", "-o", library.with_suffix(".new"), source, "-ldl"),
                    cwd=Path(work),
                    within_s=120,
                    log=self.folder / "xstate.log",
                )
            library.with_suffix(".new").rename(library)
        return library

    @property
    def version(self) -> str:
        about: dict[str, str] = json.loads((self.kernel / "about.json").read_text())
        return about["version"]

    def boots_here(self) -> Path:
        """The mark that a guest has booted on this kind of CPU."""
        flags = hashlib.sha256(" ".join(sorted(cpu_flags())).encode()).hexdigest()[:16]
        return self.folder / f"boots-{flags}"

    def assemble(self) -> Kernel:
        """All steps. Raises Unavailable, Broken; the lack of ISO-TP alone is only told in the result."""
        self.have_kernel()
        modules = self.kernel / "modules"
        dep = (modules / "modules.dep").read_text()
        paths = [modules / path for path in load_order(dep, CAN_MODULES)]
        no_isotp: OtaError | None = None
        try:
            paths += [modules / path for path in load_order(dep, [ISOTP_MODULE])]
        except KeyError:
            try:
                paths.append(self.isotp())
            except OtaError as error:
                no_isotp = error
        return Kernel(
            program=self.kernel / "linux.uml",
            version=self.version,
            modules=tuple(dict.fromkeys(paths)),
            shim=self.shim(),
            no_isotp=no_isotp,
        )


def place_without_spaces() -> str:
    """A temporary folder that make and a kernel's command line can name. Raises Unavailable."""
    for place in (tempfile.gettempdir(), "/tmp", "/var/tmp"):  # noqa: S108 -- mkdtemp makes it private
        if not any(character.isspace() or character in "\"'" for character in place):
            return place
    raise Unavailable("no temporary folder has a name without spaces")
