"""A look at a torch zip file before torch reads it: that it is one, whole, and means the same to every reader."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import IO

from ..errors import CheckpointError
from .pickles import check_pickles, first_line, merged

_BLOCK_BYTES = 1 << 20
_COPY_AGAIN = "copy or download it again"
_EXPORT = "export its weights: torch.save(torch.jit.load(path).state_dict(), new_path)"


def check_zip(file: IO[bytes], path: Path, item_bytes: Mapping[str, int]) -> int:
    """Check what torch.load would not: whole, stored, checksums right, storages as long as the pickle says.

    Args:
        item_bytes: by class of storage, such as "FloatStorage"; those of all others are bytes.

    Returns the protocol of its pickle.
    """
    refuse = partial(CheckpointError, path)
    try:
        members = zipfile.ZipFile(file).infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error) as error:
        raise refuse(
            f"cut short or damaged: its zip directory cannot be read ({first_line(error)})", hint=_COPY_AGAIN
        ) from error
    names = [member.filename for member in members]
    endings = {name.partition("/")[2] for name in names}
    if names and all(name.endswith(".npy") for name in names):
        raise refuse("found numpy arrays (.npz), not a torch file", hint="load it and pass squeeze a dict of tensors")
    if "data.pkl" not in endings:
        raise refuse("found a zip archive that torch.save did not write", hint="unpack it if the checkpoint is inside")
    if "constants.pkl" in endings:
        raise refuse("found a TorchScript archive, expected a state_dict", hint=_EXPORT)
    n_file = path.stat().st_size
    if len(set(names)) < len(names) or sum(member.file_size for member in members) > n_file:
        raise refuse("members of the zip archive share a name or overlap")
    if not all(0 <= member.header_offset < n_file for member in members):
        raise refuse("cut short or damaged: its zip directory points outside the file", hint=_COPY_AGAIN)
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED:
            raise refuse(f"{member.filename!r} is compressed inside the zip", hint="save it with torch.save")
        if member.CRC not in (0, _crc(file, member)):  # 0: torch was told not to compute them
            raise refuse(f"damaged or cut short: {member.filename!r} does not match its checksum", hint=_COPY_AGAIN)
    pickles = [member for member in members if member.filename.endswith("/data.pkl")]
    look = merged([check_pickles(BytesIO(b"".join(_blocks(file, member))), path) for member in pickles])
    lengths = {member.filename.partition("/")[2]: member.file_size for member in members}
    for key, kind, n_items in sorted(look.storages):
        # torch maps the file and would take what lies behind a short member for weights
        wanted, n_bytes = n_items * item_bytes.get(kind.rpartition(" ")[2], 1), lengths.get(f"data/{key}", 0)
        if n_bytes < wanted:
            raise refuse(
                f"damaged: its storage 'data/{key}' ends early: {wanted:,} bytes expected, {n_bytes:,} found",
                hint=_COPY_AGAIN,
            )
    return look.protocol


def _blocks(file: IO[bytes], member: zipfile.ZipInfo) -> Iterator[bytes]:
    """The content of a stored member, as much of it as there is."""
    file.seek(member.header_offset + 26)
    file.seek(sum(struct.unpack("<HH", file.read(4).ljust(4, b"\0"))), os.SEEK_CUR)
    n_left = member.file_size
    while n_left > 0 and (block := file.read(min(n_left, _BLOCK_BYTES))):
        n_left -= len(block)
        yield block


def _crc(file: IO[bytes], member: zipfile.ZipInfo) -> int:
    crc = 0
    for block in _blocks(file, member):
        crc = zlib.crc32(block, crc)
    return crc
