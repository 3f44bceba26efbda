"""Dictionaries: atoms that predict the weights of a layer. Tensors in, tensors out; no file, no layer name."""

from __future__ import annotations

BASES = ("patch", "mirror", "cosine")
"""Of kernels."""
NAMES = ("none", "lowrank", *BASES, *(f"lowrank+{one}" for one in BASES))
"""What a layer can be asked to use."""
