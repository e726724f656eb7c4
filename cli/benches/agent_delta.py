"""How much of an image a delta is, and how long a truck takes to apply it: two linked builds of one program.

With an ARM compiler and its C library (Debian: gcc-arm-none-eabi, libnewlib-arm-none-eabi) they are Cortex-M4
images that hold all of newlib's real code; else they are built with the machine's own gcc. The program around
it is generated C: functions that call each other, point at texts and tables, and use registers at fixed
addresses, as a controller's firmware does. The newer build has a function and its call inserted at its begin,
so that all code and data behind it move.
"""

from __future__ import annotations

import hashlib
import io
import random
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from cli.benches.report import Row
from shared.delta import apply_delta, make_delta

SIZES = {"256 KiB": 256 * 1024, "1 MiB": 1024 * 1024}
MOST_RATIO = 0.10
MOST_S = 2.0
RUNS = 3
FUNCTIONS_A_FILE = 250
BYTES_A_FUNCTION = 190
TABLES_SHARE = 16
"""One byte of so many is a table of constants, which only moves."""
COMPILE = ("-Os", "-w", "-ffreestanding")
LINK = (
    *("-nostdlib", "-Wl,-N,-Ttext=0x08010000,--build-id=none,-e,main,--no-warnings"),
    # What a library calls of the system is not there; nothing of it is ever run.
    "-Wl,--unresolved-symbols=ignore-all,--allow-multiple-definition",
)


@dataclass(frozen=True, kw_only=True)
class _Toolchain:
    """`libraries` by the size of the image: archives that are linked in whole."""

    compiler: tuple[str, ...]
    objcopy: str
    libraries: Mapping[int, tuple[str, ...]]
    words: str


@cache
def _toolchain() -> _Toolchain:
    """An ARM compiler's, if there is one."""
    compiler = ("arm-none-eabi-gcc", "-mcpu=cortex-m4", "-mthumb")
    if shutil.which(compiler[0]):
        names = {SIZES["256 KiB"]: ("libm.a",), SIZES["1 MiB"]: ("libm.a", "libc.a")}
        found = {name: _run([*compiler, f"-print-file-name={name}"]).strip() for name in ("libm.a", "libc.a")}
        if all(Path(path).is_absolute() for path in found.values()):
            return _Toolchain(
                compiler=compiler,
                objcopy="arm-none-eabi-objcopy",
                libraries={size: tuple(found[one] for one in ones) for size, ones in names.items()},
                words="arm-none-eabi-gcc -Os for Cortex-M4, newlib's libm (in the larger image libc too) "
                "linked in whole, the rest generated C",
            )
    return _Toolchain(
        compiler=("gcc", "-m32", "-fno-pie", "-no-pie", "-fno-asynchronous-unwind-tables"),
        objcopy="objcopy",
        libraries={},
        words="generated C, gcc -m32 -Os (no ARM compiler with its C library here)",
    )


def _apart() -> str:
    return f"{_toolchain().words}; flat images linked at one address, code inserted early in the newer"


@dataclass(frozen=True, kw_only=True)
class _Pair:
    base: bytes
    image: bytes
    delta: bytes


def ratio() -> Row:
    """The worse image's delta as a share of the whole image."""
    worst = max(len(pair.delta) / len(pair.image) for pair in map(_pair, SIZES.values()))
    return Row(
        case="delta.ratio",
        value=worst,
        unit="of the image",
        limit=MOST_RATIO,
        limit_is="what is asked",
        ratio=worst / MOST_RATIO,
        goal="< limit",
        met=worst < MOST_RATIO,
        apart=_apart(),
    )


def seconds() -> Row:
    """CPU time of applying the larger delta and hashing its image, the median of some runs."""
    pair = _pair(max(SIZES.values()))
    spent = []
    for _ in range(RUNS):
        before = time.thread_time()
        digest = hashlib.sha256()
        chunks = apply_delta(io.BytesIO(pair.base), io.BytesIO(pair.delta), length=len(pair.image))
        for chunk in chunks:
            digest.update(chunk)
        spent.append(time.thread_time() - before)
        if digest.digest() != hashlib.sha256(pair.image).digest():
            raise RuntimeError("another image came out")
    taken = statistics.median(spent)
    return Row(
        case="delta.seconds",
        value=taken,
        unit="s",
        limit=MOST_S,
        limit_is="what is asked",
        ratio=taken / MOST_S,
        goal="< limit",
        met=taken < MOST_S,
        apart=f"{len(pair.image)} bytes, from memory, the thread's CPU time, with the hash; {_apart()}",
    )


