"""Public names: the paths of all tensors -> short, unique, deterministic names. Knows no tensor and no file."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from .records import KeyPath, full_name

_WRAPPER = re.compile(
    r"(.*_)?state_dict|(model|net|network|module|ema|model_ema)(_(state|weights|params))?|weights|params|parameters"
)
_NEARLY_ALL = 0.9
"""Share of the tensors in dicts that a wrapper holds, if others hold any."""
_PREFIXES = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before every name."""


def public_names(paths: Sequence[KeyPath], *, shorten: bool = True) -> tuple[list[str], str]:
    """A name for each path, and the prefix that was taken off those under the wrapper ("" for none).

    Off come a wrapper such as "state_dict." where that dict holds nearly all tensors (those beside it keep their
    names), then "module." where all names under it have it. If short names would collide, all stay long; equal long
    names ({"a": {"b": …}, "a.b": …}) are numbered: "a.b", "a.b#2". Without `shorten` nothing comes off.
    """
    full = [full_name(path) or "tensor" * (not path) for path in paths]
    if not shorten:
        return _numbered([_printable(name) for name in full]), ""
    prefix, wrapped = _wrapper(paths)
    for extra in _PREFIXES * 2:
        if wrapped and all(full[i].startswith(prefix + extra) and full[i] != prefix + extra for i in wrapped):
            prefix += extra
    short = list(full)
    for i in wrapped:
        short[i] = full[i].removeprefix(prefix)
    if "" in (short[i] for i in wrapped if full[i]) or len(set(short)) < len(set(full)):
        short, prefix = full, ""
    return _numbered([_printable(name) for name in short]), prefix


def _printable(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()


def _wrapper(paths: Sequence[KeyPath]) -> tuple[str, list[int]]:
    """The wrapper's dotted prefix and the indices of the paths under it (all, when there is none)."""
    prefix, wrapped, depth = "", list(range(len(paths))), 0
    while True:
        inside = [i for i in wrapped if len(paths[i]) > depth + 1 and isinstance(paths[i][depth + 1], str)]
        counts = Counter(paths[i][depth] for i in inside)
        key, count = counts.most_common(1)[0] if counts else ("", 0)
        if not isinstance(key, str) or not _WRAPPER.fullmatch(key) or count < _NEARLY_ALL * len(inside):
            return prefix, wrapped
        wrapped = [i for i in wrapped if paths[i][depth] == key and len(paths[i]) > depth + 1]
        prefix, depth = f"{prefix}{key}.", depth + 1


def _numbered(names: list[str]) -> list[str]:
    taken, out = set(names), list[str]()
    seen: dict[str, int] = {}
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        unique = name
        while seen[name] > 1 and unique in taken:
            unique = f"{name}#{seen[name]}"
            seen[name] += unique in taken
        taken.add(unique)
        out.append(unique)
    return out
