"""Why one layer of a squeezed file has its size: every choice there was, coded in earnest, and what more error would
save.

Prices are real only on the original weights. Without these they are taken on a stand-in, the decoded weights with the
error that the layer has put back as noise. That has the energy of the original, but spread evenly; so all prices are
scaled by one factor, which makes that of the choice in the file what it really takes, or for a vector its share of what
all vectors take.
"""

from __future__ import annotations

import difflib
import os
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from paramcompress import dictionaries, layer, pipeline, predicted
from paramcompress.checkpoint import TensorInfo, open_checkpoint
from paramcompress.codec import EXACT, FACTORED, Layout
from paramcompress.container import Entry, Reader
from paramcompress.errors import ConfigError, FormatError
from paramcompress.fit import EFFORTS, Choice, Effort
from paramcompress.layer import Piece, Setting
from paramcompress.predicted import PREDICTED
from paramcompress.predicted_checkpoint import dense_view
from paramcompress.records import Explanation, PricedChoice, Progress, RelaxedLimit
from paramcompress.threads import one_torch_thread
from paramcompress.vectors import VECTOR, Vector

RELAXED = (1.25, 1.5, 2.0)
"""Times the error that a layer has."""
FROM_EXACT = (0.001, 0.01, 0.03)
"""Errors tried for a layer that has none."""
_SEED = 0


def explain(
    path: str | os.PathLike[str],
    name: str,
    original: str | os.PathLike[str] | None = None,
    *,
    progress: Progress | None = None,
) -> Explanation:
    """Price the choices that there were for the layer of that name, at the effort that the file was squeezed with.

    Args:
        path: squeezed file.
        original: the checkpoint it came from; without it a stand-in for the weights is priced.
        progress: called as progress(choice, choices done, choices in all).

    Raises:
        ConfigError: no such layer, or the original has none of that shape and dtype.
        FormatError, CheckpointError: a file that cannot be read.
    """
    started = time.monotonic()
    report = pipeline.inspect(path)
    found = {one.name: one for one in report.layers}
    if name not in found:
        near = difflib.get_close_matches(name, found, n=3)
        hint = f"did you mean {', '.join(near)}?" if near else "inspect -v lists the names"
        raise ConfigError(f"no layer {name!r} in {path}", hint=hint)
    stored = found[name].tied_to or name
    with pipeline.open_file(path) as file:
        entry = next(one for one in file.index.entries if one.name == stored)
        effort = EFFORTS.get(str(report.settings.get("effort")), EFFORTS["default"])
        sections, n_bytes, told = _sections(Path(path), entry)
        info = TensorInfo(entry.name, entry.dtype, entry.shape, None)
        jobs = _jobs(entry)
        weight = None
        if jobs:
            weight = _stand_in(file.get_tensor(stored), entry) if original is None else _original(original, info)
    choices, useless, relaxed = [], [], []
    for number, (label, setting) in enumerate(jobs):
        assert weight is not None
        piece = _encode(info, weight, setting, effort)
        if setting.choice.dictionary is None and setting.limit > 0:
            relaxed.append(RelaxedLimit(setting.limit, piece.n_bytes, _name(piece.entry)))
        elif _name(piece.entry) == label:
            choices.append(PricedChoice(label, piece.entry.rank, piece.n_bytes, piece.entry.rel_error))
        else:
            useless.append(label)
        if progress is not None:
            progress(label, number + 1, len(jobs))
    if entry.codec == EXACT:
        choices = [replace(one, bytes=n_bytes) for one in choices]
    if entry.codec in (PREDICTED, VECTOR) or _is_free_of_error(entry):
        choices.append(PricedChoice(entry.dictionary, entry.rank, told, entry.rel_error))
    if entry.codec in (FACTORED, VECTOR):
        used = next((one.bytes for one in choices if one.dictionary == entry.dictionary), n_bytes)
        scale = n_bytes / used
        choices = [one if one.dictionary == EXACT else replace(one, bytes=round(one.bytes * scale)) for one in choices]
        relaxed = [replace(one, bytes=round(one.bytes * scale)) for one in relaxed]
    return Explanation(
        source=str(path),
        layer=found[name],
        sections=sections,
        priced_on="" if not jobs else "decoded" if original is None and entry.rel_error else "original",
        choices=tuple(sorted(choices, key=lambda one: one.bytes)),
        useless=tuple(useless),
        relaxed=tuple(relaxed),
        elapsed_s=time.monotonic() - started,
    )


