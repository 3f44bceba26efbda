"""What several test files share: tensors with known structure, points that a trellis allows, small squeezed files."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import paramcompress
from paramcompress.entropy import DEAD, Scales, unpack
from paramcompress.tokens import POINT_LIMIT
from paramcompress.trellis import TRELLISES, WITH_ZERO, Trellis, lines_per_chain


def raw(tensor: Tensor) -> bytes:
    """Bits of a tensor, C order."""
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data) if tensor.numel() else b""


def squeeze(path: Path, tensors: Mapping[str, Any], **options: Any) -> Path:
    """Squeeze a dict of tensors into `path`, and say where that is."""
    paramcompress.squeeze(dict(tensors), path, **options)
    return path


# ------------------------------------------------------------------------------------------- tensors


def gaussian(rng: np.random.Generator, *shape: int, dtype: str = "float32") -> Tensor:
    return torch.from_numpy(rng.standard_normal(shape)).to(getattr(torch, dtype))


def smooth_kernels(rng: np.random.Generator, n_out: int, n_in: int, *kernel: int) -> Tensor:
    """Kernels whose energy lies in a few smooth directions: a transform is worth its bytes."""
    blobs = rng.standard_normal((n_out, n_in, 2))
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in kernel), indexing="ij"))
    shapes = np.stack([np.exp(-(grid**2).sum(0)), grid[0]])
    noise = 0.05 * rng.standard_normal((n_out, n_in, *kernel))
    return torch.from_numpy(np.tensordot(blobs, shapes, 1) + noise).float()


def low_rank(rng: np.random.Generator, n_out: int, n_in: int, rank: int, noise: float = 0.02) -> Tensor:
    """Exact rank plus white noise of that size."""
    left, right = rng.standard_normal((n_out, rank)), rng.standard_normal((rank, n_in))
    return torch.from_numpy(left @ right / math.sqrt(rank) + noise * rng.standard_normal((n_out, n_in))).float()


def mixed_scales(rng: np.random.Generator, n_out: int, n_in: int) -> Tensor:
    """Rows and columns over many octaves, some of them all zero, and one outlier: every branch of the symbol coder."""
    rows = np.exp2(rng.integers(-9, 10, n_out)) * (rng.random(n_out) > 0.15)
    columns = np.exp2(rng.integers(-4, 5, n_in)) * (rng.random(n_in) > 0.15)
    weight = rng.standard_normal((n_out, n_in)) * rows[:, None] * columns
    weight[n_out // 2, n_in // 2] = 1e6
    return torch.from_numpy(weight).float()


# ------------------------------------------------------------------------------------------- points


EVERY_TRELLIS = {**TRELLISES, **{-n: one for n, one in WITH_ZERO.items() if n > 1}}
"""By number of states; less than 0 where both quantisers have a zero everywhere."""


def uniform_scales(n_columns: int, n_rows: int, base: int = 5) -> Scales:
    """All rows and columns live and of class 0."""
    return Scales(base, np.zeros(n_rows, np.int16), np.zeros(n_columns, np.int16))


def legal_points(
    rng: np.random.Generator, scales: Scales, trellis: Trellis, symbol: Callable[[], int]
) -> NDArray[np.int32]:
    """Points (n_columns, n_rows) of the symbols (any sign) that `symbol` gives, walked along the trellis in plain
    Python."""
    points = np.zeros((len(scales.columns), len(scales.rows)), np.int32)
    state = 0
    for j in range(points.shape[0]):
        if j % lines_per_chain(points.shape[1]) == 0:
            state = 0
        for i in range(points.shape[1]):
            if scales.columns[j] >= 0 and scales.rows[i] >= 0:
                q = int(trellis.quantiser[state])
                loud = scales.base + int(scales.rows[i]) + int(scales.columns[j]) >= trellis.loud_class
                k = symbol() or q * loud  # quantiser 1 has no zero there
                points[j, i] = 2 * k - int(np.sign(k)) * q
                state = int(trellis.next_state[state, parity_of(int(points[j, i]), q, loud)])
    return points


def parity_of(point: int, q: int, loud: bool) -> int:
    """What leads on through the trellis from quantiser q, as docs/format.md says."""
    return ((point if loud else abs(point)) + q) // 2 % 2


# ------------------------------------------------------------------------------------------- damage


def small_message(rng: np.random.Generator, trellis: Trellis) -> tuple[NDArray[np.int32], Scales, int]:
    """Points, classes, period; some 100 bytes with all there is: classes, dead rows and columns, escapes, shifts."""
    rows = np.array([0, 4, DEAD, 9, 1, 0, 30, DEAD, 2], np.int16)
    columns = np.where(rng.random(12) < 0.2, DEAD, rng.integers(0, 8, 12)).astype(np.int16)
    scales = Scales(3, rows, columns)
    return legal_points(rng, scales, trellis, lambda: int(rng.standard_cauchy() * 3)), scales, 3


def is_refused(stream: bytes, n_rows: int, n_columns: int, period: int) -> bool:
    """Whether symbols are found to be damaged; if not, points came out that an honest stream could hold."""
    try:
        points = unpack(stream, n_rows, n_columns, period=period)
    except ValueError:
        return True
    assert points.shape == (n_columns, n_rows)
    assert abs(points.astype(np.int64)).max(initial=0) < POINT_LIMIT
    return False


def bit_flips(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Every single-bit flip: its position, and the damaged bytes."""
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        yield bit, bytes(damaged)


def mutations(rng: np.random.Generator, data: bytes, n: int) -> Iterator[bytes]:
    """`n` damaged versions: bytes overwritten, cut out, doubled, or the end exchanged for noise."""
    for kind in rng.integers(0, 4, n):
        damaged = bytearray(data)
        at, until = sorted(rng.integers(0, len(data) + 1, 2))
        if kind == 0:
            for place in rng.integers(0, len(data), rng.integers(1, 5)):
                damaged[place] = rng.integers(0, 256)
        elif kind == 1:
            del damaged[at:until]
        elif kind == 2:
            damaged[at:at] = data[at:until]
        else:
            damaged[at:] = rng.bytes(len(data) - at)
        yield bytes(damaged)


def overwrite(path: Path, data: bytes) -> None:
    """Give an existing file new content without a new file for each."""
    with path.open("r+b") as file:
        file.write(data)
        file.truncate()


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
