"""The door for checkpoints: torch files, safetensors files and sharded folders come in here and go out again.

It knows names, files and nesting, and no compression. Nothing foreign is ever executed.
"""

from __future__ import annotations

from .folders import is_part, others_in
from .read import from_tensors, open_checkpoint
from .records import Checkpoint, TensorInfo
from .renaming import renamed
from .write import kind_for, write_checkpoint

__all__ = [
    "Checkpoint",
    "TensorInfo",
    "from_tensors",
    "is_part",
    "kind_for",
    "open_checkpoint",
    "others_in",
    "renamed",
    "write_checkpoint",
]
