"""The conductor: checkpoint -> plan -> job -> published file, and back. Holds no maths and prints nothing.

A weight visits each room once: `job` brings the tensors of a checkpoint through `layer` into the container, and
`SqueezedFile` brings them back out.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from paramcompress import config, container, guide, heap, layer, metrics, plan
from paramcompress.accounts import counter, info_of, layer_report, n_weights_of, notes_of
from paramcompress.checkpoint import (
    Checkpoint,
    TensorInfo,
    from_tensors,
    kind_for,
    open_checkpoint,
    others_in,
    write_checkpoint,
)
from paramcompress.checkpoint.records import torch_dtype
from paramcompress.codec import EXACT, FACTORED
from paramcompress.container import Entry, Reader, Writer, item_bytes_of
from paramcompress.errors import (
    CheckpointError,
    ConfigError,
    FormatError,
    OutputError,
    ParamCompressError,
    UnsupportedFormatError,
    VerificationError,
)
from paramcompress.fit import EFFORTS
from paramcompress.job import Job, target_words
from paramcompress.predicted import PREDICTED
from paramcompress.predicted_checkpoint import dense_view
from paramcompress.records import Calibration, Progress, Report
from paramcompress.scratch import Scratch, why_not
from paramcompress.threads import in_order, one_torch_thread, torch_threads
from paramcompress.units import parse_size
from paramcompress.vectors import VECTOR

Source = str | os.PathLike[str] | Mapping[str, Any]
T = TypeVar("T")
R = TypeVar("R")
_SUFFIX = ".squeezed.safetensors"


# ------------------------------------------------------------------------------------------- squeeze


def squeeze(
    source: Source,
    out: str | os.PathLike[str],
    *,
    target_size: int | str | None = None,
    bits_per_weight: float | None = None,
    max_rel_error: float | None = None,
    max_output_error: float | None = None,
    model: nn.Module | None = None,
    batches: Iterable[Any] | None = None,
    stats: guide.Stats | None = None,
    importance: str | None = None,
    layers: Mapping[str, Mapping[str, Any]] | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    effort: str = "default",
    workers: int = 1,
    device: str = "cpu",
    seed: int = 0,
    verify: bool = True,
    force: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Squeeze a checkpoint into one safetensors file.

    At most one target; without any, `plan.DEFAULT_MAX_REL_ERROR` holds for every matrix and vectors are exact, or, with
    data, `guide.DEFAULT_MAX_OUTPUT_ERROR` for what every layer gives.

    Args:
        source: path of a checkpoint file or folder, or a dict of tensors, nested or not.
        out: file to write; whole or not at all.
        target_size: bytes, or a size such as "3MB"; least error in at most that many, everything included.
        bits_per_weight: the same, relative to the weights.
        max_rel_error: every matrix W comes back within ||W - W_hat||_F <= max_rel_error * ||W||_F. 0 is exact.
        max_output_error: what every matrix gives on the data has a relative error of at most this.
        model, batches: a module with the checkpoint's names, and an iterable of what it is called with: a few hundred
            inputs, no labels. What they say of the weights then decides. The module is copied and stays as it is.
        stats: second moments that `calibrate` measured, or the file they are in, instead of or beside these.
        importance: "optimizer" takes Adam's squared gradients in a training checkpoint instead.
        layers: pattern (exact name, glob, `re:`) to a dict of max_rel_error, dictionary, rank, density, exact.
        include, exclude: patterns; what is not included, or is excluded, stays exact.
        effort: fast, default or max.
        workers: threads. Neither bytes nor figures depend on it.
        device: where torch decomposes matrices. Bytes may depend on it, expanded weights of a given file do not.
        seed: of the randomised decompositions.
        verify: read the file back, decode and measure every tensor before it is put in place.
        force: overwrite `out`.
        dry_run: do everything but write; the report says what would come out.
        progress: called as progress(layer, bytes done, bytes in all).

    Raises:
        CheckpointError, ConfigError, BudgetError, OutputError, VerificationError, EncodeError, CalibrationError.
    """
    started = time.monotonic()
    given = {
        "target_size": target_size,
        "bits_per_weight": bits_per_weight,
        "max_rel_error": max_rel_error,
        "max_output_error": max_output_error,
        "importance": importance,
        "layers": layers or None,
        "include": tuple(include) or None,
        "exclude": tuple(exclude) or None,
        "effort": effort,
        "workers": workers,
        "seed": seed,
    }
    options = config.check({key: value for key, value in given.items() if value is not None})
    path = Path(out)
    _check_device(device)
    guide.check_options(model, batches, stats, importance, max_output_error)
    _check_source(source)
    if not dry_run:
        _check_output(path, source, force=force)
    n_threads = torch.get_num_threads()
    with _open(source) as checkpoint, one_torch_thread():
        _check_names(checkpoint)
        distinct = [info for info in checkpoint.tensors if info.alias_of is None]
        n_weights = sum(n_weights_of(info) for info in distinct)
        size = _target_bytes(options, n_weights)
        limits = plan.make(
            checkpoint.tensors,
            options.get("layers", {}),
            include,
            exclude,
            loudness=None if size is None else _loudness(distinct, checkpoint, workers),
        )
        with torch_threads(n_threads):
            guided = guide.make(
                checkpoint, limits, options, EFFORTS[effort],
                model=model, batches=batches, stats=stats, seed=seed, device=device, workers=workers,
            )  # fmt: skip
        about = {
            "source": checkpoint.path.name if checkpoint.path is not None else "",
            "bytes_before": sum(info.n_bytes for info in distinct),
            "n_weights": n_weights,
            "notes": [*checkpoint.notes, *(guided.notes() if guided else ())],
            "target": target_words(options, guided),
            # limits of single layers stand beside each layer as what they led to; repeating them would cost bytes
            "settings": {key: value for key, value in options.items() if key not in ("workers", "layers")},
        }
        job = Job(checkpoint, limits, EFFORTS[effort], seed, device, workers, about, guided)
        level = options.get("max_rel_error", plan.DEFAULT_MAX_REL_ERROR)
        if size is not None:
            level = job.first_level(path, size, progress)
        if guided is not None:
            with torch_threads(n_threads):
                level = job.rehearse(path, level, size, progress)
        with Writer(path) as writer:
            file_bytes = job.write(writer, level, keep=not dry_run, prove=verify, progress=progress)
            report = job.report(path, level, file_bytes, dry_run=dry_run)
            if not dry_run:
                if verify:
                    job.read_back(writer.scratch, path, progress)
                    report = replace(report, verified=True)
                writer.publish()
    return replace(report, elapsed_s=time.monotonic() - started)


