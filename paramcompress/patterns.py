"""Which names a pattern means. Knows no layer and no file.

itself, if it is one of the names; else `re:` and a regular expression for the whole name; else a shell glob
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from paramcompress.errors import ConfigError


def matching(pattern: str, names: Sequence[str]) -> list[str]:
    """Names that a pattern means, in their order.

    Raises:
        ConfigError: `re:` and no regular expression.

    >>> matching("fc*", ["conv", "fc1", "fc2"]), matching("re:fc[2-9]", ["conv", "fc1", "fc2"])
    (['fc1', 'fc2'], ['fc2'])
    """
    if pattern in names:
        return [pattern]
    if pattern.startswith("re:"):
        try:
            regex = re.compile(pattern[3:])
        except re.error as error:
            raise ConfigError(f"pattern {pattern!r} is not a regular expression: {error}") from error
        return [name for name in names if regex.fullmatch(name)]
    return [name for name in names if fnmatchcase(name, pattern)]
