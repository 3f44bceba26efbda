"""One tensor to its stream and back, with the promise kept. Between the codec, which promises nothing, and the
pipeline.

`encode` finds factors, decodes them again, measures against the original, and tightens until the limit holds; where
no factors are smaller than the exact bytes, or none can hold the limit, the tensor is kept exactly.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from paramcompress import codec, container, heap, metrics, predicted, vectors
from paramcompress.checkpoint import TensorInfo
from paramcompress.checkpoint.records import torch_dtype
from paramcompress.codec import EXACT, FACTORED, Layout
from paramcompress.container import Entry
from paramcompress.errors import BudgetError
from paramcompress.fit import Choice, Effort, Unfit, fit
from paramcompress.predicted import PREDICTED
from paramcompress.vectors import VECTOR, Vector

FLOATS = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
"""Dtypes that can be factored; the others are exact."""
_MOST_TRIES = 6
_SHORT = 512
"""Numbers up to which a vector is not tried in a stream of its own: its trellis saves less than the stream costs."""
_OWN_BYTES = 7
"""What a stream of its own costs in the index."""
_MAGNITUDES = (0.8, 1.25)
"""What may come back of a variance, by itself, with what normalisations add to it."""
_VARIANCES = "running_var", "moving_variance"
_ADDED = 1e-5
"""What torch's normalisations add to a variance."""
_SEEN_WEIGHTS = 1 << 21
"""Weights decoded and measured at a time."""
_PIECE_BYTES = 1 << 16
"""Of exact weights, that are packed to see what all of them would take."""
_SAMPLED, _DISTINCT = 512, 0.9
"""Weights looked at, and the share of them that are distinct in weights nobody quantised before."""


@dataclass(frozen=True)
class Setting:
    """What the plan decided for one tensor."""

    limit: float
    """On the relative error; 0 keeps every bit."""
    choice: Choice = field(default_factory=Choice)
    firm: bool = True
    """False where density or rank were set by hand and no limit was asked for: the error is then reported, not
    bounded."""
    is_variance: bool = False
    """Whether a model divides by the root of each entry: then each keeps its order of magnitude, too."""


@dataclass(frozen=True)
class Piece:
    """An encoded tensor on its way into the file."""

    entry: Entry
    stream: bytes
    note: str = ""
    found: metrics.Deviation | None = None
    """Distance of the original from what the stream decodes to, where that was looked at."""

    @property
    def n_bytes(self) -> int:
        """Of the stream; of a vector about what it adds to that of all vectors."""
        return Vector.of_record(self.stream).n_bytes if self.entry.codec == VECTOR else len(self.stream)


class UnknownCodecError(ValueError):
    """A codec id that this version cannot decode; .found."""

    def __init__(self, found: str) -> None:
        super().__init__(f"codec {found!r} is not known")
        self.found = found


def encode(
    info: TensorInfo, tensor: Tensor, setting: Setting, effort: Effort, seed: int, device: str, *, prove: bool = False
) -> Piece:
    """Stream and index entry of a tensor, its error within setting.limit where that is firm.

    Args:
        prove: measure that error on what the stream decodes to, and not on what it was made of: the same, unless coder
            or decoder are broken.

    Raises:
        BudgetError: rank or density set by hand cannot hold a limit that was set too.
    """
    note = ""
    if setting.choice != Choice() and info.dtype not in FLOATS:
        note = "no floating-point tensor, kept exactly"
    if setting.limit > 0 and info.dtype in FLOATS and tensor.numel():
        seen = metrics.survey(tensor)
        if not seen.is_finite:
            note = "holds NaN or Inf, kept exactly"
        else:
            piece = _encode_coarse(info, tensor, seen.norm, setting, effort, seed, device, prove)
            while piece is not None and setting.is_variance and not _keeps_magnitudes(tensor, piece):
                setting = replace(setting, limit=setting.limit / 4)
                piece = _encode_coarse(info, tensor, seen.norm, setting, effort, seed, device, prove)
            if piece is not None:
                return piece
    return replace(_encode_exact(info, tensor), note=note)


