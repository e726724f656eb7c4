"""The kernel for the SocketCAN tests: which one, what its lack means, what is asked of apt and kernel."""

from __future__ import annotations

import errno
import hashlib
import io
import struct
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from cli.can_kernel import modules, netlink, pytest_run
from cli.can_kernel.apt import Offer, check, complaint, parse_offers, unpack
from cli.can_kernel.choice import (
    Broken,
    Choice,
    Machine,
    Unavailable,
    Where,
    Wish,
    choose,
    is_failure,
    wish_of,
)
from cli.can_kernel.isotp import NOT_NEEDED, configure, source_package, unpack_source
from cli.can_kernel.toolchain import environment, free_of_paths
from shared.errors import ConfigError, OtaError

# --- which kernel -----------------------------------------------------------

DEBIAN = Machine(
    system="Linux",
    architecture="x86_64",
    namespace_refusal="no vcan in it",
    interfaces=("lo", "eth0"),
    has_apt=True,
    has_guest=False,
)


@pytest.mark.parametrize(
    ("machine", "where"),
    [
        (DEBIAN, Where.GUEST),
        (replace(DEBIAN, namespace_refusal=None), Where.NAMESPACE),
        (replace(DEBIAN, namespace_refusal=None, architecture="aarch64", has_apt=False), Where.NAMESPACE),
        (replace(DEBIAN, interfaces=("vcan1", "lo", "vcan0")), Where.INTERFACES),
        (replace(DEBIAN, interfaces=("vcan0",)), Where.GUEST),
        (replace(DEBIAN, has_apt=False, has_guest=True), Where.GUEST),
        (replace(DEBIAN, has_apt=False), Where.NOWHERE),
        (replace(DEBIAN, architecture="aarch64"), Where.NOWHERE),
        (replace(DEBIAN, system="Darwin", namespace_refusal=None), Where.NOWHERE),
    ],
    ids=[
        "Debian without vcan",
        "vcan in the kernel",
        "vcan in the kernel of any machine",
        "both interfaces made by somebody",
        "one interface is not enough",
        "guest in the cache, no apt",
        "no apt",
        "other CPU",
        "other system",
    ],
)
def test_which_kernel_is_taken(machine: Machine, where: Where) -> None:
    choice = choose(machine)
    assert choice.where is where
    assert bool(choice.reason) is (where is Where.NOWHERE)


def test_the_reason_names_the_kernels_own_word() -> None:
    assert "no vcan in it" in choose(replace(DEBIAN, has_apt=False)).reason
    assert choose(replace(DEBIAN, system="Darwin")) == Choice(
        where=Where.NOWHERE, reason="SocketCAN is Linux's own; this is Darwin"
    )


@pytest.mark.parametrize(
    ("error", "wish", "failed"),
    [
        (Unavailable("offline"), Wish.AUTO, False),
        (Unavailable("offline"), Wish.REQUIRED, True),
        (Broken("does not boot"), Wish.AUTO, True),
        (Broken("does not boot"), Wish.REQUIRED, True),
        (OtaError("anything"), Wish.AUTO, True),
    ],
)
def test_what_can_be_had_and_is_not_there_is_a_failure(error: OtaError, wish: Wish, failed: bool) -> None:
    assert is_failure(error, wish) is failed


def test_the_wish_of_the_environment() -> None:
    assert [wish_of(text) for text in (None, "", "auto", "off", "required")] == [
        *(Wish.AUTO, Wish.AUTO, Wish.AUTO, Wish.OFF, Wish.REQUIRED)
    ]
    with pytest.raises(ConfigError, match="QUARRY_KERNEL_CAN is 'no'"):
        wish_of("no")


# --- as a part of `quarry test` ----------------------------------------------


@pytest.mark.parametrize(
    ("paths", "named"),
    [
        (["tests"], True),
        (["tests/"], True),
        (["tests/unit", "tests/integration"], True),
        (["tests/integration/socketcan/test_frames.py::test_x"], True),
        (["tests/unit"], False),
        (["tests/integration/sim"], False),
        (["tests/int"], False),
        ([], False),
    ],
)
def test_when_the_socketcan_tests_are_meant(paths: list[str], named: bool) -> None:
    assert pytest_run.on_socketcan(paths) is named


def test_when_nothing_else_is_meant() -> None:
    inside = "tests/integration/socketcan/test_frames.py"
    assert pytest_run.only_socketcan([inside])
    assert not pytest_run.only_socketcan([inside, "tests/unit"])
    assert not pytest_run.only_socketcan([])


@pytest.mark.parametrize(
    ("codes", "code"),
    [
        ([0, 0], 0),
        ([0, 1], 1),
        ([1, 0], 1),
        ([5, 0], 0),
        ([0, 5], 0),
        ([5, 5], 5),
        ([5], 5),
        ([5, 1], 1),
        ([4, 1], 4),
    ],
)
def test_one_exit_code_of_two_runs(codes: list[int], code: int) -> None:
    assert pytest_run.worst(codes) == code


