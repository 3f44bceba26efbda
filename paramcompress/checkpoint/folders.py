"""Finding the files of a checkpoint: a file itself, the one that counts in a folder, the shards that an index names."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .safetensors_files import unique

TORCH_SUFFIXES = (".pt", ".pth", ".th", ".bin", ".ckpt", ".tar")
_INDEX_SUFFIX = ".index.json"
_DESKTOP = (".DS_Store", "Thumbs.db", "desktop.ini")
"""What file managers leave wherever they look."""
_IN_FOLDER = (
    f"*.safetensors{_INDEX_SUFFIX}",
    f"*.bin{_INDEX_SUFFIX}",
    "*.safetensors",
    "pytorch_model.bin",
    *(f"*{suffix}" for suffix in TORCH_SUFFIXES),
)
"""What is looked for in a folder, the first that is found wins: Hugging Face folders hold other .bin files as well."""


@dataclass(frozen=True)
class Index:
    """The index of a sharded checkpoint.

    places: the shard of each tensor, by the tensor's name in it.
    shards: each shard once, by name.
    extra: what else the index says.
    """

    path: Path
    places: dict[str, Path]
    shards: tuple[Path, ...]
    extra: dict[str, Any]


def locate(path: Path) -> Path | Index:
    """The checkpoint file at `path`, or the index of its shards. CheckpointError when there is no one such thing."""
    if path.is_dir():
        path = _in_folder(path)
    return _read_index(path) if path.name.endswith(_INDEX_SUFFIX) else path


def is_part(path: Path) -> bool:
    """Whether a file in a folder is a shard or an index, by its name."""
    return path.is_file() and path.name.endswith((".safetensors", _INDEX_SUFFIX, *TORCH_SUFFIXES))


def others_in(folder: Path) -> list[str]:
    """Names of what a folder holds beside an index and the shards that it names, if there is one index."""
    indices = [one for one in folder.iterdir() if one.name.endswith(_INDEX_SUFFIX)]
    parts = {*indices}
    if len(indices) == 1:
        try:
            parts.update(_read_index(indices[0]).shards)
        except CheckpointError:
            parts.clear()
    left = {one.name for one in folder.iterdir() if one not in parts}
    return sorted(name for name in left if name not in _DESKTOP and not name.startswith("._"))


def _in_folder(folder: Path) -> Path:
    for pattern in _IN_FOLDER:
        found = sorted(path for path in folder.glob(pattern) if path.is_file())
        if len(found) > 1:
            raise CheckpointError(
                folder, f"holds {len(found)} checkpoints: {', '.join(path.name for path in found[:5])}", hint="name one"
            )
        if found:
            return found[0]
    raise CheckpointError(folder, "is a folder without a checkpoint file or an index")


def _read_index(path: Path) -> Index:
    try:
        extra = json.loads(path.read_bytes(), object_pairs_hook=unique)
        weight_map = extra.pop("weight_map")
        places = {str(name): path.parent / plain_name(shard) for name, shard in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(path, f"is not an index with a weight_map of file names ({error})") from error
    shards = tuple(sorted(set(places.values())))
    for shard in shards:
        if not shard.is_file():
            raise CheckpointError(shard, f"is missing; {path.name} names it", hint="download all shards")
    return Index(path, places, shards, extra)


def plain_name(name: Any) -> str:
    """`name` if it is a file name in the same folder; ValueError for anything that could lead elsewhere."""
    if not isinstance(name, str) or name in ("", ".", "..") or set(name) & set("/\\:") or not name.isprintable():
        raise ValueError(f"{name!r} is not a plain file name")
    return name