def decode(entry: Entry, stream: bytes | memoryview) -> Tensor:
    """The tensor of an entry from its stream: raw bytes where the home is an exact pool, a record where it is that of
    vectors.

    Raises:
        ValueError: stream and entry do not fit together, or the result has not the hash that the entry states.
    """
    dtype = torch_dtype(entry.dtype)
    if entry.codec == FACTORED:
        if entry.dtype not in FLOATS:
            raise ValueError(f"factors for a tensor of dtype {entry.dtype}")
        matrix = codec.decode_factored(stream, entry.shape).reconstruct()
        tensor = codec.to_tensor(matrix, entry.shape, dtype)
        found = crc_of(tensor)
    elif entry.codec == EXACT:
        n_bytes = math.prod(entry.shape) * dtype.itemsize
        raw = stream
        if entry.home != container.EXACT_POOLED:
            if n_bytes > container.MOST_EXPANSION * len(stream):
                raise ValueError(f"{len(stream)} bytes cannot hold {n_bytes}")
            raw = codec.decode_exact(stream, n_bytes, dtype.itemsize)
        if len(raw) != n_bytes:
            raise ValueError(f"{len(raw)} bytes, expected {n_bytes}")
        found = zlib.crc32(raw)
        if n_bytes == 0:
            tensor = torch.empty(entry.shape, dtype=dtype)
        else:
            tensor = torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(dtype).reshape(entry.shape)
    elif entry.codec == VECTOR:
        if entry.dtype not in FLOATS:
            raise ValueError(f"steps for a vector of dtype {entry.dtype}")
        return codec.to_tensor(Vector.of_record(stream).values, entry.shape, dtype)  # checked with all others
    elif entry.codec == PREDICTED:
        if entry.dtype not in FLOATS:
            raise ValueError(f"a prediction of dtype {entry.dtype}")
        tensor = codec.to_tensor(predicted.decode(stream, entry.shape, dtype).reconstruct(), entry.shape, dtype)
        found = crc_of(tensor)
    else:
        raise UnknownCodecError(entry.codec)
    if found != entry.crc:
        raise ValueError("the expanded weights do not have the hash that the file states")
    return tensor


def is_variance(name: str) -> bool:
    """Whether a tensor of that name is one that normalisations divide by the root of.

    >>> is_variance("layer1.0.bn1.running_var"), is_variance("running_mean")
    (True, False)
    """
    return name.rpartition(".")[2] in _VARIANCES


def _keeps_magnitudes(variance: Tensor, piece: Piece) -> bool:
    """Whether each entry comes back within _MAGNITUDES of itself, not only all of them together."""
    found = decode(piece.entry, piece.stream)
    ratio = (found.double() + _ADDED) / (variance.double() + _ADDED)
    return bool(((ratio > _MAGNITUDES[0]) & (ratio < _MAGNITUDES[1])).all())


def _encode_coarse(
    info: TensorInfo,
    tensor: Tensor,
    norm: float,
    setting: Setting,
    effort: Effort,
    seed: int,
    device: str,
    prove: bool,
) -> Piece | None:
    """Of the codecs with an error the one that takes fewer bytes; None where exact is smaller than either."""
    vector = _encode_vector(info, tensor, setting.limit, prove) if setting.choice == Choice() else None
    if vector is not None and tensor.numel() <= _SHORT:
        return vector
    factored = _encode_factored(info, tensor, norm, setting, effort, seed, device, prove)
    if vector is None:
        return factored
    coarse, n_bytes = vector, len(vectors.pack([vector.stream]))
    if factored is not None and factored.n_bytes + _OWN_BYTES < n_bytes:
        coarse, n_bytes = factored, factored.n_bytes
    # tables, such as positions or a ramp, take next to nothing in planes of bytes
    return coarse if not _is_near_exact(tensor, n_bytes) or n_bytes < _exact_bytes(tensor) else None


def _encode_vector(info: TensorInfo, tensor: Tensor, limit: float, prove: bool) -> Piece | None:
    """None for matrices, where the limit cannot be held so, or where exact is smaller."""
    layout, dtype = Layout.of(info.shape), torch_dtype(info.dtype)
    if min(layout.n_rows, layout.n_columns) > 1:
        return None
    values = tensor.to(torch.float32).reshape(-1).numpy()
    aim = limit
    for _ in range(_MOST_TRIES):
        vector = vectors.quantise(values, aim)
        if vector is None:
            return None
        found = metrics.deviation(tensor, codec.to_tensor(vector.values, info.shape, dtype))
        if found.rel_error <= limit:
            break
        aim *= 0.9 * limit / found.rel_error  # rounding to the dtype adds to it
    else:
        return None
    n_raw = tensor.numel() * tensor.element_size()
    if vector.n_bytes >= n_raw:
        return None
    entry = Entry(
        name=info.name,
        dtype=info.dtype,
        shape=info.shape,
        codec=VECTOR,
        dictionary="none",
        rank=0,
        density=1,
        rel_error=round_up(found.rel_error),
        crc=0,
        home=container.VECTORS,
        n_bytes=vectors.record_bytes(tensor.numel()),
    )
    return Piece(entry, vector.record, found=found if prove else None)


