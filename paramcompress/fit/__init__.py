"""What a layer is made of: the dictionary, rank, step and points that take fewest bytes at a given error.

Knows no files, no names and no other layer. `factors` is the way in; the other rooms are what it asks.
"""

from __future__ import annotations

from paramcompress.fit.factors import EFFORTS, Choice, Effort, fit
from paramcompress.fit.search import Unfit

__all__ = ["EFFORTS", "Choice", "Effort", "Unfit", "fit"]
