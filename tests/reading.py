"""Everything that can be asked of a file from a stranger, and small honest files of every kind to begin with."""

from __future__ import annotations

import argparse
import collections
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from forging import Forged, mutate_json, mutate_moments, mutate_safetensors, mutate_squeezed, mutate_torch
from helpers import gaussian, low_rank, mixed_scales, smooth_kernels

import paramcompress
from paramcompress import anatomy, report
from paramcompress.calibration import calibrate
from paramcompress.checkpoint import open_checkpoint, write_checkpoint
from paramcompress.errors import ParamCompressError

GOLDEN = Path(__file__).parent / "golden"
Mutate = Callable[[np.random.Generator], bytes]


def outcome(read: Callable[[], object]) -> str:
    """The name of the package's own error, or "" for none; whatever else is raised goes through."""
    try:
        read()
    except ParamCompressError as error:
        if "\n" in str(error):
            raise AssertionError(f"an error of several lines: {error!r}") from error
        return type(error).__name__
    return ""


def read_squeezed(path: Path, most_bytes: int | None = None, *, thorough: bool = False) -> None:
    """Open a squeezed file, say what it holds, decode every tensor, write the checkpoint. Goes on after a bad tensor.

    thorough: also what takes longer: the sections and spectra of an HTML report.
    """
    with paramcompress.open_file(path, max_bytes=most_bytes) as file:
        found = file.report()
        report.to_json(found)
        if thorough:
            report.render(found, width=80, verbose=True)
            report.to_markdown(found)
        bad = None
        for name in file.keys():  # noqa: SIM118 -- it has no other way to be asked
            try:
                file.get_tensor(name)
            except ParamCompressError as error:
                bad = error
    if thorough:
        anatomy.examine(path)
    if bad is not None:
        raise bad
    paramcompress.expand(path, path.with_name(f"expanded {file.index.kind}"), force=True)


def read_checkpoint(path: Path) -> None:
    """Open a checkpoint, load every tensor, write all of it as a torch file."""
    with open_checkpoint(path) as checkpoint:
        write_checkpoint(
            path.with_name("again"),
            json.loads(json.dumps(checkpoint.tree)),
            checkpoint.tensors,
            checkpoint.load,
            kind="torch",
        )


def read_moments(
    path: Path,
    tensors: dict[str, torch.Tensor],
) -> None:
    """Squeeze tensors by a file of second moments, to a target of every kind."""
    for target in ({"target_size": 1200}, {"max_output_error": 0.1}, {"max_rel_error": 0.1}):
        paramcompress.squeeze(tensors, path.with_name("guided"), stats=path, effort="fast", force=True, **target)


# ------------------------------------------------------------------------------------------- honest files


def trainer(rng: np.random.Generator) -> dict[str, Any]:
    """What a training script saves: nested, tied, every kind of plain value and tensor."""
    weight = gaussian(rng, 6, 5)
    return {
        "epoch": 7,
        "state_dict": collections.OrderedDict(w=weight, tied=weight, half=gaussian(rng, 3, dtype="bfloat16")),
        "parameter": torch.nn.Parameter(gaussian(rng, 2, 2)),
        "sparse": torch.eye(3).to_sparse(),
        "args": argparse.Namespace(lr=0.1, out=Path("runs")),
        "history": collections.defaultdict(list, loss=[0.5, float("nan"), 2**70]),
        "best": np.float64(0.25),
        "kinds": (torch.float16, torch.Size([2, 3]), {"x"}, b"\0\xff", 1j, None, True, collections.Counter("aab")),
    }


