"""A slow reader of squeezed files in plain Python and numpy, written from docs/format.md alone: the fast one's oracle.

Imports nothing of the package. The index' phrases are read from that page, the numbers of the prior from the source
it names. It believes well-formed files and checks every checksum; it has no defence against hostile ones.
"""

from __future__ import annotations

import decimal
import itertools
import json
import math
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

PAGE = Path(__file__).parents[1] / "docs" / "format.md"
PRIOR_SOURCE = Path(__file__).parents[1] / "paramcompress" / "prior.py"
ITEM_BYTES = {"bool": 1, "bfloat16": 2, "complex32": 4}
"""Those whose name does not say it."""


def decode_file(path: str | Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Name -> torch's dtype name, shape, bytes (C order, little-endian) of every tensor, in the checkpoint's order."""
    data = Path(path).read_bytes()
    parts, head = read_parts(data)
    index = parts["paramcompress.index"]
    assert zlib.crc32(head) == int.from_bytes(index[-4:], "little"), "header checksum"
    whole = json.loads(unzstd(index[:-4], phrases()).decode("utf-8", "surrogatepass"))
    pools = {name: 0 for name in parts if name.startswith(("paramcompress.pool", "paramcompress.exact"))}
    exact = {
        name: join_planes(unzstd(parts[name]), int(name.removeprefix("paramcompress.exact")))
        for name in pools
        if name != "paramcompress.pool"
    }
    found: dict[str, tuple[str, tuple[int, ...], bytes]] = {}
    entries = list(rows(whole["entries"], whole["n"]))
    together = [entry for entry in entries if entry["home"] == 4]
    lengths = [math.prod(entry["shape"]) for entry in together]
    assert [entry["n_bytes"] for entry in together] == [4 + 4 * n for n in lengths]
    at = sum(entry["n_bytes"] for entry in entries if entry["home"] == 1)
    told = vectors(parts["paramcompress.pool"][at:], lengths) if together else []
    for entry, weight in zip(together, told, strict=True):
        assert entry["codec"] == "vector"
        found[entry["name"]] = entry["dtype"], tuple(entry["shape"]), cast(weight, entry["dtype"])
    for entry in entries:
        name, dtype, shape, n_bytes = entry["name"], entry["dtype"], tuple(entry["shape"]), entry["n_bytes"]
        if entry["home"] in (3, 4):
            continue
        if entry["home"] == 0:
            stream = parts[name + ".squeezed"]
        else:
            pool = "paramcompress.pool" if entry["home"] == 1 else f"paramcompress.exact{item_bytes(dtype)}"
            stream = exact.get(pool, parts[pool])[pools[pool] : pools[pool] + n_bytes]
            pools[pool] += n_bytes
        assert len(stream) == n_bytes, name
        if entry["home"] == 2:
            raw = stream
        elif entry["codec"] == "exact":
            raw = join_planes(unzstd(stream), item_bytes(dtype))
        else:
            assert entry["codec"] in ("factored", "predicted"), name
            weight = factored(stream, shape) if entry["codec"] == "factored" else predicted(stream, shape, dtype)
            raw = cast(weight, dtype)
        assert zlib.crc32(raw) == entry["crc"], f"hash of {name}"
        found[name] = dtype, shape, raw
    for entry in entries:
        if entry["home"] == 3:
            found[entry["name"]] = found[entry["same_as"]]
            assert entry["codec"] == "vector" or zlib.crc32(found[entry["name"]][2]) == entry["crc"]
    return {entry["name"]: found[entry["name"]] for entry in entries}


# ------------------------------------------------------------------------------------------- file and index


def read_parts(data: bytes) -> tuple[dict[str, bytes], bytes]:
    """Payload of every part, and the bytes of the header with its length."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    assert header.pop("__metadata__")["paramcompress"].split(" ")[0] == "1"
    parts, end = {}, 0
    for name, part in header.items():
        assert part["data_offsets"][0] == end
        first, end = part["data_offsets"]
        payload, checksum = data[start + first : start + end - 4], data[start + end - 4 : start + end]
        assert zlib.crc32(payload) == int.from_bytes(checksum, "little"), f"checksum of {name}"
        parts[name] = payload
    assert start + end == len(data)
    return parts, data[:start]


def rows(columns: dict[str, list[Any]], n: int) -> Iterator[dict[str, Any]]:
    defaults = {"same_as": None, "tied": False, "dictionary": "none", "rank": 0, "home": 1, "dtype": "float32"}
    crc = columns.pop("crc")
    for i in range(n):
        row = defaults | {field: values[i] for field, values in columns.items()}
        if row["codec"] != "vector":
            row["crc"], crc = int(crc[:8], 16), crc[8:]
        yield row
    assert crc == ""


def chain() -> int:
    """Numbers that a chain of the trellis holds at least."""
    return int(re.findall(r"`ceil\((\d+)\s/\slength\)`", PAGE.read_text())[0])


def phrases(number: int = 0) -> bytes:
    """The dictionary of the index, or, as number 1, that of recipes."""
    block = re.findall(r"^```text\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)[number]
    return "".join(block.splitlines()).encode()


def unzstd(frame: bytes, dictionary: bytes = b"") -> bytes:
    book = zstandard.ZstdCompressionDict(dictionary, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    return zstandard.ZstdDecompressor(dict_data=book if dictionary else None).decompress(frame)


def item_bytes(dtype: str) -> int:
    digits = re.match(r"[a-z]*?(?:float|int|complex)(\d+)", dtype)
    return ITEM_BYTES[dtype] if dtype in ITEM_BYTES else int(digits[1]) // 8 if digits else 1


def join_planes(planes: bytes, n: int) -> bytes:
    """Highest bytes of all items first -> items."""
    n_items = len(planes) // n
    return bytes(planes[(n - 1 - b) * n_items + i] for i in range(n_items) for b in range(n))


# ------------------------------------------------------------------------------------------- vectors


def vectors(stream: bytes, lengths: list[int]) -> list[NDArray[np.float32]]:
    """Vectors of these lengths, all in one stream."""
    period, at = stream[0], 1

    def matrix(n_rows: int, n_columns: int, period: int) -> list[list[int]]:
        nonlocal at
        size, at = varint(stream, at)
        at += size
        assert stream[at - size] & 7 == 0
        return [[int(k) // 2 for k in column] for column in symbols(stream[at - size : at], n_rows, n_columns, period)]

    ahead, centres = matrix(len(lengths), 2, 1)
    codes: list[int] = []
    for i, d in enumerate(ahead):
        codes.append(d + (codes[i - period] if i >= period else codes[i - 1] if i else 0))
    points: dict[int, list[int]] = {}
    for n in dict.fromkeys(lengths):
        group = [i for i, length in enumerate(lengths) if length == n]
        for i, column in zip(group, matrix(n, len(group), period), strict=True):
            points[i] = [k + centres[i] for k in column]
    records = [[codes[i], *points[i]] for i in range(len(lengths))]
    assert at == len(stream) - 4
    packed = b"".join(number.to_bytes(4, "little", signed=True) for record in records for number in record)
    assert zlib.crc32(packed) == int.from_bytes(stream[-4:], "little"), "hash of the vectors"
    steps = [math.ldexp(8 + code % 8, code // 8 - 3) for code in codes]
    return [np.array([k * steps[i] for k in points[i]], np.float64).astype(np.float32) for i in range(len(lengths))]


# ------------------------------------------------------------------------------------------- factors


def layout(shape: tuple[int, ...]) -> tuple[int, int, tuple[int, ...]]:
    """n_out, m, kernel axes."""
    while len(shape) > 2 and shape[0] == 1:
        shape = shape[1:]
    if len(shape) < 2:
        return math.prod(shape), 1, ()
    if len(shape) == 2:
        return shape[0], shape[1], ()
    if len(shape) == 3 and shape[2] > 16:
        return shape[0] * shape[1], shape[2], ()
    return shape[0], math.prod(shape[1:]), shape[2:]


def factored(stream: bytes, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The matrix W of a stream, float32."""
    n_out, m, kernel = layout(shape)
    k = math.prod(kernel)
    head, at = stream[0], 5
    step = float(np.frombuffer(stream, "<f4", 1, 1)[0])
    matrix, exponent = None, 0
    if head & 15 == 1:
        matrix = np.frombuffer(stream, np.int8, k * k, at).reshape(k, k).astype(np.int64)
        exponent, at = -7, at + k * k
    elif head & 15 == 2:
        matrix, exponent = cosine(kernel), -7 * len(kernel)
    elif head & 15 == 3:
        matrix, at = mirror(stream, at, kernel)
        exponent = -7
    b = np.zeros((n_out, m))
    scale = 0.0
    if head & 16:
        scale = float(np.frombuffer(stream, "<f4", 1, at)[0])
        r, at = varint(stream, at + 4)
        exponents = np.frombuffer(stream, np.int8, r, at).astype(np.int64)
        n_bytes, at = varint(stream, at + r)
        c = symbols(stream[at : at + n_bytes], n_out, r, 1)
        n_bytes, at = varint(stream, at + n_bytes)
        d = symbols(stream[at : at + n_bytes], m, r, 1)
        at += n_bytes
        least = int(exponents.min())
        b = ((c.T << (exponents - least)) @ d) * 2.0**least
    a = np.zeros((n_out, m), np.int64)
    if at < len(stream):
        by_row = bool(head & 32)
        s = symbols(stream[at:], n_out, m, k, by_row=by_row).T
        a = s if matrix is None else (s.reshape(n_out, m // k, k) @ matrix.T).reshape(n_out, m)
    return ((a * 2.0**exponent) * step + b * scale).astype(np.float32)


def cosine(kernel: tuple[int, ...]) -> NDArray[np.int64]:
    matrix = np.ones((1, 1), np.int64)
    for n in kernel:
        axis = np.empty((n, n), np.int64)
        for t in range(n):
            for f in range(n):
                entry = math.sqrt((2 if f else 1) / n) * math.cos(math.pi * (2 * t + 1) * f / (2 * n))
                axis[t, f] = math.floor(128 * entry + 0.5)
        matrix = np.kron(matrix, axis)
    return matrix


def mirror(stream: bytes, at: int, kernel: tuple[int, ...]) -> tuple[NDArray[np.int64], int]:
    """M of a mirror basis, and where its numbers end: atom by atom, position by position."""
    kernel = tuple(n for n in kernel if n > 1)
    positions = list(itertools.product(*map(range, kernel)))
    is_square = len(kernel) == 2 and kernel[0] == kernel[1]
    halves = {1: [(n + 1) // 2 for n in kernel], -1: [n // 2 for n in kernel]}
    columns: list[list[int]] = []

    def value(place: tuple[int, ...], start: tuple[int, ...], parity: tuple[int, ...]) -> int:
        """Of the pattern that begins at `start`, in a place of the kernel."""
        found = 1
        for x, i, n, sign in zip(place, start, kernel, parity, strict=True):
            found *= 1 if x == i else sign if x == n - 1 - i else 0
        return found

    def sector(patterns: list[list[int]], *more: list[list[int]]) -> None:
        """Read the numbers of a sector, and make its atoms; then with the same numbers those of another."""
        nonlocal at
        m = len(patterns)
        numbers = np.frombuffer(stream, np.int8, m * m, at).astype(int).reshape(m, m).tolist()
        at += m * m
        for one in (patterns, *more):
            for atom in range(m):
                columns.append([sum(one[i][x] * numbers[i][atom] for i in range(m)) for x in range(len(positions))])

    for parity in itertools.product((1, -1), repeat=len(kernel)):
        sizes = [halves[sign][axis] for axis, sign in enumerate(parity)]
        starts = list(itertools.product(*map(range, sizes)))
        plain = [[value(place, start, parity) for place in positions] for start in starts]
        turned = [[value(place[::-1], start, parity) for place in positions] for start in starts]
        if not is_square:
            sector(plain)
        elif parity == (1, -1):
            sector(plain, turned)
        elif parity != (-1, 1):
            pairs = list(zip(starts, plain, turned, strict=True))
            alike = [[p if i == j else p + t for p, t in zip(a, b, strict=True)] for (i, j), a, b in pairs if i <= j]
            sector(alike)
            sector([[p - t for p, t in zip(a, b, strict=True)] for (i, j), a, b in pairs if i < j])
    return np.array(columns).T, at


def cast(values: NDArray[np.float32], dtype: str) -> bytes:
    """Bytes of float32 values in a dtype, rounded to nearest even."""
    if dtype in ("float64", "float32", "float16"):
        with np.errstate(over="ignore"):
            return values.astype(f"<f{item_bytes(dtype)}").tobytes()
    if dtype == "bfloat16":
        bits = values.view(np.uint32).astype(np.uint64)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2").tobytes()
    n_mantissa, bias, most = {"float8_e4m3fn": (3, 7, 0x7E), "float8_e5m2": (2, 15, 0x7C)}[dtype]  # 448 and infinity
    codes = range(128)  # all that are not negative; those above `most` serve to see what overflows
    table = [(c & (1 << n_mantissa) - 1, c >> n_mantissa) for c in codes]
    grid = np.array(
        [math.ldexp(f + (e > 0) * (1 << n_mantissa), max(e, 1) - bias - n_mantissa) for f, e in table], np.float64
    )
    size = np.abs(values.astype(np.float64))
    above = np.searchsorted(grid, size).clip(1, 127)
    middle = (grid[above - 1] + grid[above]) / 2
    nearest = np.where((size > middle) | ((size == middle) & (above % 2 == 0)), above, above - 1)
    return (np.minimum(nearest, most).astype(np.uint8) | np.signbit(values).astype(np.uint8) << 7).tobytes()


# ------------------------------------------------------------------------------------------- predictions

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15


def predicted(stream: bytes, shape: tuple[int, ...], dtype: str) -> NDArray[np.float32]:
    """The matrix W of a stream, float32."""
    n_bytes, at = varint(stream, 1)
    recipe = json.loads(unzstd(stream[at : at + n_bytes], phrases(1)))
    n_bytes, at = varint(stream, at + n_bytes)
    assert tuple(recipe["shape"]) == shape
    n_out, n_in, n_groups, size = shape[0], math.prod(shape[1:]), recipe["groups"], recipe["n_support"]
    c = floats(stream[at : at + n_bytes], (n_out, size), dtype, stream[0] & 1).astype(np.float64)
    if recipe["stored"]:
        stored = floats(stream[at + n_bytes :], (n_groups * size, n_in), dtype, stream[0] & 2)
    out = np.zeros((n_out, n_in))
    for j in range(n_groups):
        rows = slice(j * n_out // n_groups, (j + 1) * n_out // n_groups)
        atoms = stored[j * size : (j + 1) * size].astype(np.float64) if recipe["stored"] else group(recipe, n_in, j)
        for k in range(size):
            out[rows] += c[rows, k, None] * atoms[k]
    return out.astype(np.float32)


def floats(stream: bytes, shape: tuple[int, int], dtype: str, exact: int) -> NDArray[np.float32]:
    if not exact:
        return factored(stream, shape)
    n = 4 if dtype == "float64" else item_bytes(dtype)
    raw = join_planes(unzstd(stream), n)
    if dtype == "bfloat16":
        return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32).reshape(shape)
    return np.frombuffer(raw, f"<f{n}").astype(np.float32).reshape(shape)


def group(recipe: dict[str, Any], n_in: int, j: int) -> NDArray[np.float64]:
    """(n_support, n_in) atoms of a column group."""
    grid = recipe["parameters"].get("grid", [n_in])
    axes, channels = grid[:2], grid[2] if len(grid) == 3 else 1
    n = n_in // channels
    n_atoms = math.prod(recipe["parameters"]["coarse"]) if recipe["kind"] == "down-sampling" else n
    if recipe["kind"] == "random":
        n_atoms = 2**62
    out = np.zeros((recipe["n_support"], n_in))
    chosen = support(recipe, j, n_atoms, channels, axes)
    for channel in range(channels):
        rows = [k for k, a in enumerate(chosen) if a // n_atoms == channel]
        numbers = [chosen[k] % n_atoms for k in rows]
        if not rows:
            continue
        atoms = [[atom(recipe, axes, a, p) for p in range(n)] for a in numbers]
        if recipe["orthonormal"]:
            atoms = np.eye(n).tolist() if len(rows) == n else gram_schmidt(np.array(atoms), [a % n for a in numbers])
        out[rows, channel * n : (channel + 1) * n] = atoms
    e = math.frexp(float(np.abs(out).max()))[1]
    return np.rint(out * 2.0 ** (15 - e)) * 2.0 ** (e - 15)


def atom(recipe: dict[str, Any], axes: list[int], a: int, p: int) -> float:
    """Entry of atom a at position p."""
    kind, parameters = recipe["kind"], recipe["parameters"]
    if kind == "connections":
        return float(a == p)
    if kind == "random":
        return (stream_of((parameters["seed"], 1, a), p) >> 11) * 2.0**-52 - 1
    at = place(p, axes)
    if kind == "down-sampling":
        cells = [x * c // length for x, c, length in zip(at, parameters["coarse"], axes, strict=True)]
        return float(cells == place(a, parameters["coarse"]))
    of = place(a, axes)
    if kind == "cosine":
        return math.prod(int(cosine((length,))[x, f]) / 128 for x, f, length in zip(at, of, axes, strict=True))
    assert kind == "squared-exponential"
    with decimal.localcontext(decimal.Context(prec=40)):
        sigma = decimal.Decimal(parameters["sigma"])
        d = sum((x - y) ** 2 for x, y in zip(at, of, strict=True))
        return float((decimal.Decimal(-d) / (2 * (sigma * sigma))).exp())


def place(p: int, axes: list[int]) -> list[int]:
    return [p] if len(axes) == 1 else list(divmod(p, axes[1]))


def support(recipe: dict[str, Any], j: int, n_atoms: int, channels: int, axes: list[int]) -> list[int]:
    how, size, seed = recipe["supports"], recipe["n_support"], tuple(recipe["seed"])
    if isinstance(how, list):
        return [int(a) for a in how[j]]
    if how == "uniform":
        return least([stream_of((*seed, 0, j), a) for a in range(n_atoms * channels)], size)
    each = size // channels
    if how == "tied":
        first = least([stream_of((*seed, 0, j), a) for a in range(n_atoms)], each)
    elif how == "fresh":
        first = [(stream_of((*seed, 0), 0) >> 24) + j * each + k for k in range(each)]
    elif recipe["kind"] == "cosine":
        speeds = [
            sum((f * math.prod(axes) // n) ** 2 for f, n in zip(place(a, axes), axes, strict=True))
            for a in range(n_atoms)
        ]
        first = least(speeds, each)
    else:
        first = list(range(each))
    return [c * n_atoms + a for c in range(channels) for a in first]


def least(keys: list[int], size: int) -> list[int]:
    return sorted(sorted(range(len(keys)), key=lambda i: (keys[i], i))[:size])


def mix(z: int) -> int:
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK
    return z ^ z >> 31


def stream_of(words: tuple[int, ...], i: int) -> int:
    key = 0
    for word in words:
        key = mix((key ^ word) + GOLDEN & MASK)
    return mix(key + (i + 1) * GOLDEN & MASK)


def total(values: NDArray[np.float64]) -> float:
    """Sum from the first to the last; numpy's own goes by pairs."""
    out = 0.0
    for value in values.tolist():
        out += value
    return out


def gram_schmidt(a: NDArray[np.float64], positions: list[int]) -> NDArray[np.float64]:
    """Orthonormal rows."""
    for bound in (2.0**-80, 0.0):
        before = [total(row * row) for row in a]
        for k in range(len(a)):
            left = total(a[k] * a[k])
            if left <= bound * before[k]:
                a[k] = 0.0
                a[k, positions[k]] = 1.0
                for i in range(k):
                    a[k] -= total(a[i] * a[k]) * a[i]
                left = total(a[k] * a[k])
                if left <= bound:
                    a[k] = 0.0
                    continue
            a[k] /= math.sqrt(left)
            for i in range(k + 1, len(a)):
                a[i] -= total(a[k] * a[i]) * a[k]
    return a


# ------------------------------------------------------------------------------------------- symbols


def varint(stream: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while stream[at] & 128:
        value |= (stream[at] & 127) << shift
        shift, at = shift + 7, at + 1
    return value | stream[at] << shift, at + 1


class Bits:
    """The bit string."""

    def __init__(self, data: bytes) -> None:
        self.value, self.at, self.n_bytes = int.from_bytes(data, "little"), 0, len(data)

    def read(self, n: int) -> int:
        number = self.value >> self.at & (1 << n) - 1
        self.at += n
        return number


class Tokens:
    """The range coder and its model."""

    def __init__(self, words: list[int], *, turns: bool) -> None:
        numbers = re.findall(r"^ *\[([\d, ]+)\],", PRIOR_SOURCE.read_text(), re.MULTILINE)
        prior = [[int(n) for n in row.split(",")] for row in numbers]
        assert len(prior) == 58
        self.counts = (prior[28:] if turns else prior[:28] + prior[56:]) + [list(row) for row in prior[56:]]
        self.words, self.at, self.state = words, 0, 1
        self.frequencies: list[list[int]] = [[]] * 32
        self.touched = set(range(32))
        self.run = self.left = self.in_block = 0

    def read(self, context: int) -> int:
        if self.left == 0:
            self._next_run()
        self.left -= 1
        slot = self.state & 4095
        token = start = 0
        for f in self.frequencies[context]:
            if slot < start + f:
                break
            start += f
            token += 1
        self.state = f * (self.state >> 12) + slot - start
        if self.state < 65536 and self.at < len(self.words):
            self.state = self.state << 16 | self._word()
        self.counts[context][token] += 16
        self.touched.add(context)
        return token

    def _next_run(self) -> None:
        self._relearn()
        self.in_block += self.run
        if self.run == 0 or self.in_block >= 65536:
            assert self.state == (65536 if self.run else 1), "end of block"
            self.state = self._word() << 16
            self.state |= self._word()
            self.in_block = 0
        self.run = min(self.run + self.run // 4, 16384) if self.run else 8
        self.left = self.run

    def _relearn(self) -> None:
        for context in self.touched:
            counts = self.counts[context]
            total = sum(counts)
            share = (4080 << 32) // total
            f = [1 + (count * share >> 32) for count in counts]
            f[counts.index(max(counts))] += 4096 - sum(f)
            self.frequencies[context] = f
            if total > 524288:
                self.counts[context] = [(count + 1) // 2 for count in counts]
        self.touched.clear()

    def _word(self) -> int:
        self.at += 1
        return self.words[self.at - 1]


def magnitude(token: int, bits: Bits) -> int:
    if token < 8:
        return token
    if token == 15:
        length = bits.read(5)
        return 95 + (1 << length) + bits.read(length)
    n = token // 2 - 2
    return ((2 + token % 2) << n) + bits.read(n)


def classes(
    n: int, coded: int, flagged: int, local: int, period: int, context: int, tokens: Tokens, bits: Bits
) -> list[int | None]:
    """Class of each row or column, None for dead ones."""
    found: list[int | None] = []
    seen: list[list[int]] = [[] for _ in range(period)]
    for i in range(n):
        if flagged and tokens.read(context):
            found.append(None)
            continue
        value = 0
        if coded:
            phase = i % period
            lender = phase if seen[phase] or phase == 0 else phase - 1
            known = seen[lender][-1:] if local else seen[lender]
            forecast = (2 * sum(known) + len(known)) // (2 * len(known)) if known else 0
            z = magnitude(tokens.read(context + 1), bits)
            value = forecast + (-(z + 1) // 2 if z % 2 else z // 2)
            assert 0 <= value <= 127
            seen[phase].append(value)
        found.append(value)
    return found


def symbols(stream: bytes, n_rows: int, n_columns: int, period: int, *, by_row: bool = False) -> NDArray[np.int64]:
    """Points (n_columns, n_rows) of a symbol stream."""
    trellis, flags = stream[0] & 7, stream[0] >> 3
    by_prefix, turns = trellis == 7, trellis in (2, 3, 5)
    n_states = {0: 1, 7: 1, 1: 4, 2: 4, 3: 8, 4: 8, 5: 32, 6: 32}[trellis]
    base = int.from_bytes(stream[1:2], "little", signed=True)
    n_words, at = varint(stream, 2)
    tokens = Tokens(np.frombuffer(stream, "<u2", n_words, at).tolist(), turns=turns)
    bits = Bits(stream[at + 2 * n_words :])
    rows_of = classes(n_rows, flags & 1, flags >> 2 & 1, 0, 1, 28, tokens, bits)
    columns_of = classes(n_columns, flags >> 1 & 1, flags >> 3 & 1, flags >> 4, period, 30, tokens, bits)
    codes = [code_words(bits) for _ in range(14)] if by_prefix else []
    g0, g1 = {1: (0, 0), 4: (1, 2), 8: (2, 5), 32: (5, 29)}[n_states]
    lines, others = (rows_of, columns_of) if by_row else (columns_of, rows_of)
    points = np.zeros((len(lines), len(others)), np.int64)
    at_least = chain()
    state = 0
    for j, of_line in enumerate(lines):
        if j % -(-at_least // len(others)) == 0:
            state = 0
        for i, of_other in enumerate(others):
            if of_line is None or of_other is None:
                continue
            q = parity(state & g0)
            c, h = base + of_line + of_other, 0
            if c > 13:
                h = min((c - 12) // 2, 24)
                c = min(c - 2 * h, 13)
            token = prefix_token(codes[max(c, 0)], bits) if by_prefix else tokens.read(2 * max(c, 0) + q)
            k = magnitude(token, bits) << h
            k |= bits.read(h)
            negative = bits.read(1) if k else 0
            points[j, i] = (-1 if negative else 1) * (2 * k - q) if k else 0
            leads_on = k + 1 if turns and negative and q and c >= 3 else k
            state = (2 * state + ((leads_on & 1) ^ parity(state & g1))) % n_states
    assert (tokens.state, tokens.at) == (1, n_words), "words left over"
    assert (bits.at + 7) // 8 == bits.n_bytes, "bits left over"
    assert not (by_row and by_prefix)
    return points.T if by_row else points


def code_words(bits: Bits) -> dict[tuple[int, int], int]:
    """(length, word) -> token, of one context class."""
    lengths = [bits.read(4) for _ in range(bits.read(5))]
    words, word = {}, 0
    for length in range(1, 10):
        for token, own in enumerate(lengths):
            if own == length:
                words[length, word] = token
                word += 1
        assert word <= 1 << length, "more words than there is room"
        word *= 2
    return words


def prefix_token(codes: dict[tuple[int, int], int], bits: Bits) -> int:
    word = 0
    for length in range(1, 10):
        word = 2 * word + bits.read(1)
        if (length, word) in codes:
            return codes[length, word]
    raise AssertionError("no word of a token's")


def parity(value: int) -> int:
    return value.bit_count() % 2
