"""How a size is best shared among layers without data: accuracy of real models at equal size under several distortion
measures.

Usage:  python benchmarks/allocation.py BENCH_FOLDER [--models resnet20,…] [--out benchmarks/results/allocation.json]

A measure gives each matrix a relative error of t * weight(layer); t is searched until the file has the size that
equal relative errors of LEVEL need, within half a per cent.

equal      the same relative error everywhere
size-0.25  relative error grows with the fourth root of the layer's weights (n ** 0.25)
size-0.5   with the square root: least total relative squared error
absolute   the same mean squared error in every weight: least total squared error
between    the geometric mean of size-0.25 and absolute
width      relative error grows with the fourth root of the inputs of a feature (n_in * K)
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from defaults import CHECKPOINTS, UNITS, metric_of
from origin import origin

import paramcompress
from paramcompress.plan import is_matrix

LEVELS = (0.1, 0.2)
Weight = Callable[[torch.Tensor], float]
MEASURES: Mapping[str, Weight] = {
    "equal": lambda w: 1.0,
    "size-0.25": lambda w: w.numel() ** 0.25,
    "size-0.5": lambda w: w.numel() ** 0.5,
    "absolute": lambda w: 1 / float(w.square().mean().sqrt()),
    "between": lambda w: w.numel() ** 0.125 / float(w.square().mean().sqrt()) ** 0.5,
    "width": lambda w: (w.numel() / w.shape[0]) ** 0.25,
}


def squeeze_at(source: Path, out: Path, shares: Mapping[str, float], t: float) -> int:
    layers = {name: {"max_rel_error": min(t * share, 1.0)} for name, share in shares.items()}
    return paramcompress.squeeze(source, out, layers=layers, force=True, verify=False).bytes_after


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("bench", type=Path)
    parser.add_argument("--models", default=",".join(CHECKPOINTS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "allocation.json")
    args = parser.parse_args()
    sys.path.insert(0, str(args.bench))
    record: dict[str, Any] = (
        json.loads(args.out.read_text())
        if args.out.exists()
        else {
            "name": "allocation",
            "command": "python benchmarks/allocation.py BENCH_FOLDER",
            **origin(),
            "results": [],
        }
    )
    known = {(row["model"], row["level"], row["measure"]) for row in record["results"]}
    for name in args.models.split(","):
        measure = metric_of(name)
        source = args.bench.parent / "data" / "checkpoints" / CHECKPOINTS[name]
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "squeezed.safetensors"
            paramcompress.squeeze(source, out, max_rel_error=0.0)
            originals = {
                k: w
                for k, w in paramcompress.load_file(out).items()
                if w.is_floating_point() and is_matrix(tuple(w.shape))
            }
            for level in LEVELS:
                goal = squeeze_at(source, out, dict.fromkeys(originals, 1.0), level)
                for label, weight in MEASURES.items():
                    if (name, level, label) in known:
                        continue
                    raw = {k: weight(w) for k, w in originals.items()}
                    centre = math.exp(sum(map(math.log, raw.values())) / len(raw))
                    shares = {k: value / centre for k, value in raw.items()}
                    low, high = level / 4, level * 4
                    for _ in range(12):
                        t = math.sqrt(low * high)
                        size = squeeze_at(source, out, shares, t)
                        if abs(size / goal - 1) < 0.005:
                            break
                        low, high = (t, high) if size > goal else (low, t)
                    row = {
                        "model": name, "level": level, "measure": label, "bytes": size,
                        "metric": round(measure(paramcompress.load_file(out)), 4), "unit": UNITS[name],
                    }  # fmt: skip
                    record["results"].append(row)
                    print(row, flush=True)
                    args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
