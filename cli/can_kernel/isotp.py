"""The kernel's ISO-TP (ISO 15765-2) as a module for Debian's user-mode Linux, which is built without.

The one module is compiled from the kernel source package of exactly the same version: there are no
symbol versions and no signatures in that kernel, so that only the version must agree. About 139 MB of
download and half a minute, once.
"""

from __future__ import annotations

import gzip
import re
import shutil
import tarfile
from pathlib import Path

from cli.can_kernel.apt import Apt, unpack
from cli.can_kernel.choice import Unavailable
from cli.can_kernel.toolchain import Toolchain

STEP_S = 900
SET = {"CONFIG_CAN_ISOTP": "m", "CONFIG_DEBUG_INFO_BTF": "n"}
# Left out: what neither the configuration nor one module of net/ is made of, two thirds of the source.
NOT_NEEDED = re.compile(
    r"[^/]+/(Documentation/(?!Kconfig).*|(drivers|sound)/.*\.[ch]|fs/.*\.c|arch/(?!um/|x86/).*\.[chS]"
    r"|tools/testing/.*|.*\.dtsi?)"
)


def configure(config: str) -> str:
    """A kernel's .config with SET in it."""
    kept = [
        line
        for line in config.splitlines()
        if not any(re.fullmatch(rf"{key}=.*|# {key} is not set", line) for key in SET)
    ]
    new = [f"# {key} is not set" if value == "n" else f"{key}={value}" for key, value in SET.items()]
    return "\n".join(kept + new) + "\n"


def source_package(version: str, offered: list[str]) -> str:
    """The source of kernel `version` among the offered package versions, as name=version.

    Raises Unavailable.
    """
    name = f"linux-source-{'.'.join(version.split('.')[:2])}"
    for one in offered:
        if one.partition("-")[0] == version:
            return f"{name}={one}"
    raise Unavailable(f"apt has no {name} of version {version}, only {', '.join(offered) or 'none'}")


def unpack_source(archive: Path, into: Path) -> Path:
    """Unpack what is needed of linux-source-*.tar.xz; returns the source's folder."""
    with tarfile.open(archive, "r|*") as tar:
        # Pythons before 3.11.4 have no filters; what is unpacked has the hash that signed lists name.
        tar.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
        for member in tar:
            if not NOT_NEEDED.fullmatch(member.name):
                tar.extract(member, into)
    (source,) = into.glob("linux-source-*")
    return source


def build_isotp(apt: Apt, toolchain: Toolchain, *, version: str, config: Path, work: Path, log: Path) -> Path:
    """Compile can-isotp.ko for kernel `version` whose gzipped .config is given; returns the file in `work`.

    Raises Unavailable, Broken.
    """
    name = f"linux-source-{'.'.join(version.split('.')[:2])}"
    (package,) = apt.fetch([source_package(version, apt.versions(name))], work / "source.deb")
    unpack(package, work / "source.deb" / "x")
    (archive,) = (work / "source.deb" / "x").glob("usr/src/linux-source-*.tar.*")
    source = unpack_source(archive, work)
    shutil.rmtree(work / "source.deb")
    (source / ".config").write_text(configure(gzip.decompress(config.read_bytes()).decode()))
    make = ("make", "-s", "ARCH=um")
    toolchain.run(*make, "olddefconfig", cwd=source, within_s=STEP_S, log=log)
    toolchain.run(*make, "-j2", "modules_prepare", cwd=source, within_s=STEP_S, log=log)
    toolchain.run(
        *make, "KBUILD_MODPOST_WARN=1", "M=net/can", "modules", cwd=source, within_s=STEP_S, log=log
    )
    return source / "net" / "can" / "can-isotp.ko"
