"""A report as one HTML file that needs no network: readable on a phone, in the dark, on paper and without scripts.

Every name in it is data of strangers, and escaped.
"""

from __future__ import annotations

from .curve import CurvePoint
from .page import render

__all__ = ["CurvePoint", "render"]