def test_pytest_in_the_guest_gets_its_own_paths_and_all_options() -> None:
    command = pytest_run.pytest_command(["tests/unit/x", "-k", "bus_down", "-x"], long=False, colour=True)
    assert command[-5:] == ["-m", "socketcan and not long", "-k", "bus_down", "-x"]
    assert "tests/integration/socketcan" in command
    assert "tests/unit/x" not in command
    assert "--color=yes" in command
    one = "tests/integration/socketcan/test_frames.py::test_x"
    command = pytest_run.pytest_command([one], long=True, colour=False)
    assert one in command
    assert "tests/integration/socketcan" not in command
    assert command[-2:] == ["-m", "socketcan"]


def run_here(monkeypatch: pytest.MonkeyPatch, machine: Machine, wish: Wish) -> int:
    monkeypatch.setattr(pytest_run, "look_at_this_machine", lambda _: machine)
    return pytest_run.run_on_socketcan([], wish, long=False)


def test_a_machine_that_can_not_have_it_skips_in_one_loud_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = replace(DEBIAN, has_apt=False)
    assert run_here(monkeypatch, machine, Wish.AUTO) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("quarry: SKIPPED: the tests on kernel SocketCAN: this kernel has none")
    assert run_here(monkeypatch, machine, Wish.REQUIRED) == 1
    assert capsys.readouterr().err.startswith("quarry: FAILED: the tests on kernel SocketCAN:")


def test_left_out_knowingly_is_said_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_here(monkeypatch, DEBIAN, Wish.OFF) == 0
    assert "SKIPPED" in capsys.readouterr().err


# --- rtnetlink -----------------------------------------------------------------


def test_the_request_for_a_vcan_byte_by_byte() -> None:
    assert netlink.new_vcan("vcan0", mtu=72, queue_frames=4096).hex(" ", 4) == (
        "48000000 10000506 01000000 00000000 "  # nlmsghdr: 72 bytes, RTM_NEWLINK, request ack excl create
        "00000000 00000000 01000000 01000000 "  # ifinfomsg: any family, no index, flags IFF_UP, change IFF_UP
        "0a000300 7663616e 30000000 "  # IFLA_IFNAME "vcan0\0", padded to four
        "08000400 48000000 "  # IFLA_MTU 72
        "08000d00 00100000 "  # IFLA_TXQLEN 4096
        "0c001200 08000100 7663616e"  # IFLA_LINKINFO { IFLA_INFO_KIND "vcan" }
    )


def test_up_down_and_away() -> None:
    for request, kind, flags, change in (
        (netlink.link_state(7, up=True), 16, 1, 1),
        (netlink.link_state(7, up=False), 16, 0, 1),
        (netlink.no_link(7), 17, 0, 0),
    ):
        length, found, asked, _, _ = netlink.HEADER.unpack_from(request)
        assert (length, found, asked) == (32, kind, 0x5)
        assert netlink.LINK.unpack_from(request, 16) == (0, 0, 7, flags, change)


def test_what_the_kernel_answers() -> None:
    def answer(kind: int, code: int) -> bytes:
        return struct.pack("=IHHIIi", 36, kind, 0, 1, 0, code) + bytes(16)

    assert netlink.refusal(answer(2, 0)) == 0
    assert netlink.refusal(answer(2, -errno.EOPNOTSUPP)) == errno.EOPNOTSUPP
    with pytest.raises(ValueError, match="16"):
        netlink.refusal(answer(16, 0))


def test_the_machines_kernel_refuses_an_interface_that_is_not_there() -> None:
    with pytest.raises(OSError) as caught:
        netlink.ask(netlink.link_state(2**31 - 1, up=True))
    assert caught.value.errno in (errno.ENODEV, errno.EPERM)


# --- modules ---------------------------------------------------------------------

MODULES_DEP = """\
kernel/drivers/net/can/dev/can-dev.ko:
kernel/drivers/net/can/vcan.ko: kernel/drivers/net/can/dev/can-dev.ko
kernel/net/can/can.ko:
kernel/net/can/can_raw.ko.xz: kernel/net/can/can.ko
kernel/x/top.ko: kernel/x/middle.ko kernel/x/bottom.ko
kernel/x/middle.ko: kernel/x/bottom.ko
kernel/x/bottom.ko:
"""


