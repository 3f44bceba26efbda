"""Opening a checkpoint: what kind it is by its content, its tensors named, its ties found."""

from __future__ import annotations

import tarfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from . import folders
from .names import public_names
from .records import Checkpoint, Leaf, Node, TensorInfo, dtype_name
from .safetensors_files import read_header, read_tensor
from .torch_files import LEGACY_MAGIC, quiet, read_object
from .tree import Encoder, call_notes

_EXPECTED = "expected a torch file (.pt, .pth, .bin, …), a .safetensors file or a folder with an index"
_OTHERS = (
    (b"version https://git-lfs", "a git-lfs pointer, not the file itself", "run: git lfs pull"),
    (b"<", "a web page or XML text, perhaps a failed download", "download the file again"),
    (b"\x1f\x8b", "a gzip archive", "unpack it first"),
    (b"BZh", "a bzip2 archive", "unpack it first"),
    (b"\xfd7zXZ", "an xz archive", "unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive", "unpack it first"),
    (b"(\xb5/\xfd", "a zstd archive", "unpack it first"),
    (b"\x89HDF", "an HDF5 file (Keras)", "convert it to safetensors first"),
    (b"GGUF", "a GGUF file", "squeeze the checkpoint it was made from"),
    (b"\x93NUMPY", "a numpy array", "load it with numpy and pass a dict of tensors to paramcompress.squeeze"),
    (b"\x80", "a pickle that torch.save did not write", "save the weights with torch.save(state_dict, path)"),
)
"""First bytes of files that people take for checkpoints."""
_ANY_FILE_MAY_CLAIM_BYTES = 1 << 26
"""A tensor that repeats a few values (expand) is larger than its file; up to this size that is believed."""
_READ_WHOLE = "written before torch 1.6: read into memory as a whole"


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a torch file, a safetensors file, or a folder or index of shards, by content and not by suffix.

    Tensors stay on disk until `Checkpoint.load`; nothing in the file is run. Raises CheckpointError, one line that
    names file and tensor, for everything that cannot be read in full and in safety.
    """
    path = Path(path)
    try:
        found = folders.locate(path)
        if isinstance(found, Path):
            kind, root, leaves, notes, left_out = _read_file(found)
            file_bytes = found.stat().st_size
        else:
            kind, left_out = "sharded", dict[str, Any]()
            root, leaves, notes = _read_shards(found)
            file_bytes = sum(shard.stat().st_size for shard in (found.path, *found.shards))
    except OSError as error:
        raise CheckpointError(path, error.strerror or str(error)) from error
    return _assemble(path, kind, file_bytes, root, leaves, notes, left_out)


def from_tensors(tensors: Mapping[str, Any]) -> Checkpoint:
    """A checkpoint of a dict of tensors in memory, nested as it may be, with plain values beside them."""
    encoder = Encoder("the dict")
    with quiet():
        node = encoder.encode(tensors if isinstance(tensors, dict) else dict(tensors))
    notes = encoder.notes + call_notes(encoder.calls)
    return _assemble(None, "dict", None, ["torch", node], encoder.leaves, notes, encoder.left_out)


def _read_file(path: Path) -> tuple[str, Node, list[Leaf], list[str], dict[str, Any]]:
    """Kind, tree, tensors, notes and optimizer states of one file."""
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise CheckpointError(path, f"found an empty file; {_EXPECTED}", hint="copy or download it again")
    if _is_tar(head):  # also what torch would take for one, behind whatever first bytes
        raise CheckpointError(path, f"found a tar archive; {_EXPECTED}", hint="unpack it first")
    if head.startswith((b"PK\x03\x04", LEGACY_MAGIC)):
        return "torch", *_read_torch(path, is_legacy=head[:1] == LEGACY_MAGIC[:1])
    for magic, what, hint in _OTHERS:
        if head.startswith(magic) and head[8:9] != b"{":
            raise CheckpointError(path, f"found {what}; {_EXPECTED}", hint=hint)
    if head[8:9] == b"{" or path.suffix == ".safetensors":
        node, leaves = _read_safetensors(path)
        return "safetensors", node, leaves, [], {}
    raise CheckpointError(path, f"found no checkpoint in it; {_EXPECTED}")


def _is_tar(head: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError):
        return head[257:262] == b"ustar"
    return True


def _read_torch(path: Path, *, is_legacy: bool) -> tuple[Node, list[Leaf], list[str], dict[str, Any]]:
    value, bodies = read_object(path)
    encoder = Encoder(path, bodies, max_tensor_bytes=max(path.stat().st_size, _ANY_FILE_MAY_CLAIM_BYTES))
    with quiet():
        node = encoder.encode(value)
    notes = encoder.notes + call_notes(encoder.calls) + [_READ_WHOLE] * is_legacy
    return ["torch", node], encoder.leaves, notes, encoder.left_out


def _read_safetensors(path: Path) -> tuple[Node, list[Leaf]]:
    metadata, entries = read_header(path)
    node: list[Node] = ["dict"]
    leaves = []
    for entry in entries:
        leaf = Leaf((entry.name,), ["t"], entry.dtype, entry.shape, partial(read_tensor, path, entry))
        leaves.append(leaf)
        node += [entry.name, leaf.node]
    return ["safetensors", Encoder(path).encode(metadata), node], leaves


def _read_shards(index: folders.Index) -> tuple[Node, list[Leaf], list[str]]:
    root: list[Node] = ["sharded", index.path.name, Encoder(index.path).encode(index.extra)]
    leaves: list[Leaf] = []
    notes: list[str] = []
    home: dict[str, Path] = {}
    for shard in index.shards:
        _, node, inside, more, _ = _read_file(shard)
        root += [shard.name, node]
        for leaf in inside:
            if (other := home.setdefault(leaf.full_name, shard)) is not shard:
                raise CheckpointError(shard, f"is also in {other.name}", tensor=leaf.full_name)
        leaves += inside
        notes += more
    for name, shard in index.places.items():
        if home.get(name) != shard:
            raise CheckpointError(
                shard,
                f"{index.path.name} says it is here, and it is not",
                tensor=name,
                hint="download the shards again",
            )
    return root, leaves, notes


def _assemble(
    path: Path | None,
    kind: str,
    file_bytes: int | None,
    root: Node,
    leaves: Sequence[Leaf],
    notes: Sequence[str],
    left_out: dict[str, Any],
) -> Checkpoint:
    """Give every leaf its public name, and tie those that share memory."""
    if not leaves:
        beside = f" beside the optimizer state in {', '.join(left_out)}" if left_out else ""
        raise CheckpointError(path or "the dict", f"holds no tensor{beside}", hint="save model.state_dict()")
    # a safetensors file is flat, and whoever opens it elsewhere sees its names as they stand
    names, prefix = public_names([leaf.path for leaf in leaves], shorten=kind in ("torch", "dict"))
    infos, readers = [], dict[str, Any]()
    first: dict[Any, str] = {}
    for leaf, name in zip(leaves, names, strict=True):
        full = leaf.full_name
        leaf.node.insert(1, len(full) - len(name) if full.endswith(name) else name)
        tied = first.setdefault(leaf.identity, name) if leaf.identity is not None else name
        infos.append(TensorInfo(name, dtype_name(leaf.dtype), leaf.shape, tied if tied != name else None))
        readers[name] = leaf.read
    if prefix:
        notes = [f"names are shown without {prefix!r}; expand puts it back", *notes]
    return Checkpoint(path, kind, file_bytes, tuple(infos), root, tuple(notes), left_out, readers)