def squeezed_files(folder: Path, rng: np.random.Generator) -> list[Path]:
    """Small squeezed files that together hold every codec, dictionary, home, kind and node."""
    made = []

    def squeeze(name: str, source: Any, **options: Any) -> None:
        made.append(folder / f"{name}.safetensors")
        paramcompress.squeeze(source, made[-1], **options)

    torch.save(trainer(rng), folder / "trainer.pt")
    squeeze("torch", folder / "trainer.pt", max_rel_error=0.1)
    weight = gaussian(rng, 6, 5)
    several = {"w": weight, "v": gaussian(rng, 5, 5), "b": gaussian(rng, 3), "t": weight, "twin": torch.arange(200)}
    squeeze("dict", several | {"equal": torch.arange(200)}, max_rel_error=0.1)
    squeeze("sharded", sharded_folder(folder / "shards", rng), max_rel_error=0.1)
    forced = {"*": {"dictionary": "lowrank+patch", "rank": 2, "max_rel_error": 0.1}}
    squeeze("lowrank", {"w": low_rank(rng, 20, 36, 2, 0.3).reshape(20, 4, 3, 3)}, layers=forced)
    for dictionary in ("cosine", "mirror"):
        forced = {"*": {"dictionary": dictionary, "max_rel_error": 0.1}}
        squeeze(dictionary, {"w": smooth_kernels(rng, 8, 6, 3, 3)}, layers=forced)
    squeeze("classes", {"w": mixed_scales(rng, 16, 16)}, max_rel_error=1e-4)
    return made


def sharded_folder(folder: Path, rng: np.random.Generator) -> Path:
    """A folder of two safetensors shards and their index."""
    import safetensors.torch

    folder.mkdir()
    shards = {
        "a.safetensors": {"w": gaussian(rng, 6, 5)},
        "b.safetensors": {"v": gaussian(rng, 4), "n": torch.arange(3)},
    }
    for name, tensors in shards.items():
        safetensors.torch.save_file(tensors, folder / name, metadata={"format": "pt"})
    index = {"metadata": {"total_size": 1}, "weight_map": {key: name for name, one in shards.items() for key in one}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def measured(folder: Path, rng: np.random.Generator) -> tuple[Path, dict[str, torch.Tensor]]:
    """Second moments of a small net, in groups, of an embedding, and only their diagonal; with its tensors."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Embedding(5, 16), torch.nn.Conv1d(4, 4, 3, groups=2), torch.nn.Flatten(), torch.nn.Linear(56, 3)
        )
    moments = calibrate(model, [torch.from_numpy(rng.integers(0, 5, (8, 4)))], widest=20)
    moments.save(folder / "stats")
    return folder / "stats", model.state_dict()


def seeds(folder: Path) -> dict[str, list[tuple[Path, Mutate, Callable[[Path], None]]]]:
    """By kind of file, the honest ones: where the mutated one is to be written, what mutates it, what reads it."""
    import safetensors.torch

    rng = np.random.default_rng(20130605)
    one = folder / "mutated"
    files: dict[str, list[tuple[Path, Mutate, Callable[[Path], None]]]] = {}
    files["squeezed"] = []
    for path in squeezed_files(folder, rng):
        with paramcompress.open_file(path) as file:
            most = file.expanded_bytes
        honest = Forged.of(path)
        files["squeezed"].append(
            (
                one,
                lambda rng, honest=honest: mutate_squeezed(rng, honest),
                lambda path, most=most, thorough=path.stem == "mirror": read_squeezed(path, most, thorough=thorough),
            )
        )
    torch.save(trainer(rng), folder / "legacy.pt", _use_new_zipfile_serialization=False)
    files["torch"] = [
        (one, lambda rng, data=data: mutate_torch(rng, data), read_checkpoint)
        for data in ((folder / "trainer.pt").read_bytes(), (folder / "legacy.pt").read_bytes())
    ]
    plain = safetensors.torch.save(
        {"w": gaussian(rng, 3, 2), "n": torch.arange(3), "h": torch.ones(2).half()}, {"a": "b"}
    )
    files["safetensors"] = [(one, lambda rng: mutate_safetensors(rng, plain), read_checkpoint)]
    index = folder / "shards" / "model.safetensors.index.json"
    text = index.read_text()
    files["sharded"] = [
        (
            index,
            lambda rng: json.dumps(mutate_json(rng, json.loads(text))).encode("utf-8", "surrogatepass"),
            read_checkpoint,
        )
    ]
    honest, tensors = measured(folder, rng)
    data = honest.read_bytes()
    files["stats"] = [(one, lambda rng: mutate_moments(rng, data), lambda path: read_moments(path, tensors))]
    return files
