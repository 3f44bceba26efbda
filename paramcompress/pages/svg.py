"""Drawing with text: elements of SVG and HTML, every attribute and text escaped. Knows no report."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from ..tables import printable

WIDTH = 420
"""Units that every chart is wide: on a phone about a pixel each, so that its text stays readable."""


def text_of(value: object) -> str:
    """A value as text that can stand anywhere in HTML."""
    return escape(printable(str(value)), quote=True)


def element(tag: str, content: str = "", /, **attributes: object) -> str:
    """One element; `content` is markup already. A trailing _ and inner _ in attribute names become nothing and -.

    >>> element("text", "a", x=1.25, class_="name", text_anchor="end")
    '<text x="1.25" class="name" text-anchor="end">a</text>'
    """
    words = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{_value(value)}"'
        for name, value in attributes.items()
        if value is not None
    )
    return f"<{tag}{words}>{content}</{tag}>"


def chart(height: float, content: Iterable[str], label: str, width: float = WIDTH) -> str:
    """A picture that scales with its place; `label` is what is read aloud."""
    return element(
        "svg",
        element("title", text_of(label)) + "".join(content),
        viewBox=f"0 0 {width:g} {height:g}",
        role="img",
        aria_label=label,
    )


def label(x: float, y: float, text: object, class_: str | None = None, anchor: str | None = None) -> str:
    """Text that begins, ends or has its middle at x."""
    return element("text", text_of(text), x=x, y=y, class_=class_, text_anchor=anchor)


def bar(x: float, y: float, width: float, height: float, class_: str, title: str = "") -> str:
    """A rectangle, at least a hair wide, with a tooltip."""
    tip = element("title", text_of(title)) if title else ""
    return element("rect", tip, x=x, y=y, width=max(width, 1.0), height=height, rx=min(3.0, height / 2), class_=class_)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> str:
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def polyline(points: Iterable[tuple[float, float]], class_: str) -> str:
    return element("polyline", points=" ".join(f"{_number(x)},{_number(y)}" for x, y in points), class_=class_)


def dot(x: float, y: float, class_: str, title: str = "", radius: float = 4) -> str:
    return element("circle", element("title", text_of(title)) if title else "", cx=x, cy=y, r=radius, class_=class_)


def _value(value: object) -> str:
    return _number(value) if isinstance(value, float) else text_of(value)


def _number(value: float) -> str:
    """At most two decimals: files stay small, and the same."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
