"""Dictionaries: atoms that predict the weights of a layer. Tensors in, tensors out; no file, no layer name."""

from __future__ import annotations

NAMES = ("none", "lowrank", "patch", "cosine", "lowrank+patch", "lowrank+cosine")
"""What a layer can be asked to use."""
