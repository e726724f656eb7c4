"""What the idle agent keeps in memory: no library that only a person needs, no page that only the start did.

Which libraries is pinned here; how many MiB that makes is `quarry bench agent`'s to measure.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edge_agent.__main__ import config_of_run
from edge_agent.gateway.memory import SMAPS, unchanged_file_mappings

NOT_AT_REST = {
    # a person's command line and its tables
    *("typer", "click", "rich", "pygments", "pydantic", "pydantic_core", "argparse", "markdown_it"),
    # images are parsed when one is to be flashed; a delta is applied in Python, made in the office
    *("bincopy", "elftools", "bsdiff4", "humanfriendly"),
    # protocols of ECUs that this gateway may not have
    *("firmware_flashers.stm32_rom_flash", "firmware_flashers.uds_flash", "firmware_flashers.jetson"),
    # the desk, the office, the simulators
    *("cli", "control_plane", "sim", "esptool", "fastapi", "requests", "pkcs11"),
}


def python(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_service_imports_nothing_that_it_does_not_need_at_rest() -> None:
    loaded = python(
        "from edge_agent.__main__ import main\n"
        "import sys\n"
        # As far as a start comes without a configuration: everything that `run` imports is in.
        "assert main(['run', '--config', '/nowhere/agent.toml']) == 78\n"
        "print(*sys.modules, sep='\\n')"
    ).split()
    assert {"edge_agent.app", "structlog", "httpx", "tuf", "can"} <= set(loaded)
    assert {name for name in loaded if name in NOT_AT_REST or name.partition(".")[0] in NOT_AT_REST} == set()


def test_libraries_without_a_terminal_face_work_and_the_face_can_be_had_later() -> None:
    said = python(
        "from edge_agent.lean import load_without_terminal\n"
        "import sys, logging\n"
        "load_without_terminal()\n"
        "assert not {'rich', 'click', 'pygments'} & set(sys.modules)\n"
        "import httpx, structlog, rich, pygments\n"
        "from shared.logs import get_log, set_up_logs\n"
        "set_up_logs('t', stream=sys.stdout)\n"
        "try:\n    1 / 0\nexcept ZeroDivisionError:\n    get_log('room').exception('t.failed')\n"
        "httpx.AsyncClient()"
    )
    assert '"message": "t.failed"' in said
    assert "ZeroDivisionError" in said


def test_a_library_that_needs_its_face_is_imported_whole_later(tmp_path: Path) -> None:
    (tmp_path / "httpx.py").write_text("import rich\n")
    python(
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from edge_agent.lean import load_without_terminal\n"
        "load_without_terminal()\n"
        "assert 'httpx' not in sys.modules\n"
        "import httpx\n"
        "assert httpx.rich.__name__ == 'rich'"
    )


@pytest.mark.parametrize(
    ("arguments", "file"),
    [
        (["run", "--config", "/etc/a.toml"], "/etc/a.toml"),
        (["run", "--config=/etc/a.toml"], "/etc/a.toml"),
        (["run", "--help"], None),
        (["run"], None),
        (["run", "--config", "/etc/a.toml", "more"], None),
        (["status", "--config", "/etc/a.toml"], None),
    ],
)
def test_a_plain_run_is_read_without_a_framework(arguments: list[str], file: str | None) -> None:
    found = config_of_run(arguments)
    assert (None if found is None else str(found)) == file


def mapping(head: str, anonymous_kib: int) -> str:
    return f"{head}\nSize: 8 kB\nRss: 8 kB\nAnonymous: {anonymous_kib:8d} kB\nVmFlags: rd ex mr mw me \n"


MAPPINGS = {
    "a library's code": (
        mapping("7f0000001000-7f0000003000 r-xp 00001000 08:01 77     /usr/lib/l.so", 0),
        True,
    ),
    "its constants": (mapping("7f0000001000-7f0000003000 r--p 00001000 08:01 77     /usr/lib/l.so", 0), True),
    "a path with spaces": (mapping("1000-3000 r-xp 00001000 08:01 77     /opt/a b (deleted)", 0), True),
    "relocated, then read-only": (mapping("1000-3000 r--p 00001000 08:01 77     /usr/lib/l.so", 4), False),
    "a debugger's breakpoint": (mapping("1000-3000 r-xp 00001000 08:01 77     /usr/lib/l.so", 4), False),
    "its variables": (mapping("1000-3000 rw-p 00001000 08:01 77     /usr/lib/l.so", 0), False),
    "shared with others": (mapping("1000-3000 r--s 00001000 08:01 77     /data/agent.db-shm", 0), False),
    "no file's": (mapping("1000-3000 r--p 00000000 00:00 0 ", 0), False),
    "the kernel's": (mapping("1000-3000 r-xp 00000000 00:00 0          [vdso]", 0), False),
    "the heap": (mapping("1000-3000 rw-p 00000000 00:00 0          [heap]", 8), False),
}


@pytest.mark.parametrize("case", MAPPINGS)
def test_only_unchanged_pages_of_files_are_let_go_of(case: str) -> None:
    text, goes = MAPPINGS[case]
    before = mapping("9000-a000 rw-p 00000000 00:00 0 ", 4)
    found = list(unchanged_file_mappings(before + text + before))
    assert [length for _, length in found] == ([0x2000] if goes else [])


@pytest.mark.skipif(not SMAPS.exists(), reason="this kernel has no smaps")
def test_what_is_let_go_of_comes_back_when_it_is_used() -> None:
    said = python(
        "import sqlite3, ssl\n"
        "from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey\n"
        "from edge_agent.gateway.memory import give_back\n"
        "def file_kib():\n"
        "    [line] = [l for l in open('/proc/self/status') if l.startswith('RssFile')]\n"
        "    return int(line.split()[1])\n"
        "def use():\n"
        "    key = Ed25519PrivateKey.from_private_bytes(bytes(32))\n"
        "    sums = sqlite3.connect(':memory:').execute('select 6 * 7').fetchone()\n"
        "    return key.sign(b'truck').hex(), sums, len(ssl.create_default_context().get_ciphers())\n"
        "first, before = use(), file_kib()\n"
        "give_back()\n"
        "after = file_kib()\n"
        "assert use() == first\n"
        "print(before, after)"
    )
    before, after = map(int, said.split())
    assert after < before / 2