def _jobs(entry: Entry) -> list[tuple[str, Setting]]:
    """What is tried, by name; nothing for tensors that only `exact` can hold."""
    if entry.dtype not in layer.FLOATS or 0 in entry.shape:
        return []
    if _is_free_of_error(entry):
        return [(EXACT, Setting(0.0))]
    if entry.codec == EXACT:
        return [(EXACT, Setting(0.0)), *((f"{limit:g}", Setting(limit)) for limit in FROM_EXACT)]
    layout = Layout.of(entry.shape)
    fits = [
        name
        for name in dictionaries.NAMES
        if (layout.takes_transform or not name.endswith(dictionaries.BASES))
        and (min(layout.n_rows, layout.n_columns) > 1 or "lowrank" not in name)
    ]
    at = entry.rel_error
    relaxed = RELAXED if entry.codec != PREDICTED else ()  # what is learned cannot be priced from the dense weight
    return [
        (EXACT, Setting(0.0)),
        *((name, Setting(at, Choice(dictionary=name))) for name in fits if entry.codec != VECTOR),
        *((f"{at * times:.3g}", Setting(at * times)) for times in relaxed if at * times < 1),
    ]


def _is_free_of_error(entry: Entry) -> bool:
    """Whether it is coded and comes back exactly even so: nothing else than exact bytes is as good."""
    return entry.codec in (PREDICTED, FACTORED) and entry.rel_error == 0


def _encode(info: TensorInfo, weight: Tensor, setting: Setting, effort: Effort) -> Piece:
    with one_torch_thread():
        return layer.encode(info, weight, setting, effort, _SEED, "cpu")


def _name(entry: Entry) -> str:
    return EXACT if entry.codec == EXACT else entry.dictionary


def _sections(path: Path, entry: Entry) -> tuple[dict[str, int], int, int]:
    """Where the bytes of a tensor go, how many there are, and how many there would be by the same count as of others
    that are tried: for a vector, which is packed together with others, both are estimates, a share and what it would
    take beside its like."""
    with Reader(path) as reader:
        n_bytes = reader.part_bytes(entry)
        if entry.codec == EXACT:
            return {}, n_bytes, n_bytes
        try:
            stream = reader.stream(entry)
            if entry.codec == VECTOR:
                nothing = dict.fromkeys(("dictionary", "coefficients", "head"), 0)
                return {**nothing, "stored": n_bytes}, n_bytes, Vector.of_record(stream).n_bytes
            return predicted.section_bytes_of(entry.codec, stream, entry.shape), n_bytes, n_bytes
        except (ValueError, IndexError) as error:
            raise FormatError(path, f"damaged: {error}", tensor=entry.name) from error


def _stand_in(decoded: Tensor, entry: Entry) -> Tensor:
    """Weights like those that were squeezed."""
    if entry.rel_error == 0 or not decoded.isfinite().all():
        return decoded
    weight = decoded.double()
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(_SEED), dtype=torch.float64)
    noisy: Tensor = weight + noise * (entry.rel_error * weight.norm() / weight.numel() ** 0.5)
    return noisy.to(decoded.dtype)


def _original(path: str | os.PathLike[str], info: TensorInfo) -> Tensor:
    with dense_view(open_checkpoint(Path(path))) as checkpoint:
        for one in checkpoint.tensors:
            if one.name == info.name and (one.dtype, one.shape) == (info.dtype, info.shape):
                return checkpoint.load(one.name)
    raise ConfigError(
        f"{path} has no tensor {info.name!r} of shape {info.shape} and dtype {info.dtype}",
        hint="give the checkpoint that the file was squeezed from",
    )
