"""Prints one hash of every tensor in the squeezed files that it is given; run in processes with other settings.

python tests/bits.py WORKERS FILE...
"""

from __future__ import annotations

import hashlib
import sys

import torch

import paramcompress

ENVIRONMENTS: dict[str, dict[str, str]] = {
    **{f"{n} threads": {"OMP_NUM_THREADS": n, "MKL_NUM_THREADS": n, "NUMBA_NUM_THREADS": n} for n in "124"},
    **{f"ATEN_CPU_CAPABILITY={name}": {"ATEN_CPU_CAPABILITY": name} for name in ("default", "avx2", "avx512")},
    "loops for any processor": {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""},
}
"""What may differ between two machines, as far as one machine can play it."""


def main(workers: int, files: list[str]) -> None:
    """Print a line for each file: hash of names, dtypes, shapes and bits."""
    for file in files:
        digest = hashlib.sha256()
        for name, tensor in paramcompress.load_file(file, workers=workers).items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            if tensor.numel():
                digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        print(digest.hexdigest())


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
