"""One tensor to its bytes and back, in one of two codecs. Chooses nothing and opens no file.

`exact`     byte planes, one zstd frame: any dtype, every bit.
`factored`  W = scale * C D^T + step * S Q^T, all four matrices in integers; what `fit` found, packed by `entropy`.

A weight tensor is read as a matrix by its shape alone (`Layout`): one row is one feature.

Exactness. C, D, S and Q are integers and atoms are weighted by powers of two, so that each partial sum of a
product, in float64, is an exact integer times a power of two, whatever the order. What follows is element-wise and
in a fixed order: each product times its scale, the two added (all in float64), one rounding to float32, one to the
tensor's dtype. Hence the same bits on every machine and with any number of threads. `Factors.is_exact` is the
condition, checked before anything is written.

Byte layout: docs/format.md.  Shapes: W (n_out, n_in * K), D (n_in * K, r), C (n_out, r), S (n_out, n_in * K), Q (K, K).
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
import zstandard
from numpy.typing import NDArray
from torch import Tensor

from paramcompress import entropy
from paramcompress.dictionaries import mirror
from paramcompress.dictionaries.cosine import cosine_basis
from paramcompress.entropy import Scales
from paramcompress.jit import compiled
from paramcompress.tokens import peak
from paramcompress.trellis import TRELLISES, Trellis

EXACT, FACTORED = "exact", "factored"
TRANSFORMS = ("none", "patch", "cosine", "mirror")
"""By number in the stream."""
_LOW_RANK, _BY_ROW = 16, 32
"""Flags of a stream's first byte: there is a low-rank part; the points of S run along rows."""
BASIS_SCALE = 128
"""Integer that stands for 1 in a basis that is written."""
COSINE_SCALE = 128
MOST_KERNEL = 256
"""Largest K that a transform is offered for: its matrix is multiplied with every kernel."""
MOST_KERNEL_AXES = 8
"""Axes of a kernel that a transform is offered for: the cosine basis of 9 does not fit 64 bits."""
LARGEST_KERNEL_AXIS = 16
"""The last of three axes is a kernel up to this length; above, the tensor is a stack of matrices."""
_TILE_ROWS, _TILE_COLUMNS = 128, 16
"""Rows and columns reconstructed at a time; whole kernels, so that the columns may be more."""
_ZSTD_LEVEL = 9


@dataclass(frozen=True)
class Layout:
    """A tensor read as a matrix of features.

    >>> Layout.of((64, 3, 5, 5))
    Layout(n_rows=64, n_columns=75, kernel=(5, 5))
    >>> Layout.of((1, 17, 128)), Layout.of((7,))
    (Layout(n_rows=17, n_columns=128, kernel=()), Layout(n_rows=7, n_columns=1, kernel=()))
    """

    n_rows: int
    n_columns: int
    kernel: tuple[int, ...]
    """Kernel axes, last in each row; empty where there are none."""

    @classmethod
    def of(cls, shape: tuple[int, ...]) -> Layout:
        """Reading of `shape`; part of the format. Leading axes of size 1 go while more than two axes are left."""
        while len(shape) > 2 and shape[0] == 1:
            shape = shape[1:]
        if len(shape) < 2:
            return cls(math.prod(shape), 1, ())
        if len(shape) == 3 and shape[2] > LARGEST_KERNEL_AXIS:
            return cls(shape[0] * shape[1], shape[2], ())
        return cls(shape[0], math.prod(shape[1:]), tuple(shape[2:]))

    @property
    def kernel_size(self) -> int:
        """K, the weights of one kernel; 1 where there are no kernel axes."""
        return math.prod(self.kernel)

    @property
    def takes_transform(self) -> bool:
        """Whether it may have one other than `none`."""
        return (
            len(self.kernel) <= MOST_KERNEL_AXES
            and 1 < self.kernel_size <= MOST_KERNEL
            and self.n_columns % self.kernel_size == 0
        )

    def basis_bytes(self, transform: str) -> int:
        """What is written of the basis of a transform."""
        if transform == "mirror":
            return mirror.n_numbers(self.kernel)
        return self.kernel_size**2 if transform == "patch" else 0


