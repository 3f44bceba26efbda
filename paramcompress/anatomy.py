"""What a squeezed file is made of: its bytes by what they hold, and the spectra of its largest matrices."""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch
from torch import Tensor

from paramcompress import plan, predicted
from paramcompress.codec import EXACT, Layout
from paramcompress.container import Entry, Reader
from paramcompress.dictionaries.lowrank import truncated_svd
from paramcompress.errors import FormatError
from paramcompress.layer import FLOATS
from paramcompress.pipeline import SqueezedFile, open_file
from paramcompress.records import Anatomy, Spectrum
from paramcompress.vectors import VECTOR

SPECTRA = 6
"""Matrices whose spectrum is computed."""
VALUES = 32
"""Singular values of each."""
LARGEST = 1 << 25
"""Weights of a matrix up to which that is done: seconds on one core, not minutes."""
_WORDS = {"dictionary": "dictionary", "coefficients": "coefficients", "stored": "stored weights"}
_TOGETHER = {VECTOR: "vectors", EXACT: "exact tensors"}
_REST = "index, names, checksums"


def examine(path: str | os.PathLike[str]) -> Anatomy:
    """Take a squeezed file apart; each matrix that has a spectrum is decoded once, alone.

    Raises:
        FormatError: not a squeezed file, or damaged. CheckpointError: cannot be opened.
    """
    sections = _sections(Path(path))
    with open_file(path) as file:
        return Anatomy(sections, tuple(_spectrum(file, entry) for entry in _largest(file)))


def _sections(path: Path) -> dict[str, int]:
    """Bytes by what they hold, largest first; what belongs to no tensor is the rest of the file."""
    found = dict.fromkeys([*_WORDS.values(), *_TOGETHER.values()], 0)
    with Reader(path) as reader:
        for entry in reader.index.entries:
            if entry.same_as is not None:
                continue
            if entry.codec in _TOGETHER:
                found[_TOGETHER[entry.codec]] += reader.part_bytes(entry)
                continue
            try:
                sections = predicted.section_bytes_of(entry.codec, reader.stream(entry), entry.shape)
            except (ValueError, IndexError) as error:
                raise FormatError(path, f"damaged: {error}", tensor=entry.name) from error
            for key, word in _WORDS.items():
                found[word] += sections[key]
        found[_REST] = reader.file_bytes - sum(found.values())
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _largest(file: SqueezedFile) -> list[Entry]:
    """Matrices whose spectrum is worth its time."""
    matrices = [
        entry
        for entry in file.index.entries
        if plan.is_matrix(entry.shape)
        and entry.dtype in FLOATS
        and entry.same_as is None
        and 0 < math.prod(entry.shape) <= LARGEST
    ]
    return sorted(matrices, key=lambda entry: -math.prod(entry.shape))[:SPECTRA]


def _spectrum(file: SqueezedFile, entry: Entry) -> Spectrum:
    layout = Layout.of(entry.shape)
    n_all = min(layout.n_rows, layout.n_columns)
    matrix = file.get_tensor(entry.name).float().reshape(layout.n_rows, layout.n_columns)
    return Spectrum(entry.name, _singular_values(matrix, min(VALUES, n_all)), n_all, entry.rank)


def _singular_values(matrix: Tensor, n: int) -> tuple[float, ...]:
    """The n largest, relative to the Frobenius norm; none where there are no numbers to speak of."""
    peak = float(matrix.abs().max())
    if peak == 0 or not math.isfinite(peak):
        return ()
    matrix = matrix / peak  # squares have room
    values = truncated_svd(matrix, n, generator=torch.Generator().manual_seed(0))[2] / matrix.norm()
    return tuple(float(value) for value in values)
