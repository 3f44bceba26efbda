"""Dictionaries: atoms that predict the weights of a layer. Tensors in, tensors out; no file, no layer name."""

from __future__ import annotations

TRANSFORMS = ("patch", "mirror", "cosine")
"""Bases of kernels."""
NAMES = ("none", "lowrank", *TRANSFORMS, *(f"lowrank+{one}" for one in TRANSFORMS))
"""What a layer can be asked to use."""
