"""One squeeze: every tensor of a checkpoint encoded, measured and written, as often as its target asks for.

Between the conductor, which opens and publishes, and `layer`, which knows one tensor. Layers are independent, so they
go through worker threads (the compiled loops release the interpreter lock) and into the file in order: bytes do not
depend on the number of workers, memory is a few layers and not the model.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from paramcompress import config, guide, heap, layer, metrics, plan, predicted_layer
from paramcompress.accounts import counter, info_of, layer_report, notes_of
from paramcompress.calibrated import HIGHEST_LEVEL, SIZE_POWER
from paramcompress.checkpoint import Checkpoint, TensorInfo
from paramcompress.checkpoint.records import torch_dtype
from paramcompress.codec import EXACT
from paramcompress.container import SAME, Entry, Reader, Writer
from paramcompress.errors import BudgetError, EncodeError, ParamCompressError, VerificationError
from paramcompress.fit import Effort
from paramcompress.predicted_checkpoint import parts_of
from paramcompress.records import LayerReport, Progress, Report
from paramcompress.threads import in_order

PLAIN_SLACK, ROUGH_SLACK = 0.3, 0.03
"""Shares of a size within which a level is nearly right: to choose dictionaries at, and to begin a rehearsal with."""
NEARLY_NOTHING = 1.0
"""Level from which on so little is kept that a size is near the least there is, and a rough level not good enough."""
MOST_CHOICES = 3
"""Times that dictionaries are chosen, each nearer to the level that a size needs."""
REHEARSED_SHARE = 0.9985
"""Of a size, what a rehearsal aims at: it meets its budget to about so much."""
MOST_REHEARSALS = 4
LEAST_EXACT = 0.5
"""Share of the checkpoint below which it is not tried whether all of it fits exactly, which few do."""
NOT_FITTED = "layers were not fitted to one another: that did not meet the size"
"""Note of a file; its bytes are some of those that are asked for."""
_LEAST_TWIN_BYTES = 1024
"""Tensors from this size on are stored once where several are equal."""


class Job:
    """One squeeze: what does not change between the encodings that a size target may need."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        limits: plan.Plan,
        effort: Effort,
        seed: int,
        device: str,
        workers: int,
        about: dict[str, Any],
        guided: guide.Guide | None = None,
    ) -> None:
        self.checkpoint, self.limits, self.effort = checkpoint, limits, effort
        self.seed, self.device, self.workers, self.about = seed, device, workers, about
        self.asked_bytes = 0
        self.guided = guided
        self.layers: list[LayerReport] = []
        self.entries: tuple[Entry, ...] = ()
        self.digests: dict[str, bytes] = {}
        """Of the streams that were encoded last."""
        self.sizes: dict[str, int] = {}
        """What each of these adds to the file, about."""

    def settings(self, level: float) -> dict[str, layer.Setting]:
        return {info.name: self.limits.setting(info, level) for info in self.checkpoint.tensors}

    def first_level(self, path: Path, size: int, progress: Progress | None) -> float:
        """The level for a size; a rough one where the guide, which keeps the size itself, goes through the model."""
        self.asked_bytes = size
        may_be_exact = size >= LEAST_EXACT * self.about["bytes_before"]
        if may_be_exact and self.size_at(path, 0.0, progress) <= size:
            return 0.0
        if self.guided is None:
            return self._level_for_size(path, size, None, progress)
        rough = self._rough_level(self.guided, path, size, progress)
        if rough is not None and rough < NEARLY_NOTHING and self.guided.model is not None:
            return rough
        return self._level_for_size(path, size, rough, progress)

    def _level_for_size(self, path: Path, size: int, guess: float | None, progress: Progress | None) -> float:
        """Smallest level whose file has at most `size` bytes."""
        try:
            return plan.level_for_size(size, lambda level: self.size_at(path, level, progress), guess)
        except BudgetError as error:
            raise self.impossible(path, error, progress) from error

    def _rough_level(self, guided: guide.Guide, path: Path, size: int, progress: Progress | None) -> float | None:
        """A level that is nearly right, and near which dictionaries were chosen; None if there seems to be none."""

        def size_at(level: float) -> int:
            return self.size_at(path, level, progress)

        guided.rough = True
        level = plan.rough_level(size, size_at, HIGHEST_LEVEL, SIZE_POWER, PLAIN_SLACK)
        for _ in range(MOST_CHOICES):
            if level is None or not guided.calibrated.choose_at(level):
                break
            level = plan.rough_level(size, size_at, level, SIZE_POWER, ROUGH_SLACK)
        guided.rough = False
        return level

    def size_at(self, path: Path, level: float, progress: Progress | None) -> int:
        """Bytes of the file at a level, by encoding all of it."""
        with Writer(path) as writer:
            return self.write(writer, level, keep=False, progress=progress)

    def rehearse(self, path: Path, level: float, size: int | None, progress: Progress | None) -> float:
        """Let the guide go through the model, so that the file has at most `size` bytes and hardly fewer; returns the
        level to write at."""
        assert self.guided is not None
        all_exact = size is not None and level == 0
        if self.guided.model is None or all_exact:
            return level
        if size is None:
            self.guided.rehearse(level, {}, None)
            return level
        before = self.size_at(path, level, progress)
        settled = self.guided.calibrated.settled_by_rehearsal
        expected = {name: n_bytes for name, n_bytes in self.sizes.items() if settled(name)}
        if not expected:
            return self._level_for_size(path, size, level, progress)
        fixed = before - sum(expected.values())
        aim = REHEARSED_SHARE * size
        for _ in range(MOST_REHEARSALS):
            self.guided.rehearse(level, expected, aim - fixed)
            found = self.size_at(path, level, progress)
            if found <= size:
                return level
            aim -= 1.3 * (found - REHEARSED_SHARE * size)
        self.about["notes"].append(NOT_FITTED)
        self.guided.calibrated.forget_rehearsal()
        rough = self._rough_level(self.guided, path, size, progress)
        return self._level_for_size(path, size, rough, progress)

    def write(self, writer: Writer, level: float, *, keep: bool, progress: Progress | None, prove: bool = False) -> int:
        """Encode every tensor at a level into writer; returns the bytes of the file.

        Args:
            prove: decode every stream again and measure what comes out.
        """
        settings = self.settings(level)
        tensors = self.checkpoint.tensors
        tell = counter(tensors, progress)
        twins = {} if self.guided is None else self.guided.twins

        def encode(info: TensorInfo) -> tuple[layer.Piece, bytes, float | None] | None:
            if info.alias_of is not None or info.name in twins:
                return None
            heap.make_room(info.n_bytes)
            tensor = self.checkpoint.load(info.name)
            output_error = None
            try:
                piece = self.guided.encode(info, tensor, level) if self.guided is not None else None
                if piece is None:
                    parts = parts_of(self.checkpoint, info.name)
                    piece = predicted_layer.encode(
                        info, tensor, parts, settings[info.name], self.effort, self.seed, self.device, prove=prove
                    )
                if prove and piece.found is None and piece.entry.codec != EXACT:
                    piece, output_error = self._measured(writer.path, tensor, piece, settings[info.name])
            except ParamCompressError:
                raise
            except Exception as error:
                raise EncodeError(info.name, info.shape, f"{type(error).__name__}: {error}") from error
            return piece, hashlib.sha256(piece.stream).digest(), output_error

        first_with: dict[tuple[Any, ...], Entry] = {}
        entries: dict[str, Entry] = {}
        found: dict[str, tuple[metrics.Deviation | None, float | None]] = {}
        notes: dict[str, str] = {}
        for info, made in zip(tensors, in_order(encode, tensors, self.workers, lambda info: info.n_bytes), strict=True):
            if made is None:
                first = info.alias_of or twins[info.name]
                entry = _same(entries[first], info.name, tied=info.alias_of is not None)
                stream = b""
                found[info.name], self.sizes[info.name] = found[first], 0
            else:
                piece, digest, output_error = made
                key = (piece.entry.shape, piece.entry.dtype, piece.entry.crc, digest)
                twin = first_with.setdefault(key, piece.entry) if info.n_bytes >= _LEAST_TWIN_BYTES else piece.entry
                entry = piece.entry
                if twin is not piece.entry:  # what they decode to is the same; they themselves need not be
                    entry = replace(_same(twin, info.name, tied=False), rel_error=piece.entry.rel_error)
                stream = piece.stream
                self.digests[info.name], self.sizes[info.name] = digest, 0 if entry.same_as else piece.n_bytes
                found[info.name] = piece.found, output_error
                if piece.note:
                    notes[info.name] = piece.note
            entries[info.name] = entry
            writer.add(entry, stream, torch_dtype(info.dtype).itemsize)
            tell(info)
        about = {**self.about, "layer_notes": notes}
        file_bytes = writer.finish(self.checkpoint.kind, self.checkpoint.tree, about, keep=keep)
        self.entries = tuple(entries.values())
        self.layers = [
            layer_report(entry, writer.part_bytes(entry), notes.get(entry.name, ""), *found[entry.name])
            for entry in self.entries
        ]
        return file_bytes

    def _measured(
        self, path: Path, tensor: Tensor, piece: layer.Piece, setting: layer.Setting
    ) -> tuple[layer.Piece, float | None]:
        """`piece` with the distance of a tensor from what its stream decodes to, and that of what the layer gives.

        Raises:
            VerificationError: a limit is broken.
        """
        entry = piece.entry
        decoded = layer.decode(entry, piece.stream)
        found = metrics.deviation(tensor, decoded)
        if self.guided is not None and entry.name in self.guided.calibrated.weights:
            return replace(piece, found=found), self.guided.check(path, entry.name, tensor, decoded)
        promised = min(entry.rel_error, setting.limit) if setting.firm else entry.rel_error
        if found.rel_error > promised:
            raise VerificationError(
                path, entry.name, f"a relative error of {found.rel_error:.6g}", f"at most {promised:.6g}"
            )
        return replace(piece, found=found), None

    def read_back(self, file: Path, path: Path, progress: Progress | None) -> None:
        """Whether a finished file holds what was encoded, bit for bit. `path` is what errors call it.

        Raises:
            VerificationError: it does not.
        """
        with Reader(file, sys.maxsize) as reader:  # our own may be as tight as it likes
            tell = counter([info_of(entry, None) for entry in self.entries], progress)

            def compare(pair: tuple[Entry, Entry]) -> None:
                entry, read = pair
                if read != entry:
                    raise VerificationError(path, entry.name, f"the entry {read}", f"{entry}")
                if entry.same_as is not None:
                    return
                try:
                    stream = reader.stream(entry)
                    if hashlib.sha256(stream).digest() != self.digests[entry.name]:
                        raise VerificationError(path, entry.name, "other bytes", "the stream that was encoded")
                    if entry.codec == EXACT:
                        layer.decode(entry, stream)
                except VerificationError:
                    raise
                except ValueError as error:
                    raise VerificationError(path, entry.name, str(error), "the weights that were encoded") from error

            pairs = list(zip(self.entries, reader.index.entries, strict=True))
            for (entry, _), _ in zip(
                pairs, in_order(compare, pairs, self.workers, lambda pair: pair[0].n_bytes), strict=True
            ):
                tell(info_of(entry, None))

    def impossible(self, path: Path, error: BudgetError, progress: Progress | None) -> BudgetError:
        """`error` with a size that can really be asked for: what is asked for is written into the file, too."""
        asked = error.smallest_bytes or 0
        if self.guided is not None and self.guided.model is not None:
            calibrated = self.guided.calibrated
            was_fitted = any(calibrated.settled_by_rehearsal(info.name) for info in self.checkpoint.tensors)
            calibrated.forget_rehearsal()  # which this size may not allow, as may have to be said
            if was_fitted and NOT_FITTED not in self.about["notes"]:
                self.about["notes"].append(NOT_FITTED)
        while True:
            options = {**self.about["settings"], "target_size": asked}
            options.pop("bits_per_weight", None)
            self.about = {**self.about, "settings": options, "target": target_words(options, self.guided)}
            found = self.size_at(path, plan.LARGEST_LEVEL, progress)
            if found <= asked:
                return plan.impossible(self.asked_bytes, asked)
            asked = found

    def report(self, path: Path, level: float, file_bytes: int, *, dry_run: bool) -> Report:
        moved = self.guided is not None and bool(self.guided.calibrated.final)
        return Report(
            source=str(self.checkpoint.path or "tensors in memory"),
            output=None if dry_run else str(path),
            target=self.about["target"],
            n_weights=self.about["n_weights"],
            bytes_before=self.about["bytes_before"],
            bytes_after=file_bytes,
            layers=tuple(self.layers),
            notes=notes_of(self.about, self.layers, moved=moved),
            settings={**self.about["settings"], "level": level},
        )


def target_words(options: Mapping[str, Any], guided: guide.Guide | None = None) -> str:
    """What was asked for, as a report says it."""
    for target in config.TARGETS:
        if target in options:
            unit = " bytes" if target == "target_size" else ""
            return f"{target} {options[target]}{unit}"
    return guided.default_target if guided is not None else f"max_rel_error {plan.DEFAULT_MAX_REL_ERROR} (default)"


def _same(entry: Entry, name: str, *, tied: bool) -> Entry:
    """Entry of a tensor whose bytes are stored under another name."""
    return replace(entry, name=name, home=SAME, n_bytes=0, same_as=entry.same_as or entry.name, tied=tied)
