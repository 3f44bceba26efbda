"""Prints one hash for each squeezed file that it is given, of all tensors in it; for processes with other settings.

python tests/bits.py WORKERS FILE...
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping

ENVIRONMENTS: dict[str, dict[str, str]] = {
    **{f"{n} threads": {"OMP_NUM_THREADS": n, "MKL_NUM_THREADS": n, "NUMBA_NUM_THREADS": n} for n in "124"},
    **{f"ATEN_CPU_CAPABILITY={name}": {"ATEN_CPU_CAPABILITY": name} for name in ("default", "avx2", "avx512")},
    "loops for any processor": {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""},
}
"""What may differ between two machines, as far as one machine can play it."""


def digest(tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]]) -> str:
    """Hash of names, dtypes, shapes and bits, in their order; the reference decoder speaks so, too."""
    found = hashlib.sha256()
    for name, (dtype, shape, bits) in tensors.items():
        found.update(f"{name} {dtype} {shape} ".encode() + bits)
    return found.hexdigest()


def main(workers: int, files: list[str]) -> None:
    """Print the hash of each file."""
    from helpers import raw

    import paramcompress

    for file in files:
        found = paramcompress.load_file(file, workers=workers)
        print(digest({name: (str(one.dtype)[6:], tuple(one.shape), raw(one)) for name, one in found.items()}))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