def _encode_factored(
    info: TensorInfo,
    tensor: Tensor,
    norm: float,
    setting: Setting,
    effort: Effort,
    seed: int,
    device: str,
    prove: bool,
) -> Piece | None:
    """None where exact is smaller, or the limit lies below what the dtype or the quantiser can do."""
    layout = Layout.of(info.shape)
    dtype = torch_dtype(info.dtype)
    floats = tensor if dtype == torch.float32 else tensor.to(torch.float32)
    weight = floats.numpy().reshape(layout.n_rows, layout.n_columns)
    if norm == 0 or not math.isfinite(norm):
        return None
    if info.dtype == "float64" and not metrics.survey(torch.from_numpy(weight)).is_finite:
        return None
    # squares have to have room in float32; a power of two changes no digit
    exponent = round(math.log2(norm / math.sqrt(tensor.numel())))
    if abs(exponent) > 120:
        return None
    scale = 2.0**-exponent if abs(exponent) > 16 else 1.0
    if scale != 1:
        weight = np.multiply(weight, np.float32(scale), dtype=np.float32)
    by_hand = setting.choice.density is not None or setting.choice.rank is not None
    allowed = (min(setting.limit, 1.0) * norm) ** 2
    aim = allowed
    for n_tried in range(_MOST_TRIES):
        try:
            factors = fit(weight, layout, aim * scale**2, effort, setting.choice, seed, device).scaled(1 / scale)
        except Unfit:
            return None
        stream = codec.encode_factored(factors)
        if prove:
            del factors  # decoding needs the room
            factors = codec.decode_factored(stream, info.shape)
            heap.make_room(weight.nbytes)
        found, crc = _seen(tensor, factors, dtype)
        if found.rel_error <= setting.limit or not setting.firm:
            break
        if by_hand and found.rel_error > 1.2 * setting.limit:
            raise BudgetError(
                f"tensor {info.name!r}: rank or density set by hand leave a relative error of {found.rel_error:.3g}, "
                f"over the limit of {setting.limit:.3g}",
                hint="raise rank or density, or relax max_rel_error for this tensor",
            )
        # what rounding to the dtype adds does not shrink with the step, so take it off instead of scaling; in coarse
        # dtypes that is something else each time, so take off ever more
        aim = min(aim - 1.05 * 2**n_tried * ((found.rel_error * norm) ** 2 - allowed), (1 - 0.001 * 4**n_tried) * aim)
        if aim <= 1e-3 * allowed:
            return None
    else:
        return None
    piece = _factored_piece(info, tensor, stream, factors, crc, found.rel_error)
    return piece and Piece(piece.entry, piece.stream, _unheeded(setting.choice, factors), found if prove else None)


def piece_of(info: TensorInfo, tensor: Tensor, factors: codec.Factors) -> Piece | None:
    """Stream and index entry of factors that were found elsewhere; None where exact bytes are fewer.

    The error stated is that against `tensor`, the original.
    """
    found, crc = _seen(tensor, factors, torch_dtype(info.dtype))
    return _factored_piece(info, tensor, codec.encode_factored(factors), factors, crc, found.rel_error)


