"""What changed between two files of weights, plain or squeezed, layer by layer. Prints nothing.

One tensor of each file is in memory at a time.
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import torch
from torch import Tensor

from paramcompress import container, metrics, pipeline
from paramcompress.checkpoint import open_checkpoint
from paramcompress.predicted_checkpoint import dense_view
from paramcompress.records import Difference, LayerDifference, Progress

_ORDER = ("removed", "added", "reshaped", "retyped", "renamed", "changed", "same")


@dataclass(frozen=True)
class _Layer:
    """What one side says of a tensor."""

    shape: tuple[int, ...]
    dtype: str
    n_bytes: int
    """In the file; 0 where it is tied."""


@dataclass(frozen=True)
class _Side:
    """One open file, whatever its kind."""

    file_bytes: int
    layers: dict[str, _Layer]
    load: Callable[[str], Tensor]


def diff(old: str | Path, new: str | Path, *, progress: Progress | None = None) -> Difference:
    """Compare two files, each a checkpoint or a squeezed file, by the public names of their layers.

    Layers that are not in both are matched by their bits, so that one that was only renamed is said to be.

    Args:
        progress: called as progress(layer, layers done, layers in all).

    Raises:
        CheckpointError, FormatError.
    """
    started = time.monotonic()
    with _open(Path(old)) as before, _open(Path(new)) as after:
        renamed = _renamed(before, after)
        names = [(renamed.get(name, name), name) for name in after.layers]
        gone = before.layers.keys() - {was for was, _ in names}
        pairs = [*names, *((name, name) for name in before.layers if name in gone)]
        layers = []
        for done, (was, name) in enumerate(pairs, 1):
            layers.append(_compare(was, name, before, after))
            if progress is not None:
                progress(name, done, len(pairs))
        return Difference(
            old=str(old),
            new=str(new),
            old_bytes=before.file_bytes,
            new_bytes=after.file_bytes,
            layers=tuple(sorted(layers, key=_weight)),
            elapsed_s=time.monotonic() - started,
        )


@contextmanager
def _open(path: Path) -> Iterator[_Side]:
    if (file := container.squeezed_at(path)) is not None:
        with pipeline.open_file(file) as squeezed:
            report = squeezed.report()
            layers = {one.name: _Layer(one.shape, one.dtype, one.bytes_after) for one in report.layers}
            yield _Side(report.bytes_after, layers, squeezed.get_tensor)
    else:
        with dense_view(open_checkpoint(path)) as checkpoint:
            layers = {
                info.name: _Layer(info.shape, info.dtype, 0 if info.alias_of else info.n_bytes)
                for info in checkpoint.tensors
            }
            yield _Side(checkpoint.file_bytes or 0, layers, checkpoint.load)


def _renamed(before: _Side, after: _Side) -> dict[str, str]:
    """Old name by new name, of layers that have the same bits under another name.

    Of several with the same bits the one whose name is most alike. One number, or the same number everywhere, is what
    many layers have that have nothing to do with each other: then the last word of the name has to be the same, too.
    """
    gone = [name for name in before.layers if name not in after.layers]
    come = [name for name in after.layers if name not in before.layers]
    shapes = {(before.layers[name].shape, before.layers[name].dtype) for name in gone}
    shapes &= {(after.layers[name].shape, after.layers[name].dtype) for name in come}

    def key(side: _Side, name: str) -> tuple[object, ...] | None:
        layer = side.layers[name]
        if (layer.shape, layer.dtype) not in shapes:
            return None
        bits = _bits(side.load(name))
        numbers = bits.reshape(max(math.prod(layer.shape), 1), -1)
        word = name.rpartition(".")[2] if bool((numbers == numbers[:1]).all()) else ""
        return layer.shape, layer.dtype, zlib.crc32(bits.numpy().data), word

    old_by_key: dict[tuple[object, ...] | None, list[str]] = {}
    for name in gone:
        old_by_key.setdefault(key(before, name), []).append(name)
    old_by_key.pop(None, None)
    found = {}
    for name in come:
        if candidates := old_by_key.get(key(after, name)):
            found[name] = max(candidates, key=lambda old: _alike(old, name))
            candidates.remove(found[name])
    return found


def _alike(old: str, new: str) -> int:
    """Letters that two names have in common, from both ends."""
    both_ends = zip(old, new, strict=False), zip(old[::-1], new[::-1], strict=False)
    return sum(1 for pairs in both_ends for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _compare(was: str, name: str, before: _Side, after: _Side) -> LayerDifference:
    old, new = before.layers.get(was), after.layers.get(name)
    rel_change = cosine = max_abs_change = None
    if old is None or new is None:
        change = "added" if old is None else "removed"
    elif old.shape != new.shape:
        change = "reshaped"
    else:
        a, b = before.load(was), after.load(name)
        same = a.dtype == b.dtype and torch.equal(_bits(a), _bits(b))
        change = "renamed" if was != name else "retyped" if a.dtype != b.dtype else "same" if same else "changed"
        a, b = _numbers(a), _numbers(b)
        if metrics.survey(a).is_finite and metrics.survey(b).is_finite:
            found = metrics.deviation(a, b)
            rel_change = None if found.rel_error == float("inf") else found.rel_error
            cosine, max_abs_change = metrics.cosine(a, b), found.max_abs_error
    return LayerDifference(
        name=name,
        change=change,
        old_name=was if was != name else None,
        old_shape=old.shape if old else None,
        new_shape=new.shape if new else None,
        old_dtype=old.dtype if old else None,
        new_dtype=new.dtype if new else None,
        old_bytes=old.n_bytes if old else 0,
        new_bytes=new.n_bytes if new else 0,
        rel_change=rel_change,
        cosine=cosine,
        max_abs_change=max_abs_change,
    )


def _weight(layer: LayerDifference) -> tuple[int, float, int]:
    """Sorts what matters most first: what cannot be compared, then the largest change, then the most bytes."""
    change = float("inf") if layer.rel_change is None else layer.rel_change
    return _ORDER.index(layer.change), -change, -max(layer.old_bytes, layer.new_bytes)


def _bits(tensor: Tensor) -> Tensor:
    """Flat bytes."""
    return tensor.contiguous().reshape(-1).view(torch.uint8) if tensor.numel() else torch.empty(0, dtype=torch.uint8)


def _numbers(tensor: Tensor) -> Tensor:
    """Values that can be subtracted: integers and booleans as float64, complex numbers as pairs, float8 as float32."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    if not tensor.is_floating_point():
        return tensor.double()
    return tensor.float() if tensor.element_size() == 1 else tensor