@pytest.mark.parametrize(
    ("wanted", "order"),
    [
        (["vcan"], ["can-dev.ko", "vcan.ko"]),
        (["can-raw", "vcan"], ["can.ko", "can_raw.ko.xz", "can-dev.ko", "vcan.ko"]),
        (["top"], ["bottom.ko", "middle.ko", "top.ko"]),
        (["bottom", "top", "middle"], ["bottom.ko", "middle.ko", "top.ko"]),
        ([], []),
    ],
)
def test_modules_come_behind_what_they_need(wanted: list[str], order: list[str]) -> None:
    assert [Path(path).name for path in modules.load_order(MODULES_DEP, wanted)] == order


def test_a_module_that_is_not_listed_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        modules.load_order(MODULES_DEP, ["can-isotp"])


# --- apt -----------------------------------------------------------------------------

DIGEST = hashlib.sha256(b"content").hexdigest()
OFFERS = f"""\
Reading package lists...
'https://mirror.example/pool/b/bison_3.8%2bdfsg-1_amd64.deb' bison_2%3a3.8+dfsg-1_amd64.deb 7 SHA256:{DIGEST}
'https://mirror.example/pool/f/flex_2.6.4-8_amd64.deb' flex_2.6.4-8_amd64.deb 9 MD5Sum:d968b8aa
W: something else
"""
NO_HASH = "'https://mirror.example/pool/l/linux-libc-dev_6.1_amd64.deb' linux-libc-dev_6.1_amd64.deb 5 \n"


def test_what_apt_prints_of_its_files() -> None:
    bison, flex = parse_offers(OFFERS)
    assert bison == Offer(name="bison_2%3a3.8+dfsg-1_amd64.deb", size=7, digest=f"SHA256:{DIGEST}")
    assert (bison.package, flex.package) == ("bison=2:3.8+dfsg-1", "flex=2.6.4-8")
    assert parse_offers(NO_HASH) == [Offer(name="linux-libc-dev_6.1_amd64.deb", size=5, digest="")]
    with pytest.raises(Broken, match="not understood"):
        parse_offers("'https://mirror.example/x.deb' x.deb\n")


@pytest.mark.parametrize(
    ("content", "size", "digest", "says"),
    [
        (b"contenT", 7, f"SHA256:{DIGEST}", "is not what apt's lists name"),
        (b"content", 8, f"SHA256:{DIGEST}", "is not what apt's lists name"),
        (b"content", 7, "MD5Sum:9a0364b9e99bb480dd25e1f0284c8555", "no SHA-256"),
        (b"content", 7, "SHA256:", "no SHA-256"),
        (b"content", 7, "", "no SHA-256"),
    ],
    ids=["changed", "other length", "weak hash", "empty hash", "no hash"],
)
def test_a_file_that_apt_does_not_vouch_for_is_not_used(
    tmp_path: Path, content: bytes, size: int, digest: str, says: str
) -> None:
    file = tmp_path / "x.deb"
    file.write_bytes(content)
    with pytest.raises(Broken, match=says):
        check(file, Offer(name="x_1_all.deb", size=size, digest=digest))


def test_a_file_that_apt_vouches_for_is_used(tmp_path: Path) -> None:
    file = tmp_path / "x.deb"
    file.write_bytes(b"content")
    check(file, Offer(name="x_1_all.deb", size=7, digest=f"SHA256:{DIGEST}"))


def test_of_what_apt_says_the_cause_is_told() -> None:
    said = "Err:1 x\nW: Failed to fetch x  Temporary failure resolving\nE: Some index files failed.\n"
    assert complaint(said) == "Failed to fetch x  Temporary failure resolving"
    assert complaint("sh: killed\n\n") == "sh: killed"
    assert complaint("") == "no word of it"