def _seen(tensor: Tensor, factors: codec.Factors, dtype: torch.dtype) -> tuple[metrics.Deviation, int]:
    """Distance of a tensor from what factors come to in dtype, and the CRC-32 of that; of a large one some rows at a
    time, since all of it would take as much memory as the tensor."""
    if tensor.numel() <= _SEEN_WEIGHTS and dtype == torch.float32:
        matrix = factors.reconstruct()
        return metrics.deviation_of_arrays(tensor.numpy(), matrix), zlib.crc32(matrix)  # type: ignore[arg-type]
    if tensor.numel() <= _SEEN_WEIGHTS or dtype == torch.float64:
        decoded = codec.to_tensor(factors.reconstruct(), tuple(tensor.shape), dtype)
        return metrics.deviation(tensor, decoded), crc_of(decoded)
    n_rows, n_columns = factors.layout.n_rows, factors.layout.n_columns
    rows = tensor.reshape(n_rows, n_columns)
    n_at_once = max(1, _SEEN_WEIGHTS // n_columns)
    crc = 0

    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        nonlocal crc
        for first in range(0, n_rows, n_at_once):
            stop = min(first + n_at_once, n_rows)
            decoded = codec.to_tensor(factors.reconstruct(first, stop), (stop - first, n_columns), dtype)
            crc = crc_of(decoded, crc)
            yield rows[first:stop], decoded

    return metrics.deviation_of_parts(pairs()), crc


def _may_be_smaller_exact(tensor: Tensor, n_bytes: int) -> bool:
    """Whether weights may take fewer bytes exact than that, by two samples: weights that were quantised or pruned
    before have many equal ones, which is seen at once, and what they take exact is seen in a piece of them."""
    sample = tensor.reshape(-1)[:: max(1, tensor.numel() // _SAMPLED)].float().numpy()
    return len(np.unique(sample)) < _DISTINCT * len(sample) and _is_near_exact(tensor, n_bytes)


def _is_near_exact(tensor: Tensor, n_bytes: int) -> bool:
    """Whether a tensor takes less than half as much again exact, by a piece of it."""
    raw = _raw(tensor)
    piece = raw[len(raw) // 2 // 8 * 8 :][:_PIECE_BYTES]
    return len(codec.encode_exact(piece, tensor.element_size())) / len(piece) * len(raw) < 1.5 * n_bytes


def _exact_bytes(tensor: Tensor) -> int:
    """Of a stream of its own."""
    return len(codec.encode_exact(_raw(tensor), tensor.element_size()))


def restated(entry: Entry, rel_error: float) -> Entry:
    """`entry` with another relative error, rounded up as the index states it."""
    return replace(entry, rel_error=round_up(rel_error))


def _factored_piece(
    info: TensorInfo, tensor: Tensor, stream: bytes, factors: codec.Factors, crc: int, rel_error: float
) -> Piece | None:
    """crc: of the decoded tensor."""
    n_raw = tensor.numel() * tensor.element_size()
    if len(stream) > 0.7 * n_raw or _may_be_smaller_exact(tensor, len(stream)):
        exact = min(n_raw, _exact_bytes(tensor))
        if exact <= len(stream):
            return None
    density = factors.n_stored / tensor.numel()
    return coded(info, stream, FACTORED, factors.dictionary, factors.rank, density, rel_error, crc)


def coded(
    info: TensorInfo,
    stream: bytes,
    codec_id: str,
    dictionary: str,
    rank: int,
    density: float,
    rel_error: float,
    crc: int,
) -> Piece:
    """A stream that is not exact bytes, with its index entry: in a part of its own, or pooled with others.

    Args:
        density, rel_error: as measured; the index states them rounded up.
        crc: of the decoded tensor.
    """
    entry = Entry(
        name=info.name,
        dtype=info.dtype,
        shape=info.shape,
        codec=codec_id,
        dictionary=dictionary,
        rank=rank,
        density=round_up(density),
        rel_error=round_up(rel_error),
        crc=crc,
        home=container.OWN if len(stream) >= container.OWN_PART_BYTES else container.POOLED,
        n_bytes=len(stream),
    )
    return Piece(entry, stream)


def _unheeded(choice: Choice, factors: codec.Factors) -> str:
    """What was asked for and could not be."""
    asked_for_low_rank = choice.dictionary is not None and choice.dictionary.startswith("lowrank")
    if asked_for_low_rank and factors.rank == 0 and choice.rank is None:
        return f"dictionary {choice.dictionary} was asked for, no direction of it pays"
    if choice.rank is not None and factors.rank < choice.rank:
        return f"rank {choice.rank} was asked for, its shape has room for {factors.rank}"
    if choice.dictionary is not None and factors.transform == "none" and choice.dictionary[-4:] not in ("none", "rank"):
        return f"dictionary {choice.dictionary} was asked for, it has no kernels"
    return ""


def _encode_exact(info: TensorInfo, tensor: Tensor) -> Piece:
    raw = _raw(tensor)
    small = len(raw) < container.SMALL_EXACT_BYTES
    stream = bytes(raw) if small else codec.encode_exact(raw, tensor.element_size())
    entry = Entry(
        name=info.name,
        dtype=info.dtype,
        shape=info.shape,
        codec=EXACT,
        dictionary="none",
        rank=0,
        density=1,
        rel_error=0,
        crc=zlib.crc32(raw),
        home=container.EXACT_POOLED if small else container.OWN,
        n_bytes=len(stream),
    )
    return Piece(entry, stream)


def round_up(value: float) -> float:
    """The least number of three significant digits that is not below value.

    >>> round_up(0.0123401), round_up(1.0), round_up(0.0)
    (0.0124, 1.0, 0.0)
    """
    if value == 0:
        return 0.0
    digits = 2 - math.floor(math.log10(value))
    rounded = round(value, digits)
    return rounded if rounded >= value else round(rounded + 10.0**-digits, digits)


def _raw(tensor: Tensor) -> memoryview:
    """Little-endian bytes of a contiguous tensor."""
    if tensor.numel() == 0:
        return memoryview(b"")
    return memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


def crc_of(tensor: Tensor, before: int = 0) -> int:
    """CRC-32 of the little-endian bytes of a tensor, `before` being that of what comes before them."""
    if tensor.dtype == torch.float32 and tensor.is_contiguous():  # each call of torch takes a few microseconds
        return zlib.crc32(tensor.numpy(), before)  # type: ignore[arg-type]
    return zlib.crc32(_raw(tensor), before)