@dataclass(frozen=True)
class Symbols:
    """A matrix of lattice points with what the entropy coder needs to know of it."""

    points: NDArray[np.int32]
    """(n_columns, n_rows): transposed, as the trellis runs where it does not run along rows."""
    scales: Scales | None = None
    """None in what was decoded: the decoder needs them no longer."""
    trellis: Trellis = TRELLISES[1]
    may_prefix: bool = False
    """Whether speed may cost some bytes."""
    by_row: bool = False
    """Whether the trellis ran along the rows."""

    @property
    def in_order(self) -> tuple[NDArray[np.int32], Scales]:
        """Points and scales of the matrix or, if that is how the trellis ran, of the transposed one."""
        assert self.scales is not None
        return (np.ascontiguousarray(self.points.T), self.scales.turned) if self.by_row else (self.points, self.scales)

    def pack(self, period: int = 1) -> bytes:
        assert self.scales is not None
        how = {"by_row": self.by_row, "may_prefix": self.may_prefix}
        return entropy.pack(self.points, self.scales, self.trellis, period=period, **how)


@dataclass(frozen=True)
class LowRank:
    """C D^T. What atom a adds to the weight: scale * 2 ** exponents[a] * C[:, a] D[:, a]^T."""

    coefficients: Symbols
    """points (r, n_out)."""
    atoms: Symbols
    """points (r, n_in * K)."""
    exponents: NDArray[np.int8]
    """(r,)."""
    scale: float
    """Units of the weight; representable in float32."""

    @property
    def weighted_coefficients(self) -> NDArray[np.float64]:
        """(r, n_out) coefficients times the power of two of their atom."""
        return self.coefficients.points.astype(np.float64) * np.exp2(self.exponents.astype(np.float64))[:, None]

    def part(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.float32]:
        """(rows, columns) of the product, to float32's precision; for estimates."""
        left = self.weighted_coefficients[:, rows].astype(np.float32) * np.float32(self.scale)
        right = self.atoms.points[:, columns].astype(np.float32)
        return (torch.from_numpy(left).T @ torch.from_numpy(right)).numpy()  # numpy would start threads of its own

    def of_rows(self, rows: NDArray[np.int64]) -> LowRank:
        """The same of some rows of the weight, to be multiplied out and not to be coded."""
        return replace(self, coefficients=Symbols(self.coefficients.points[:, rows]))

    def product(self) -> NDArray[np.float32]:
        """(n_out, n_in * K): scale * C D^T."""
        out = np.empty((self.coefficients.points.shape[1], self.atoms.points.shape[1]), np.float32)
        nothing = np.zeros((0, 0), np.int32), 0.0, np.zeros((0, 0))
        _reconstruct(*nothing, self.weighted_coefficients, self.atoms.points, self.scale, 1, 0, out)
        return out


