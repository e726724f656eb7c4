"""How much of an image a delta is, and how long a truck takes to apply it: two linked builds of one program.

The program is generated C: functions that call each other, point at texts and tables, and use registers
at fixed addresses, as a controller's firmware does; the newer build has a function and its call inserted
near its begin, so that all code and data behind it move. It is built with the machine's own gcc, 32-bit
and freestanding where that can be, into a flat image.
"""

from __future__ import annotations

import hashlib
import io
import random
import statistics
import subprocess
import tempfile
import time
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
GCC = ["gcc", "-m32", "-Os", "-w", "-ffreestanding", "-fno-pie", "-fno-asynchronous-unwind-tables"]
LINK = ["-nostdlib", "-no-pie", "-Wl,-N,-Ttext=0x08010000,--build-id=none,-e,main"]
APART = (
    "generated C, gcc -m32 -Os (no ARM toolchain here), flat images linked at one address, code inserted "
    "early in the newer; tables of constants are a quarter of each"
)


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
        apart=APART,
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
        apart=f"{len(pair.image)} bytes, from memory, the thread's CPU time, with the hash; {APART}",
    )


@cache
def _pair(size: int) -> _Pair:
    """Two builds of about `size` bytes. Raises RuntimeError when there is no compiler."""
    functions = size * 3 // 4 // BYTES_A_FUNCTION
    with tempfile.TemporaryDirectory(prefix="quarry-bench-") as name:
        folder = Path(name)
        objects = [
            _compiled(folder, f"part{begin}", _source(begin, min(begin + FUNCTIONS_A_FILE, functions)))
            for begin in range(FUNCTIONS_A_FILE, functions, FUNCTIONS_A_FILE)
        ]
        tables = _compiled(folder, "tables", _tables(size // 4))
        images = []
        for new in (False, True):
            first = _compiled(folder, f"first{new:d}", _source(0, FUNCTIONS_A_FILE, new=new))
            elf, flat = folder / "image.elf", folder / "image.bin"
            _run([*GCC, *LINK, "-o", str(elf), str(first), *map(str, objects), str(tables)])
            _run(["objcopy", "-O", "binary", str(elf), str(flat)])
            images.append(flat.read_bytes())
    base, image = images
    return _Pair(base=base, image=image, delta=make_delta(base, image))


def _run(command: list[str]) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=600)
    except (OSError, subprocess.SubprocessError) as error:
        detail = getattr(error, "stderr", b"") or b""
        raise RuntimeError(f"{command[0]} can't build the images: {detail[-300:]!r}") from error


def _compiled(folder: Path, name: str, source: str) -> Path:
    file, made = folder / f"{name}.c", folder / f"{name}.o"
    file.write_text(source, encoding="ascii")
    _run([*GCC, "-c", "-o", str(made), str(file)])
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