def tar_xz(files: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:xz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return made.getvalue()


def deb(files: dict[str, bytes]) -> bytes:
    """A package as deb(5) describes it: an ar archive of three members."""
    control = b"Package: x\nVersion: 1\nArchitecture: all\nMaintainer: x\nDescription: x\n"
    archive = b"!<arch>\n"
    for name, content in (
        ("debian-binary", b"2.0\n"),
        ("control.tar.xz", tar_xz({"./control": control})),
        ("data.tar.xz", tar_xz(files)),
    ):
        archive += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode()
        archive += content + b"\n" * (len(content) % 2)
    return archive


@pytest.fixture
def dpkg_deb() -> None:
    try:
        subprocess.run(["dpkg-deb", "--version"], check=True, capture_output=True)
    except OSError:
        pytest.skip("no dpkg-deb on this machine: it has no apt either")


@pytest.mark.usefixtures("dpkg_deb")
def test_a_package_is_unpacked_without_being_installed(tmp_path: Path) -> None:
    package = tmp_path / "x_1_all.deb"
    package.write_bytes(deb({"./usr/bin/linux.uml": b"kernel", "./usr/lib/uml/modules/6.1/m.ko": b"m"}))
    unpack(package, tmp_path / "x")
    assert (tmp_path / "x/usr/bin/linux.uml").read_bytes() == b"kernel"
    assert (tmp_path / "x/usr/lib/uml/modules/6.1/m.ko").read_bytes() == b"m"


@pytest.mark.usefixtures("dpkg_deb")
@pytest.mark.parametrize("broken", [b"", b"not an archive", deb({"./a": bytes(5000)})[:-200]])
def test_a_torn_package_is_named(tmp_path: Path, broken: bytes) -> None:
    package = tmp_path / "x_1_all.deb"
    package.write_bytes(broken)
    with pytest.raises(Broken, match=r"x_1_all\.deb can't be unpacked"):
        unpack(package, tmp_path / "x")


# --- the kernel's ISO-TP -----------------------------------------------------------


def test_the_source_of_exactly_that_kernel() -> None:
    offered = ["6.1.192-2", "6.1.176-1", "6.1.17-1"]
    assert source_package("6.1.176", offered) == "linux-source-6.1=6.1.176-1"
    assert source_package("6.1.17", offered) == "linux-source-6.1=6.1.17-1"
    with pytest.raises(Unavailable, match=r"no linux-source-6\.1 of version 6\.1\.177, only 6\.1\.192-2"):
        source_package("6.1.177", offered)
    with pytest.raises(Unavailable, match="only none"):
        source_package("6.1.177", [])


def test_the_configuration_asks_for_the_module() -> None:
    config = "CONFIG_CAN=m\n# CONFIG_CAN_ISOTP is not set\nCONFIG_DEBUG_INFO_BTF=y\nCONFIG_CAN_ISOTP_X=y\n"
    assert configure(config).splitlines() == [
        *("CONFIG_CAN=m", "CONFIG_CAN_ISOTP_X=y", "CONFIG_CAN_ISOTP=m", "# CONFIG_DEBUG_INFO_BTF is not set")
    ]
    assert configure(configure(config)) == configure(config)


@pytest.mark.parametrize(
    ("name", "needed"),
    [
        ("linux-source-6.1/net/can/isotp.c", True),
        ("linux-source-6.1/drivers/net/can/Kconfig", True),
        ("linux-source-6.1/drivers/net/can/vcan.c", False),
        ("linux-source-6.1/fs/ext4/inode.c", False),
        ("linux-source-6.1/fs/ext4/ext4.h", True),
        ("linux-source-6.1/arch/um/include/asm/page.h", True),
        ("linux-source-6.1/arch/x86/um/user-offsets.c", True),
        ("linux-source-6.1/arch/arm64/kernel/entry.S", False),
        ("linux-source-6.1/arch/arm64/Kconfig", True),
        ("linux-source-6.1/Documentation/Kconfig", True),
        ("linux-source-6.1/Documentation/index.rst", False),
        ("linux-source-6.1/include/linux/can.h", True),
    ],
)
def test_what_is_unpacked_of_the_source(name: str, needed: bool) -> None:
    assert (NOT_NEEDED.fullmatch(name) is None) is needed


def test_the_source_is_unpacked_to_where_it_belongs(tmp_path: Path) -> None:
    archive = tmp_path / "linux-source-6.1.tar.xz"
    archive.write_bytes(
        tar_xz({"linux-source-6.1/Makefile": b"all:", "linux-source-6.1/drivers/a.c": b"int a;"})
    )
    source = unpack_source(archive, tmp_path / "x")
    assert (source, (source / "Makefile").read_bytes()) == (tmp_path / "x/linux-source-6.1", b"all:")
    assert not (source / "drivers").exists()


def test_programs_unpacked_beside_the_machine_are_found_first(tmp_path: Path) -> None:
    assert environment(None, "/bin") == {"PATH": "/bin", "LC_ALL": "C", "HOME": "/nonexistent"}
    (tmp_path / "usr/share/bison").mkdir(parents=True)
    found = environment(tmp_path, "/bin")
    assert found["PATH"] == f"{tmp_path}/usr/bin:/bin"
    assert found["BISON_PKGDATADIR"] == f"{tmp_path}/usr/share/bison"
    assert "M4" not in found


def test_a_linker_script_searches_its_files() -> None:
    script = (
        "/* GNU ld script */\nOUTPUT_FORMAT(elf64-x86-64)\nGROUP ( /lib/x86_64-linux-gnu/libc.so.6 "
        "/usr/lib/x86_64-linux-gnu/libc_nonshared.a  AS_NEEDED ( /lib64/ld-linux-x86-64.so.2 ) )\n"
    )
    assert free_of_paths(script) == (
        "/* GNU ld script */\nOUTPUT_FORMAT(elf64-x86-64)\nGROUP ( libc.so.6 "
        "libc_nonshared.a  AS_NEEDED ( ld-linux-x86-64.so.2 ) )\n"
    )