@dataclass(frozen=True)
class Factors:
    """All numbers of a factored layer."""

    layout: Layout
    step: float
    """Units of the weight; representable in float32."""
    transform: str
    """A name of TRANSFORMS."""
    basis: NDArray[np.int8] | None
    """In units of 1 / BASIS_SCALE: Q (K, K), where the transform is `patch`; for `mirror` its numbers."""
    low_rank: LowRank | None
    stored: Symbols | None
    """S; None where all of it is zero."""

    @property
    def rank(self) -> int:
        return 0 if self.low_rank is None else len(self.low_rank.exponents)

    def scaled(self, factor: float) -> Factors:
        """The same for a weight `factor` times as large; factor is a power of two."""
        if factor == 1:
            return self
        low_rank = self.low_rank and replace(self.low_rank, scale=self.low_rank.scale * factor)
        return replace(self, step=self.step * factor, low_rank=low_rank)

    @property
    def n_stored(self) -> int:
        return 0 if self.stored is None else int(np.count_nonzero(self.stored.points))

    @property
    def dictionary(self) -> str:
        """Name as `--set dictionary=` takes it."""
        parts = ["lowrank"] if self.low_rank is not None else []
        if self.transform != "none":
            parts.append(self.transform)
        return "+".join(parts) or "none"

    @property
    def is_exact(self) -> bool:
        """Whether every partial sum of the reconstruction stays below 2**53 units of its lowest power of two."""
        if self.stored is not None:
            largest = float(peak(self.stored.points))
            basis = self.basis_matrix
            if basis is not None:
                largest *= float(np.abs(basis[0]).sum(1).max())
            if largest >= 2.0**53:
                return False
        if self.low_rank is not None:
            one = self.low_rank
            return bool(_largest_sum(one.coefficients.points, one.atoms.points, one.exponents) < 2.0**53)
        return True

    @property
    def basis_matrix(self) -> tuple[NDArray[np.float64], int] | None:
        """Integers M (K, K) and the exponent e of Q = M * 2**e; None for no transform."""
        if self.transform == "none":
            return None
        if self.transform == "cosine":
            return _cosine_integers(self.layout.kernel)
        assert self.basis is not None
        is_whole = self.transform == "patch"
        integers = self.basis.astype(np.float64) if is_whole else mirror.expanded(self.basis, self.layout.kernel)
        return integers, -(BASIS_SCALE.bit_length() - 1)

    def reconstruct(self, first: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """W_hat (n_out, n_in * K) in float32; or rows `first` to `stop` of it."""
        stop = self.layout.n_rows if stop is None else stop
        out = np.empty((stop - first, self.layout.n_columns), np.float32)
        nothing = np.zeros((0, 0))
        points = np.zeros((0, 0), np.int32) if self.stored is None else self.stored.points
        matrix = nothing
        basis = self.basis_matrix
        if basis is not None:
            integers, exponent = basis
            matrix = integers * 2.0**exponent
        coefficients, atoms, scale = nothing, np.zeros((0, 0), np.int32), 0.0
        if self.low_rank is not None:
            coefficients, atoms, scale = (
                self.low_rank.weighted_coefficients,
                self.low_rank.atoms.points,
                self.low_rank.scale,
            )
        _reconstruct(points, self.step, matrix, coefficients, atoms, scale, self.layout.kernel_size, first, out)
        return out


@compiled
def _largest_sum(coefficients, atoms, exponents):
    """Bound on the partial sums of C D^T, in units of the lowest power of two that weights an atom."""
    found = 0.0
    least = exponents.min()
    for a in range(len(exponents)):
        weight = 2.0 ** np.float64(np.int64(exponents[a]) - least)
        found += weight * peak(coefficients[a : a + 1]) * peak(atoms[a : a + 1])
    return found


@lru_cache(maxsize=16)
def _cosine_integers(kernel: tuple[int, ...]) -> tuple[NDArray[np.float64], int]:
    """`Factors.basis_matrix` of the cosine transform, the same for all layers with such kernels."""
    integers = cosine_basis(kernel, COSINE_SCALE).numpy().astype(np.float64)
    return integers, -(COSINE_SCALE.bit_length() - 1) * len(kernel)


@compiled
def _reconstruct(points, step, matrix, coefficients, atoms, scale, period, top, out):
    """out = float32(step * S Q^T + scale * C D^T) from row `top` on; either part may be missing (no rows), Q too.

    matrix and coefficients are integers times powers of two, so their sums are exact in any order; the products
    with step and scale and the one addition each round once, in float64. Goes by tiles of rows and columns, which stay
    in the nearest cache while they are turned from columns to rows.
    """
    n_rows, n_columns = out.shape
    period = period if len(matrix) else 1
    width = period * max(1, _TILE_COLUMNS // period)
    tile = np.empty((width, _TILE_ROWS + 8), np.float32)  # 8 more, lest the columns compete for the same cache lines
    kernel = np.empty((period, _TILE_ROWS))
    sums = np.empty(_TILE_ROWS)
    low = np.empty(_TILE_ROWS)
    factors = np.empty(len(atoms))
    for first_row in range(np.uintp(0), np.uintp(n_rows), np.uintp(_TILE_ROWS)):
        n_here = min(np.uintp(_TILE_ROWS), np.uintp(n_rows) - first_row)
        row = np.uintp(top) + first_row
        # LLVM makes vector instructions for arrays without gaps only
        block = coefficients[:, row : row + n_here].copy()
        for first in range(np.uintp(0), np.uintp(n_columns), np.uintp(width)):
            n_wide = min(np.uintp(width), np.uintp(n_columns) - first)
            for at in range(n_wide):
                j = first + at
                if len(points) > 0 and len(matrix) == 0 and len(atoms) == 0:
                    for i in range(n_here):
                        tile[at, i] = np.float64(points[j, row + i]) * step
                    continue
                if len(points) == 0:
                    for i in range(n_here):
                        sums[i] = 0.0
                elif len(matrix):
                    place = at % np.uintp(period)
                    if place == 0:
                        for k in range(np.uintp(period)):
                            for i in range(n_here):
                                kernel[k, i] = points[j + k, row + i]
                    combine(sums, matrix[place], kernel, n_here)
                else:
                    for i in range(n_here):
                        sums[i] = points[j, row + i]
                if len(atoms):
                    for k in range(np.uintp(len(atoms))):
                        factors[k] = atoms[k, j]
                    combine(low, factors, block, n_here)
                    for i in range(n_here):
                        tile[at, i] = sums[i] * step + low[i] * scale
                else:
                    for i in range(n_here):
                        tile[at, i] = sums[i] * step
            for i in range(n_here):
                for at in range(n_wide):
                    out[first_row + i, first + at] = tile[at, i]


@compiled
def combine(sums, factors, terms, n):
    """sums = factors @ terms over the first n columns, four rows of terms at a time."""
    for i in range(n):
        sums[i] = 0.0
    one, two, three, four = np.uintp(1), np.uintp(2), np.uintp(3), np.uintp(4)
    k, end = np.uintp(0), np.uintp(len(factors))
    while k + four <= end:
        a, b, c, d = factors[k], factors[k + one], factors[k + two], factors[k + three]
        for i in range(n):
            sums[i] += a * terms[k, i] + b * terms[k + one, i] + c * terms[k + two, i] + d * terms[k + three, i]
        k += four
    while k < end:
        a = factors[k]
        for i in range(n):
            sums[i] += a * terms[k, i]
        k += one


# ------------------------------------------------------------------------------------------- factored


def encode_factored(factors: Factors) -> bytes:
    """Stream of a factored layer."""
    by_row = factors.stored is not None and factors.stored.by_row
    head = TRANSFORMS.index(factors.transform) | _LOW_RANK * (factors.low_rank is not None) | _BY_ROW * by_row
    out = bytearray(struct.pack("<Bf", head, factors.step))
    if factors.basis is not None:
        out += factors.basis.tobytes()
    if factors.low_rank is not None:
        out += struct.pack("<f", factors.low_rank.scale)
        out += entropy.varint(factors.rank) + factors.low_rank.exponents.tobytes()
        for symbols in (factors.low_rank.coefficients, factors.low_rank.atoms):
            packed = symbols.pack()
            out += entropy.varint(len(packed)) + packed
    if factors.stored is not None:
        out += factors.stored.pack(factors.layout.kernel_size)
    return bytes(out)


def decode_factored(stream: bytes | memoryview, shape: tuple[int, ...]) -> Factors:
    """Factors of a layer of that shape; rank and sizes are checked before anything is allocated.

    Raises:
        ValueError: the stream is damaged, or of another shape. Of a larger shape not always: what the stream
            has not may be read as zeros, and the tensor's hash finds out.
    """
    layout = Layout.of(shape)
    stream = memoryview(stream)  # slices of bytes would be copies
    if len(stream) < 5:
        raise ValueError("stream too short")
    head, step = struct.unpack_from("<Bf", stream)
    at = 5
    transform = _transform_of(head, layout)
    if not math.isfinite(step):
        raise ValueError(f"a step of {step}")
    basis = None
    if n := layout.basis_bytes(transform):
        if len(stream) < at + n:
            raise ValueError("stream cut short")
        basis = np.frombuffer(stream, np.int8, n, at)
        basis = basis.reshape(layout.kernel_size, -1) if transform == "patch" else basis
        at += n
    low_rank = None
    if head & _LOW_RANK:
        if len(stream) < at + 4:
            raise ValueError("stream cut short")
        (scale,) = struct.unpack_from("<f", stream, at)
        rank, at = entropy.read_varint(stream, at + 4)
        if not 1 <= rank <= min(layout.n_rows, layout.n_columns) or not math.isfinite(scale) or len(stream) < at + rank:
            raise ValueError(f"rank {rank} in a layer of shape {shape}")
        exponents = np.frombuffer(stream, np.int8, rank, at)
        at += rank
        matrices = []
        for n in (layout.n_rows, layout.n_columns):
            n_bytes, at = entropy.read_varint(stream, at)
            if n_bytes > len(stream) - at:
                raise ValueError("stream cut short")
            matrices.append(Symbols(entropy.unpack(stream[at : at + n_bytes], n, rank)))
            at += n_bytes
        low_rank = LowRank(matrices[0], matrices[1], exponents, scale)
    stored = None
    if at < len(stream):
        n_rows, n_columns, period, by_row = layout.n_rows, layout.n_columns, layout.kernel_size, bool(head & _BY_ROW)
        stored = Symbols(entropy.unpack(stream[at:], n_rows, n_columns, period=period, by_row=by_row), by_row=by_row)
    elif head & _BY_ROW:
        raise ValueError("an order of points that are not there")
    return Factors(layout, step, transform, basis, low_rank, stored)


def _transform_of(head: int, layout: Layout) -> str:
    """The transform that the first byte of a stream names; ValueError for one that such a layer cannot have."""
    if head & 15 >= len(TRANSFORMS) or head >> 6:
        raise ValueError("unknown kind of factors")
    transform = TRANSFORMS[head & 15]
    if transform != "none" and not layout.takes_transform:
        raise ValueError(f"{transform} dictionary for a layer without kernels")
    return transform


def section_bytes(stream: bytes | memoryview, shape: tuple[int, ...]) -> dict[str, int]:
    """Where the bytes of a factored stream go: `dictionary` (Q, D and what scales them), `coefficients` (C), `stored`
    (S), and `head`. They add up to the stream; nothing is decoded.

    Raises:
        ValueError, IndexError: the stream is damaged; not always, where it is.
    """
    layout = Layout.of(shape)
    head = stream[0]
    found = {"dictionary": layout.basis_bytes(_transform_of(head, layout)), "coefficients": 0, "stored": 0, "head": 5}
    at = 5 + found["dictionary"]
    if head & _LOW_RANK:
        rank, after = entropy.read_varint(stream, at + 4)
        found["dictionary"] += after + rank - at
        at = after + rank
        for name in ("coefficients", "dictionary"):
            n_bytes, after = entropy.read_varint(stream, at)
            found[name] += after + n_bytes - at
            at = after + n_bytes
    if at > len(stream):
        raise ValueError("stream cut short")
    found["stored"] = len(stream) - at
    return found


def to_tensor(matrix: NDArray[np.float32], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Tensor of a reconstructed matrix: float32, then one rounding to dtype.

    What float8_e4m3fn cannot hold becomes its largest value, +-448: torch's own conversion has not always done so.
    """
    tensor = torch.from_numpy(matrix.reshape(shape))
    if dtype == torch.float32:
        return tensor
    return (tensor.clamp(-448, 448) if dtype == torch.float8_e4m3fn else tensor).to(dtype)


# ------------------------------------------------------------------------------------------- exact


def encode_exact(data: bytes | bytearray | memoryview, item_bytes: int) -> bytes:
    """Byte planes of little-endian items, highest byte first, in one zstd frame; the frame carries its length."""
    planes = np.frombuffer(data, np.uint8).reshape(-1, item_bytes).T[::-1]
    return zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_checksum=False).compress(np.ascontiguousarray(planes).data)


def decode_exact(stream: bytes | memoryview, n_bytes: int, item_bytes: int) -> bytes:
    """Inverse of `encode_exact`.

    Raises:
        ValueError: not such a frame, or not of n_bytes; nothing larger is allocated.
    """
    try:
        found = zstandard.get_frame_parameters(stream).content_size
        if found != n_bytes:
            raise ValueError(f"{found} bytes, expected {n_bytes}")
        planes = zstandard.ZstdDecompressor().decompress(stream, allow_extra_data=False) if n_bytes else b""
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error
    if len(planes) != n_bytes:
        raise ValueError(f"{len(planes)} bytes, expected {n_bytes}")
    return np.frombuffer(planes, np.uint8).reshape(item_bytes, -1)[::-1].T.tobytes()