@cache
def _pair(size: int) -> _Pair:
    """Two builds of about `size` bytes. Raises RuntimeError when there is no compiler."""
    with tempfile.TemporaryDirectory(prefix="quarry-bench-") as name:
        folder = Path(name)
        tables = _compiled(folder, "tables", _tables(size // TABLES_SHARE))
        libraries = _toolchain().libraries.get(size, ())
        stub = _compiled(folder, "stub", "int main(void){return 0;}")
        rest = size - len(_linked(folder, [stub, tables], libraries))
        functions = max(rest, 0) // BYTES_A_FUNCTION + 10
        objects = [
            _compiled(folder, f"part{begin}", _source(begin, min(begin + FUNCTIONS_A_FILE, functions)))
            for begin in range(FUNCTIONS_A_FILE, functions, FUNCTIONS_A_FILE)
        ]
        base, image = (
            _linked(
                folder,
                [
                    _compiled(folder, "first", _source(0, min(FUNCTIONS_A_FILE, functions), new=new)),
                    *objects,
                    tables,
                ],
                libraries,
            )
            for new in (False, True)
        )
    return _Pair(base=base, image=image, delta=make_delta(base, image))


def _linked(folder: Path, objects: Sequence[Path], libraries: Sequence[str]) -> bytes:
    tools = _toolchain()
    elf, flat = folder / "image.elf", folder / "image.bin"
    whole = ["-Wl,--whole-archive", *libraries, "-Wl,--no-whole-archive"] if libraries else []
    support = ["-lgcc"] if libraries else []
    _run([*tools.compiler, *LINK, "-o", str(elf), *map(str, objects), *whole, *support])
    _run([tools.objcopy, "-O", "binary", str(elf), str(flat)])
    return flat.read_bytes()


def _run(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, check=True, capture_output=True, timeout=600)
    except (OSError, subprocess.SubprocessError) as error:
        detail = getattr(error, "stderr", b"") or b""
        raise RuntimeError(f"{command[0]} can't build the images: {detail[-300:]!r}") from error
    return done.stdout.decode(errors="replace")


def _compiled(folder: Path, name: str, source: str) -> Path:
    file, made = folder / f"{name}.c", folder / f"{name}.o"
    file.write_text(source, encoding="ascii")
    _run([*_toolchain().compiler, *COMPILE, "-c", "-o", str(made), str(file)])
    return made


def _source(begin: int, end: int, *, new: bool = False) -> str:
    """Functions `begin`..`end`; the first file holds main. The same numbers give the same text."""
    dice = random.Random(begin)
    lines = [
        "typedef unsigned u; extern const u table[];",
        "#define IO ((volatile u *)0x40020000)",
        *(f"u f{number}(u);" for number in range(begin)),
    ]
    for number in range(begin, end):
        if new and number == 5:
            lines.append("u fresh(u a){for(u i=0;i<9;i++)a=a*31u+IO[i];return a;}")
        body = [_statement(dice, number, begin) for _ in range(dice.randint(4, 12))]
        if new and number == 7:
            body.insert(1, "a+=fresh(a);")
        lines.append(f"u f{number}(u a){{{''.join(body)}return a;}}")
    if begin == 0:
        lines.append("int main(void){return (int)f9(1);}")
    return "\n".join(lines)


def _statement(dice: random.Random, number: int, begin: int) -> str:
    kind = dice.randrange(-2, 10)
    if kind in (-1, 0) and number > begin:
        return f"a+=f{dice.randrange(number)}(a+{dice.randrange(999)}u);"
    if kind == 1:
        return f"a-=table[a&{dice.choice((63, 127, 255))}];"
    if kind in (-2, 2):
        return f'a^=((const char *)"state {dice.randrange(10**6)} of part {number}")[a&7];'
    if kind < 6:
        return f"IO[{dice.randrange(64)}]=a*{dice.randrange(1, 2**16)}u;"
    if kind < 8:
        return f"if(a>{dice.randrange(1, 2**30)}u)a=(a>>{dice.randrange(1, 9)})^IO[{dice.randrange(64)}];"
    return f"for(u i=0;i<(a&{dice.randrange(3, 31)});i++)IO[i]=a+i*{dice.randrange(3, 77)}u;"


def _tables(size: int) -> str:
    dice = random.Random(size)
    values = ",".join(str(dice.randrange(2**16)) for _ in range(size // 4))
    return f"const unsigned table[]={{{values}}};"
