"""Coverage-guided fuzzing of every reader with atheris: `pip install atheris`, which is no dependency of the tests.

    python benchmarks/fuzz.py TARGET [SECONDS] [FOLDER]

TARGET is header, index, factored, exact, torch, stats, legacy or safetensors. Begins with small honest inputs, keeps
what reaches new lines in FOLDER if one is given, and ends with an error at the first exception that is not the
package's own. Checksums are put right, so that the search is not spent on guessing them.
Compiled loops are not instrumented: they are run, and a crash in one ends the process.
"""

from __future__ import annotations

import json
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import atheris

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import numpy as np
import zstandard

from paramcompress import codec, entropy

PACKAGE = Path(codec.__file__).parent
LOOPS = [
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
    if "jit import" in path.read_text()
]
"""Modules with compiled loops, which numba has to see as they are written."""

with atheris.instrument_imports(include=["paramcompress"], exclude=LOOPS):
    import reading
    from forging import Forged, safetensors_bytes, torch_zip, unzip

    from paramcompress import container
    from paramcompress.container import Reader

for room, functions in {codec: ("decode_factored", "decode_exact"), entropy: ("unpack", "read_varint")}.items():
    for function in functions:
        setattr(room, function, atheris.instrument_func(getattr(room, function)))

SHAPES = ((6, 5), (), (7,), (4, 2, 3, 3), (3, 4, 9), (0, 5), (5, 0), (2, 3, 40), (1, 1, 8, 1), (300, 2))
Target = Callable[[bytes], object]


def header(folder: Path) -> tuple[Target, list[bytes]]:
    """The JSON before the parts, its checksum put right."""
    honest = (folder / "dict.safetensors").read_bytes()
    n_header = int.from_bytes(honest[:8], "little")
    parts, place = honest[8 + n_header :], folder / "fuzzed"

    def read(data: bytes) -> None:
        head = len(data).to_bytes(8, "little") + data
        index = parts[:-8] + zlib.crc32(head).to_bytes(4, "little")
        with Reader(folder / "dict.safetensors") as reader:
            n_index = reader._parts[container.INDEX][1]
        place.write_bytes(head + index + zlib.crc32(index[-(n_index - 4) :]).to_bytes(4, "little"))
        reading.outcome(lambda: reading.read_squeezed(place, 1 << 20))

    return read, [honest[8 : 8 + n_header]]


def index(folder: Path) -> tuple[Target, list[bytes]]:
    """The JSON text of the index, in a file that is right otherwise; then all that the file is asked."""
    forged = {path: Forged.of(path) for path in sorted(folder.glob("*.safetensors"))}
    place = folder / "fuzzed"

    def read(data: bytes) -> None:
        one = list(forged.values())[data[0] % len(forged) if data else 0].copy()
        one.index_text = data[1:] or b" "
        place.write_bytes(one.build())
        reading.outcome(lambda: reading.read_squeezed(place, 1 << 20))

    return read, [bytes([i]) + json.dumps(one.index).encode() for i, one in enumerate(forged.values())]


def own_errors(read: Callable[[], object]) -> None:
    """Rooms below the file say ValueError, which the file translates."""
    try:
        read()
    except (ValueError, OverflowError):
        return


def factored(folder: Path) -> tuple[Target, list[bytes]]:
    """A stream of factors under one of ten shapes."""

    def read(data: bytes) -> None:
        shape = SHAPES[data[0] % len(SHAPES)] if data else ()
        own_errors(lambda: codec.decode_factored(data[1:], shape).reconstruct())

    streams = []
    for path in sorted(folder.glob("*.safetensors")):
        with Reader(path) as reader:
            streams += [
                bytes(reader.stream(one)) for one in reader.index.entries if one.codec == "factored" and not one.same_as
            ]
    return read, [bytes([i]) + stream for stream in streams for i in range(4)]


def exact(folder: Path) -> tuple[Target, list[bytes]]:
    """A zstd frame of planes, its size known beforehand."""
    read: Target = lambda data: own_errors(lambda: codec.decode_exact(data[1:], 40, 1 << data[0] % 5 if data else 1))  # noqa: E731
    return read, [bytes([2]) + zstandard.ZstdCompressor().compress(bytes(range(40)))]


def torch(folder: Path) -> tuple[Target, list[bytes]]:
    """The pickle in a torch file."""
    pickled, members = unzip((folder / "trainer.pt").read_bytes())
    place = folder / "fuzzed.pt"

    def read(data: bytes) -> None:
        place.write_bytes(torch_zip(data, members))
        reading.outcome(lambda: reading.read_checkpoint(place))

    return read, [pickled]


def stats(folder: Path) -> tuple[Target, list[bytes]]:
    """The metadata and then the numbers of a file of second moments, which then guide a squeeze."""
    honest, tensors = reading.measured(folder, np.random.default_rng(0))
    raw = honest.read_bytes()
    n_header = int.from_bytes(raw[:8], "little")
    header, numbers = json.loads(raw[8 : 8 + n_header]), raw[8 + n_header :]
    ((key, text),) = header["__metadata__"].items()
    place = folder / "fuzzed"

    def read(data: bytes) -> None:
        described = data[: -len(numbers)] if len(data) > len(numbers) else text.encode()
        header["__metadata__"][key] = described.decode("utf-8", "replace")
        place.write_bytes(safetensors_bytes(header, data[-len(numbers) :].rjust(len(numbers), b"\0")))
        reading.outcome(lambda: reading.read_moments(place, tensors))

    return read, [text.encode() + numbers]


def _whole(name: str, make: Callable[[Path], bytes]) -> Callable[[Path], tuple[Target, list[bytes]]]:
    def target(folder: Path) -> tuple[Target, list[bytes]]:
        place = folder / name

        def read(data: bytes) -> None:
            place.write_bytes(data)
            reading.outcome(lambda: reading.read_checkpoint(place))

        return read, [make(folder)]

    return target


TARGETS: dict[str, Callable[[Path], tuple[Target, list[bytes]]]] = {
    **{one.__name__: one for one in (header, index, factored, exact, torch, stats)},
    "legacy": _whole("fuzzed.pt", lambda folder: (folder / "legacy.pt").read_bytes()),
    "safetensors": _whole("fuzzed.st", lambda folder: (folder / "shards" / "a.safetensors").read_bytes()),
}


def main(name: str, seconds: int = 60, kept: str = "") -> None:
    """Fuzz one target for that long; atheris ends the process."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        reading.seeds(folder)
        read, honest = TARGETS[name](folder)
        corpus = Path(kept) if kept else folder / "corpus"
        corpus.mkdir(exist_ok=True)
        for i, data in enumerate(honest):
            (corpus / f"honest{i}").write_bytes(data)
            read(data)
        flags: list[Any] = [
            f"-max_total_time={seconds}",
            "-timeout=30",
            "-rss_limit_mb=4096",
            "-max_len=8192",
            "-verbosity=0",
        ]
        np.seterr(all="ignore")
        atheris.Setup([sys.argv[0], str(corpus), *flags, "-print_final_stats=1"], read)
        atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], *(int(one) if one.isdigit() else one for one in sys.argv[2:]))
