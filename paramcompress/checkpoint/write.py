"""Writing a checkpoint from its tree, in the kind it came in or in another."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import OutputError
from .folders import TORCH_SUFFIXES, plain_name
from .records import Node, TensorInfo
from .safetensors_files import write_file
from .stand_ins import Call
from .tensors import Composite, TensorRef
from .torch_files import quiet, write_object
from .tree import decode

VALUES_KEY = "checkpoint_values"
"""Metadata key of a safetensors file that holds, as JSON, the plain values of the torch file it was made from."""


def kind_for(path: str | Path) -> str | None:
    """The kind of checkpoint a suffix asks for; None, which stands for the source's own kind, for any other."""
    suffix = Path(path).suffix.lower()
    return "safetensors" if suffix == ".safetensors" else "torch" if suffix in TORCH_SUFFIXES else None


def write_checkpoint(
    path: str | Path,
    tree: Node,
    tensors: Sequence[TensorInfo],
    load: Callable[[str], Tensor],
    *,
    kind: str | None = None,
) -> tuple[str, ...]:
    """Write the checkpoint of that tree to `path`: the same names, nesting, order, dtypes, shapes, ties, plain values.

    Args:
        path: a file, or for "sharded" a folder, which is made if need be. Written in place: renaming is the caller's.
        tree: `Checkpoint.tree`, also after a round trip through JSON.
        tensors: one description for each tensor that the tree refers to.
        load: gives the values; called once for each tensor that is not an alias, in the order of the file.
        kind: "torch", "safetensors" or "sharded"; None for that of the source. In a torch file made from
            another kind, and in a safetensors file made from another kind, tensors lie flat under their public names.

    Returns:
        What the written kind has no place for, one line each.

    Raises:
        OutputError: no space, no permission, or a kind that cannot hold this checkpoint.
        ValueError: tree, descriptions and tensors do not belong together: the file they come from is damaged.

    Cost: memory of the largest tensor.
    """
    path = Path(path)
    infos = _checked(tree, tensors)
    try:
        match kind or tree[0], tree:
            case "sharded", ["sharded", index_name, extra, *files]:
                _write_shards(path, plain_name(index_name), decode(extra), files, infos, load)
                return ()
            case "sharded", _:
                raise OutputError(path, "only a sharded checkpoint is written as a folder", hint="name a file")
            case one, _:
                return _write_one(path, tree, one, infos, load)
    except OSError as error:
        raise OutputError(path, error.strerror or str(error)) from error


def _checked(tree: Node, tensors: Sequence[TensorInfo]) -> dict[str, TensorInfo]:
    """The descriptions by name, if they are those of the tree's tensors and aliases look like what they are tied to."""
    infos = {info.name: info for info in tensors}
    match tree:
        case [("torch" | "safetensors"), *_]:
            roots = [tree]
        case ["sharded", str(), _, *files] if len(files) % 2 == 0:
            roots = files[1::2]
        case _:
            raise ValueError(f"not the tree of a checkpoint: {str(tree)[:40]}")
    names = sorted(ref.name for root in roots for _, ref in _refs(_decoded(root)))
    if names != sorted(infos):
        raise ValueError(f"the tree has {len(names)} tensors, {len(infos)} others are described")
    for info in tensors:
        tied = infos.get(info.alias_of or info.name)
        if tied is None or tied.alias_of or (tied.dtype, tied.shape) != (info.dtype, info.shape):
            raise ValueError(f"{info} cannot be tied to {tied}")
    return infos


def _decoded(root: Node) -> Any:
    """The values of one file."""
    if not isinstance(root, list) or len(root) < 2:
        raise ValueError(f"not the tree of a file: {str(root)[:40]}")
    with quiet():  # importing numpy's old names warns
        return decode(root[-1])


def _write_one(
    path: Path, root: Node, kind: str, infos: Mapping[str, TensorInfo], load: Callable[[str], Tensor]
) -> tuple[str, ...]:
    match kind, root:
        case "torch", ["torch", _]:
            write_object(path, _decoded(root), infos, load)
            return ()
        case "torch", _:
            write_object(path, {name: TensorRef(name) for name in infos}, infos, load)
            return ("metadata of safetensors files is left out: torch files have no place for it",)
        case "safetensors", ["safetensors", metadata, _]:
            refs, texts = _decoded(root), decode(metadata)
            if not _is_map(refs, TensorRef) or not _is_map(texts, str):
                raise ValueError("not the tree of a safetensors file")
            write_file(path, texts, [(name, infos[ref.name]) for name, ref in refs.items()], load)
            return ()
        case "safetensors", ["torch", _]:
            values = _readable(_decoded(root))
            metadata = {VALUES_KEY: json.dumps(values)} if values else {}
            write_file(path, {"format": "pt", **metadata}, [(name, infos[name]) for name in infos], load)
            tied = sum(info.alias_of is not None for info in infos.values())
            return (f"{tied} tied tensors are written out in full: safetensors cannot share them",) if tied else ()
        case "safetensors", ["sharded", *_]:
            write_file(path, {"format": "pt"}, [(name, infos[name]) for name in infos], load)
            return ()
    raise ValueError(f"{kind!r} cannot be written from the tree {str(root)[:40]}")


def _is_map(value: Any, kind: type) -> bool:
    """Whether a value maps texts to what is of a kind, and nothing else."""
    return type(value) is dict and all(type(key) is str and type(one) is kind for key, one in value.items())


def _write_shards(
    folder: Path,
    index_name: str,
    extra: dict[str, Any],
    files: list[Node],
    infos: Mapping[str, TensorInfo],
    load: Callable[[str], Tensor],
) -> None:
    if len({index_name.casefold(), *(str(name).casefold() for name in files[::2])}) <= len(files[::2]):
        raise ValueError("two files of the folder have one name")
    folder.mkdir(parents=True, exist_ok=True)
    weight_map: dict[str, str] = {}
    for name, root in zip(map(plain_name, files[::2]), files[1::2], strict=True):
        refs = dict(_refs(_decoded(root)))
        weight_map |= dict.fromkeys(refs, name)
        inside = {ref.name: infos[ref.name] for ref in refs.values()}
        _write_one(folder / name, root, root[0], inside, load)
    try:
        text = json.dumps({**extra, "weight_map": dict(sorted(weight_map.items()))}, indent=2) + "\n"
    except TypeError as error:
        raise ValueError(f"not the rest of an index ({error})") from error
    (folder / index_name).write_text(text, encoding="utf-8")


def _refs(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, TensorRef]]:
    """Every tensor below `value` with its name in the file."""
    if isinstance(value, TensorRef):
        yield ".".join(path), value
    elif isinstance(value, Composite):
        yield from _refs(value.parts.get("", value.parts), path)
    elif isinstance(value, Call):
        yield from _refs([value.args, value.state, value.body], path)
    elif isinstance(value, dict | list | tuple):
        for key, item in dict.items(value) if isinstance(value, dict) else enumerate(value):
            yield from _refs(item, (*path, str(key)))


def _readable(value: Any) -> Any:
    """Plain values for a reader's eye, as JSON; None for tensors and for what holds nothing else."""
    if isinstance(value, TensorRef | Composite):
        return None
    if isinstance(value, Call):
        return _readable(value.state or value.body or list(value.args))
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if isinstance(value, dict):
        kept = {str(key): _readable(item) for key, item in dict.items(value)}
        return {key: item for key, item in kept.items() if item is not None} or None
    if isinstance(value, list | tuple):
        items = [_readable(item) for item in value]
        return items if any(item is not None for item in items) else None
    return value if value is None or isinstance(value, bool | int | float | str) else repr(value)