def default_output(source: Path) -> Path:
    """Where `squeeze` puts its file when nobody says: model.pt -> model.squeezed.safetensors, beside it."""
    folder = source.parent if source.name else source.resolve().parent
    return folder / (_stem(source) + _SUFFIX)


def save_moments(
    source: Source,
    out: str | os.PathLike[str],
    *,
    model: nn.Module,
    batches: Iterable[Any],
    seed: int = 0,
    force: bool = False,
) -> Calibration:
    """Write the second moments of a checkpoint's model to a file, for `squeeze(stats=)`.

    Args:
        model, batches: as for `squeeze`; the weights are the checkpoint's.

    Raises:
        CheckpointError, CalibrationError, OutputError.
    """
    path = Path(out)
    _check_output(path, source, force=force)
    with _open(source) as checkpoint:
        moments = guide.measure(checkpoint, model, list(batches), seed)
    moments.save(path)
    return Calibration(path, moments.n_batches, tuple(moments.layers), moments.notes)


def default_stats(source: Path) -> Path:
    """Where `save_moments` puts its file when nobody says: model.pt -> model.stats.safetensors, beside it."""
    return default_output(source).with_name(_stem(source) + ".stats.safetensors")


# ------------------------------------------------------------------------------------------- expand


def expand(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    dtype: str | None = None,
    workers: int = 1,
    force: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write the full checkpoint back: names, nesting, order, dtypes, shapes, ties and plain values as they were.

    Args:
        path: squeezed file.
        out: file or folder; its suffix decides the kind. Without it model.squeezed.safetensors gives
            model.expanded.pt, or whatever kind was squeezed, in the same folder.
        dtype: of floating-point tensors; their own where None.
        workers: threads.

    Returns:
        The path written.

    Raises:
        FormatError, OutputError, ConfigError.
    """
    source = Path(path)
    if dtype is not None and dtype not in layer.FLOATS:
        raise ConfigError(f"dtype {dtype!r} is no floating-point type", hint=f"one of {', '.join(layer.FLOATS)}")
    with open_file(source) as squeezed:
        index = squeezed.index
        target = Path(out) if out is not None else _default_expanded(source, index.kind, index.about.get("source", ""))
        kind = (kind_for(target) if out is not None else None) or (None if index.kind == "dict" else index.kind)
        _check_output(target, source, force=force, folder=kind == "sharded")
        infos = [info_of(entry, dtype) for entry in index.entries]
        wanted = [info for info in infos if info.alias_of is None]
        tell = counter(infos, progress)
        decoded = in_order(
            lambda info: (info, _cast(squeezed.get_tensor(info.name), dtype)),
            wanted,
            workers,
            lambda info: info.n_bytes,
        )
        ahead: dict[str, Tensor] = {}

        def load(name: str) -> Tensor:
            while name not in ahead:  # the writer asks in the order of the file, so what is ahead stays a few tensors
                info, ahead[info.name] = next(decoded)
                tell(info)
            return ahead.pop(name)

        try:
            with Scratch(target, folder=(kind or index.kind) == "sharded") as scratch:
                write_checkpoint(scratch.path, index.tree, infos, load, kind=kind)
                scratch.publish()
        except OSError as error:
            raise OutputError(target, f"cannot be written: {error.strerror}") from error
        except ValueError as error:
            if isinstance(error, ParamCompressError):
                raise
            raise FormatError(source, f"damaged: {error}") from error
    return target


class SqueezedFile:
    """A squeezed file, open: tensors by name, each decoded when asked for. Serves several threads at once.

    >>> with open_file("model.squeezed.safetensors") as file:  # doctest: +SKIP
    ...     weight = file.get_tensor("fc1.weight")
    """

    def __init__(self, path: str | os.PathLike[str], max_bytes: int | None = None) -> None:
        self.path = Path(path)
        self._reader = Reader(self.path, max_bytes)
        self.index = self._reader.index
        self.expanded_bytes = self._reader.expanded_bytes
        """Of all tensors in full, tied ones each; known from the index, before anything is decoded."""

    def keys(self) -> list[str]:
        """Names of all tensors, in the checkpoint's order."""
        return list(self._reader.entries)

    def get_tensor(self, name: str) -> Tensor:
        """The full tensor of that name, on the CPU; nothing else is decoded.

        Raises:
            KeyError: no tensor of that name.
            FormatError: its part is damaged.
        """
        entry = self._reader.entries[name]
        heap.make_room(_expanded_bytes(entry))
        stored = self._reader.entries[entry.same_as] if entry.same_as is not None else entry
        try:
            return layer.decode(stored, self._reader.stream(stored))
        except FormatError:
            raise
        except layer.UnknownCodecError as error:
            raise UnsupportedFormatError(
                self.path, "codec", error.found, [FACTORED, EXACT, PREDICTED, VECTOR]
            ) from error
        except (ValueError, OverflowError, RuntimeError, MemoryError) as error:
            raise FormatError(self.path, f"damaged: {error}", tensor=name) from error

    def report(self) -> Report:
        """What the index says; nothing is decoded."""
        about = self.index.about
        notes = about.get("layer_notes", {})
        layers = tuple(
            layer_report(entry, self._reader.part_bytes(entry), notes.get(entry.name, ""))
            for entry in self.index.entries
        )
        return Report(
            source=str(self.path),
            output=str(self.path),
            target=about["target"],
            n_weights=about["n_weights"],
            bytes_before=about["bytes_before"],
            bytes_after=self._reader.file_bytes,
            layers=layers,
            notes=notes_of(about, layers),
            settings=about["settings"],
        )

    def close(self) -> None:
        self._reader.close()

    def __enter__(self) -> SqueezedFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def open_file(path: str | os.PathLike[str], *, max_bytes: int | None = None) -> SqueezedFile:
    """Open a squeezed file for reading single tensors.

    Args:
        max_bytes: what all tensors together may take, expanded; for files from strangers. Without it 4096 times the
            file or 256 MiB, whichever is more, or what the environment variable PARAMCOMPRESS_MAX_BYTES says.

    Raises:
        FormatError: not a squeezed file, or damaged. CheckpointError: cannot be opened.
    """
    return SqueezedFile(path, max_bytes)


def load_file(
    path: str | os.PathLike[str], device: str = "cpu", workers: int = 1, *, max_bytes: int | None = None
) -> dict[str, Tensor]:
    """All tensors of a squeezed file by name; tied ones are one tensor.

    Decoded on the CPU and moved, so that the bits are the same on every device. max_bytes as in `open_file`.
    """
    _check_device(device)
    with open_file(path, max_bytes=max_bytes) as squeezed:
        entries = [entry for entry in squeezed.index.entries if not entry.tied]
        decoded = in_order(lambda entry: squeezed.get_tensor(entry.name).to(device), entries, workers, _expanded_bytes)
        found = {entry.name: tensor for entry, tensor in zip(entries, decoded, strict=True)}
        return {
            entry.name: found[entry.same_as or ""] if entry.tied else found[entry.name]
            for entry in squeezed.index.entries
        }


def load_into(model: nn.Module, path: str | os.PathLike[str], *, workers: int = 1) -> None:
    """Copy the weights of a squeezed file into a module, whose state_dict has to have the same names and shapes.

    A module that was made on the meta device, and has no weights yet, gets the tensors themselves.

    Raises:
        FormatError: names or shapes differ; the message lists the first of them.
    """
    found = load_file(path, workers=workers)
    expected = model.state_dict()
    differing = [
        f"{name} (only in the {'file' if name in found else 'model'})"
        for name in sorted(found.keys() ^ expected.keys())
    ] + [
        f"{name} ({tuple(found[name].shape)} in the file, {tuple(expected[name].shape)} in the model)"
        for name in found.keys() & expected.keys()
        if found[name].shape != expected[name].shape
    ]
    if differing:
        more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
        predicts = any(name.rpartition(".")[2] == "recipe" for name in expected)
        hint = "merge the model first: paramcompress.predict.merge(model)" if predicts else None
        raise FormatError(path, f"does not fit the model: {', '.join(differing[:5])}{more}", hint=hint)
    model.load_state_dict(found, assign=any(one.is_meta for one in expected.values()))


def inspect(path: str | os.PathLike[str]) -> Report:
    """What a squeezed file says of itself; only header and index are read."""
    with open_file(path) as squeezed:
        return squeezed.report()


def verify(
    path: str | os.PathLike[str],
    original: Source | None = None,
    *,
    workers: int = 1,
    progress: Progress | None = None,
) -> Report:
    """Decode all of a squeezed file; every checksum and hash has to match, and against the original every error it
    states.

    Raises:
        FormatError: damaged. VerificationError: an error is larger than stated, or the original is another checkpoint.
    """
    started = time.monotonic()
    report = inspect(path)
    if original is None:
        report = _verify(Path(path), None, report, workers, progress)
    else:
        with _open(original) as checkpoint:
            report = _verify(Path(path), checkpoint, report, workers, progress)
    return replace(report, elapsed_s=time.monotonic() - started)


def _verify(file: Path, original: Checkpoint | None, report: Report, workers: int, progress: Progress | None) -> Report:
    """`report` with figures measured on the decoded file."""
    with open_file(file) as squeezed:
        entries = [entry for entry in squeezed.index.entries if entry.same_as is None]
        if original is not None:
            _check_same_tensors(file, squeezed.index.entries, original)
            entries += _cut_ties(squeezed.index.entries, original)
        tell = counter([info_of(entry, None) for entry in entries], progress)

        def measure(entry: Entry) -> metrics.Deviation | None:
            try:
                decoded = squeezed.get_tensor(entry.name)
            except FormatError as error:
                raise VerificationError(file, entry.name, error.reason, "a tensor that decodes") from error
            if original is None:
                return None
            weight = original.load(entry.name)
            if entry.codec == EXACT:
                if not _same_bits(weight, decoded):
                    raise VerificationError(file, entry.name, "other bits", "exact weights")
                return metrics.Deviation(0.0, 0.0)
            found = metrics.deviation(weight, decoded)
            if found.rel_error > entry.rel_error:
                raise VerificationError(
                    file, entry.name, f"a relative error of {found.rel_error:.6g}", f"at most {entry.rel_error:.6g}"
                )
            return found

        measured = {}
        for entry, found in zip(entries, in_order(measure, entries, workers, _expanded_bytes), strict=True):
            measured[entry.name] = found
            tell(info_of(entry, None))
    if original is None:  # the errors stay those that the file states
        return replace(report, verified=True)
    layers = []
    for one in report.layers:
        found = measured[one.name if one.name in measured else one.tied_to or one.name]
        assert found is not None
        layers.append(replace(one, rel_error=found.rel_error, max_abs_error=found.max_abs_error))
    return replace(report, layers=tuple(layers), verified=True)


# ------------------------------------------------------------------------------------------- helpers


def _loudness(tensors: Sequence[TensorInfo], checkpoint: Checkpoint, workers: int) -> dict[str, float]:
    """Root mean square of every matrix and long vector of finite numbers, by name."""

    def measure(info: TensorInfo) -> tuple[str, float]:
        heap.make_room(info.n_bytes)
        norm = metrics.survey(checkpoint.load(info.name)).norm
        return info.name, norm / math.sqrt(max(n_weights_of(info), 1))

    long = plan.long_vectors(tensors)
    sizable = (
        info for info in tensors if (plan.is_matrix(info.shape) or info.name in long) and info.dtype in layer.FLOATS
    )
    return {
        name: rms for name, rms in in_order(measure, sizable, workers, lambda info: info.n_bytes) if math.isfinite(rms)
    }


def _open(source: Source) -> Checkpoint:
    _check_source(source)
    return dense_view(from_tensors(source) if isinstance(source, Mapping) else open_checkpoint(Path(source)))


def _check_source(source: Source) -> None:
    """Whether it may be a checkpoint: also before the output is looked at, which is a lesser matter."""
    if isinstance(source, Mapping):
        return
    if isinstance(source, nn.Module):
        reason = f"expected a path or a dict of tensors, found the module {type(source).__name__}"
        raise CheckpointError("the source", reason, hint="pass model.state_dict()")
    if not str(source):
        raise CheckpointError(source, "is no name of a file", hint="an empty one stands for the folder that you are in")
    if (squeezed := container.squeezed_at(Path(source))) is not None:
        raise CheckpointError(squeezed, "is squeezed already", hint="expand it first")


def _check_names(checkpoint: Checkpoint) -> None:
    for info in checkpoint.tensors:
        if info.name.startswith(container.RESERVED) or info.name.endswith(container.SUFFIX):
            raise CheckpointError(
                checkpoint.path or "tensors in memory",
                f"names that begin with {container.RESERVED!r} or end with {container.SUFFIX!r} are the file's own",
                tensor=info.name,
                hint="rename the tensor",
            )


def _check_device(device: str) -> None:
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from error


def _check_output(path: Path, source: Source, *, force: bool, folder: bool = False) -> None:
    """Refuse an output that cannot be or would destroy something; `force` allows to replace what stands there."""
    if not path.name or not path.parent.is_dir():
        raise OutputError(path, f"there is no folder {path.parent}" if path.name else "is a folder", hint="name a file")
    if (reason := why_not(path)) is not None:
        raise OutputError(path, reason, hint="name a file")
    if not path.exists():
        return
    if not isinstance(source, Mapping):
        mine = Path(source)
        inputs = [mine, *mine.iterdir()] if mine.is_dir() else [mine]
        if any(one.exists() and path.samefile(one) for one in inputs):
            raise OutputError(path, "is what is being read", hint="choose another name")
    if path.is_dir() and not folder:
        raise OutputError(path, "is a folder", hint="name a file")
    if not path.is_dir() and (folder or not path.is_file()):
        raise OutputError(path, "is a file" if path.is_file() else "is no regular file", hint="choose another name")
    if not force:
        raise OutputError(path, "exists already", hint="choose another name, or --force to overwrite it")
    if folder and not isinstance(source, Mapping) and path.resolve() in Path(source).resolve().parents:
        raise OutputError(path, "holds what is being read, and would be replaced", hint="name another folder")
    if folder and (others := others_in(path)):
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        raise OutputError(
            path, f"holds other files than a checkpoint's: {', '.join(others[:3])}{more}", hint="name another folder"
        )


def _cut_ties(entries: Sequence[Entry], original: Checkpoint) -> list[Entry]:
    """What is tied in the file and not in the original, as the entries that hold its values, by its own names."""
    stored = {entry.name: entry for entry in entries}
    ties = {info.name: info.alias_of for info in original.tensors}
    return [
        replace(stored[entry.same_as], name=entry.name, rel_error=entry.rel_error)
        for entry in entries
        if entry.same_as is not None and ties[entry.name] != entry.same_as
    ]


def _check_same_tensors(file: Path, entries: Sequence[Entry], original: Checkpoint) -> None:
    here = {entry.name: (entry.dtype, entry.shape) for entry in entries}
    there = {info.name: (info.dtype, info.shape) for info in original.tensors}
    for name in [*here, *there]:
        if here.get(name) != there.get(name):
            found, promised = (
                "no such tensor" if one is None else f"{one[0]} {one[1]}" for one in (here.get(name), there.get(name))
            )
            raise VerificationError(file, name, found, f"{promised} as in {original.path or 'the original'}")


def _target_bytes(options: Mapping[str, Any], n_weights: int) -> int | None:
    if "target_size" in options:
        return (
            parse_size(options["target_size"])
            if isinstance(options["target_size"], str)
            else int(options["target_size"])
        )
    if "bits_per_weight" in options:
        return int(min(options["bits_per_weight"] * n_weights / 8, float(sys.maxsize)))
    return None


def _expanded_bytes(entry: Entry) -> int:
    return math.prod(entry.shape) * item_bytes_of(entry.dtype)


def _cast(tensor: Tensor, dtype: str | None) -> Tensor:
    return tensor.to(torch_dtype(dtype)) if dtype is not None and str(tensor.dtype)[6:] in layer.FLOATS else tensor


def _same_bits(a: Tensor, b: Tensor) -> bool:
    if a.numel() == 0:
        return a.shape == b.shape and a.dtype == b.dtype
    return torch.equal(a.contiguous().view(-1).view(torch.uint8), b.contiguous().view(-1).view(torch.uint8))


def _stem(path: Path) -> str:
    """Name without what says which kind of file it is."""
    path = path if path.name else path.resolve()
    for suffix in (_SUFFIX, ".safetensors.index.json", ".bin.index.json", ".pth.tar", ".pt.tar"):
        if path.name.endswith(suffix):
            return path.name.removesuffix(suffix)
    return path.name if path.is_dir() else path.stem


def _default_expanded(source: Path, kind: str, squeezed_from: str) -> Path:
    suffix = {"sharded": "", "safetensors": ".safetensors"}.get(kind, Path(squeezed_from).suffix)
    if kind in ("torch", "dict") and kind_for(f"x{suffix}") != "torch":  # a stranger's file makes no .desktop or .sh
        suffix = ".pt"
    return source.parent / f"{_stem(source)}.expanded{suffix}"
