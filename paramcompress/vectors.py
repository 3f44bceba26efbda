"""All coarse vectors of a file in one stream: whole numbers, a step each, coded side by side.

A network has vectors by the hundred, of tens to hundreds of numbers each: scales, shifts, means, biases. A stream of
its own would cost each of them more for its head, its checksum and its place in the index than for half of what it
says, and the coder would learn nothing of one from the others. So vectors of equal length are columns of one matrix,
with a scale class each (`entropy`). What a vector is about, its *centre*, is taken off before: most scales and all
variances are nowhere near zero. Steps and centres are a small matrix of their own. Vectors come in turns (scale, shift,
mean, variance, the next layer's scale, ...), so step and class are forecast from the vector one *period* before.

By itself a vector is its *record*, the code of its step and its points as they are: what `layer` makes and gets back,
and what the checksum of the whole is of. Points times step is one product in float64, rounded once to float32.

Byte layout: docs/format.md, "codec `vector`".
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paramcompress import entropy
from paramcompress.entropy import DEAD, Scales
from paramcompress.jit import compiled
from paramcompress.tokens import UNIT_CLASS
from paramcompress.trellis import TRELLISES

VECTOR = "vector"
"""Codec id."""
MOST_NUMBERS = 1 << 16
"""Longer ones are for `codec`: whoever wants one vector reads all of them."""
PARTS = 8
"""Steps an octave, so that the next finer one is at most an eighth finer: 0.08 bits a number too fine in the mean."""
CODES = range(-149 * PARTS, 124 * PARTS)
"""Of steps: about the range of float32."""
_FINEST = CODES[0]
MOST_POINT = 1 << 28
"""Size that a point stays below: residue and centre, which `entropy` has doubled, then fit 32 bits."""
TRIED_PERIODS = 32
_LUCK = 0.1
"""Relative error above which a step far coarser than theory says may happen to leave no more."""
SIDE_BITS = 16
"""What step, centre and class of a vector cost, about."""
_HEAD = struct.Struct("<i")
_CRC = struct.Struct("<I")
_PLAIN = TRELLISES[1]


@dataclass(frozen=True)
class Vector:
    """step * points."""

    code: int
    """Of the step, in CODES."""
    points: NDArray[np.int32]

    @property
    def values(self) -> NDArray[np.float32]:
        with np.errstate(over="ignore"):
            return (self.points * step_of(self.code)).astype(np.float32)

    @property
    def n_bytes(self) -> int:
        """What it adds to the stream, about: too much where most numbers are alike and a few are large, of which the
        coder learns."""
        bits: float = _centre_and_bits(self.points)[1]
        return math.ceil((len(self.points) * bits + SIDE_BITS) / 8)

    @property
    def record(self) -> bytes:
        return _HEAD.pack(self.code) + self.points.astype("<i4").tobytes()

    @classmethod
    def of_record(cls, record: bytes | memoryview) -> Vector:
        """Inverse of `record`.

        Raises:
            ValueError: too short for one.
        """
        if len(record) < _HEAD.size:
            raise ValueError("a record cut short")
        return cls(_HEAD.unpack_from(record)[0], np.frombuffer(record, "<i4", offset=_HEAD.size).astype(np.int32))


def step_of(code: int) -> float:
    """2 ** octave * (1 + part / PARTS), octave and part being what `code` divided by PARTS gives and leaves."""
    octave, part = divmod(code, PARTS)
    return math.ldexp(1 + part / PARTS, octave)


def record_bytes(n_numbers: int) -> int:
    return _HEAD.size + 4 * n_numbers


def quantise(values: NDArray[np.float32], limit: float) -> Vector | None:
    """The vector of the coarsest step, or nearly that, whose relative error is at most `limit`.

    None where that would take a step or points beyond what there is, or more numbers than MOST_NUMBERS.
    """
    exact = values.astype(np.float64)
    norm = float(np.linalg.norm(exact))
    if not 0 < exact.size <= MOST_NUMBERS or not 0 < norm < math.inf or limit <= 0:
        return None
    # what a step leaves is a twelfth of its square in the mean, but for numbers that are all small beside it
    largest = norm / math.sqrt(exact.size) * (4 if limit > _LUCK else 1.5 * math.sqrt(12) * limit)
    if largest == 0:
        return None
    points = np.empty(exact.shape, np.int32)
    code = _coarsest(exact, (limit * norm) ** 2, min(math.floor(PARTS * math.log2(largest)), CODES[-1]), points)
    return None if code < CODES[0] else Vector(code, points)


@compiled
def _coarsest(values: NDArray[np.float64], allowed: float, code: int, points: NDArray[np.int32]) -> int:
    """The first step from `code` on that leaves at most that squared error, with its points; below CODES if none."""
    while code >= _FINEST:
        step = math.ldexp(1 + code % PARTS / PARTS, code // PARTS)  # step_of
        left = allowed
        for i in range(len(values)):
            point = np.rint(values[i] / step)
            if abs(point) >= MOST_POINT:
                return _FINEST - 1
            points[i] = point
            left -= (values[i] - np.float32(point * step)) ** 2
            if left < 0:
                break
        if left >= 0:
            return code
        code -= 1
    return code


def pack(records: Sequence[bytes | memoryview]) -> bytes:
    """One stream of all vectors, given by their records in the order of the file."""
    vectors = [Vector.of_record(record) for record in records]
    codes = np.array([one.code for one in vectors])
    centres = np.array([_centre_and_bits(one.points)[0] for one in vectors])
    groups = [
        np.stack([vectors[i].points - centres[i] for i in group])
        for group in _by_length([len(one.points) for one in vectors])
    ]
    classes = [_classes(group) for group in groups]

    def side(period: int) -> bytes:
        columns = np.stack([_ahead(codes, period), centres]).astype(np.int32)
        return _pack_matrix(columns, _classes(columns), 1)

    def cost(period: int) -> float:
        kinds = [(np.int64(period), np.int64(local)) for local in (0, 1)]
        bits = sum(min(entropy.distance_bits(one.columns, *kind) for kind in kinds) for one in classes)
        return float(8 * len(side(period)) + bits)

    period = min(range(1, min(TRIED_PERIODS, len(vectors)) + 1), key=cost)
    out = bytearray([period])
    matrices = [side(period)]
    matrices += [_pack_matrix(group, scales, period) for group, scales in zip(groups, classes, strict=True)]
    for packed in matrices:
        out += entropy.varint(len(packed)) + packed
    return bytes(out) + _CRC.pack(zlib.crc32(b"".join(records)))


def unpack(stream: bytes | memoryview, lengths: Sequence[int]) -> bytearray:
    """Records of vectors of these lengths, at least one, one after another.

    Raises:
        ValueError: the stream is damaged, or not of such vectors. Allocates for these lengths, whatever it says.
    """
    if len(stream) < 1 + _CRC.size or stream[0] == 0:
        raise ValueError("vectors cut short")
    period, at, end = stream[0], 1, len(stream) - _CRC.size

    def matrix(n_rows: int, n_columns: int, period: int) -> NDArray[np.int32]:
        nonlocal at
        n_bytes, at = entropy.read_varint(stream[:end], at)
        if n_bytes > end - at:
            raise ValueError("vectors cut short")
        points = entropy.unpack(stream[at : at + n_bytes], n_rows, n_columns, period=period)
        at += n_bytes
        if stream[at - n_bytes] & 7:
            raise ValueError("vectors with a trellis")
        points >>= 1
        return points

    ahead, centres = matrix(len(lengths), 2, 1)
    codes = _codes(ahead.astype(np.int64), period)
    if not CODES[0] <= codes.min() <= codes.max() <= CODES[-1]:
        raise ValueError("a step that there is none of")
    starts = np.cumsum([0, *map(record_bytes, lengths)])
    records = bytearray(int(starts[-1]))  # no copies beside it: few bytes may stand for many numbers
    for group in _by_length(lengths):
        for i, column in zip(group, matrix(lengths[group[0]], len(group), period), strict=True):
            column += centres[i]
            if column.min() <= -MOST_POINT or column.max() >= MOST_POINT:
                raise ValueError("points that are too large")
            records[starts[i] : starts[i + 1]] = Vector(int(codes[i]), column).record
    if at != end or zlib.crc32(records) != _CRC.unpack(stream[end:])[0]:
        raise ValueError("the vectors do not have the hash that their stream states")
    return records


def _by_length(lengths: Sequence[int]) -> list[list[int]]:
    """Numbers of the vectors of each length, by their first."""
    groups: dict[int, list[int]] = {}
    for i, n in enumerate(lengths):
        groups.setdefault(n, []).append(i)
    return list(groups.values())


@compiled
def _centre_and_bits(points: NDArray[np.int32]) -> tuple[int, float]:
    """The mean, rounded, where taking it off saves more bits than it costs, otherwise 0; and the bits of a number then,
    about."""
    total = np.int64(0)
    for point in points:
        total += point
    centre = np.rint(total / len(points))
    square, off = 0.0, 0.0
    for point in points:
        square += np.float64(point) ** 2
        off += (point - centre) ** 2
    plain, about = _bits(square / len(points)), _bits(off / len(points))
    if len(points) * (plain - about) > 2 * math.log2(1 + abs(centre)) + 2:
        return int(centre), about
    return 0, plain


@compiled
def _bits(square: float) -> float:
    """Of a number, rounded, of a Gaussian with that mean square."""
    return 0.5 * math.log2(2 * math.pi * math.e * (square + 1 / 12))


def _classes(columns: NDArray[np.int32]) -> Scales:
    """A class for each vector by its root mean square; DEAD where there is nothing."""
    squares = np.square(columns, dtype=np.float64).mean(1)
    loud = np.rint(np.log2(np.maximum(squares, 1e-9))).astype(np.int16) + UNIT_CLASS
    live = squares > 0
    loud = np.maximum(loud, 0)
    base = int(loud[live].min()) if live.any() else 0
    return Scales(base, np.zeros(columns.shape[1], np.int16), np.where(live, loud - base, DEAD).astype(np.int16))


def _pack_matrix(columns: NDArray[np.int32], scales: Scales, period: int) -> bytes:
    return entropy.pack(np.ascontiguousarray(2 * columns, np.int32), scales, _PLAIN, period=period)


def _ahead(codes: NDArray[np.int64], period: int) -> NDArray[np.int64]:
    """Codes less those of one period before; in the first period, less the one before."""
    found = np.diff(codes, prepend=0)
    found[period:] = codes[period:] - codes[:-period]
    return found


def _codes(ahead: NDArray[np.int64], period: int) -> NDArray[np.int64]:
    """Inverse of `_ahead`."""
    found = ahead.copy()
    for i in range(1, len(found)):
        found[i] += found[i - period] if i >= period else found[i - 1]
    return found
