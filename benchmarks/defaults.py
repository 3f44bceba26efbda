"""What a relative error in every matrix does to the accuracy of real models, and what sharing a size in other ways
does.

Usage:  python benchmarks/defaults.py BENCH_FOLDER [--models resnet20,…] [--out benchmarks/results/defaults.json]

BENCH_FOLDER holds cifar_resnet.py and sequence_models.py with their data beside it. Every figure is measured on the
weights that come back from the file. Resumes: what the output file holds already is not measured again.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from origin import origin

import paramcompress

LEVELS = (0.0, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2)
CHECKPOINTS = {
    "resnet20": "resnet20_cifar10.th",
    "resnet32": "resnet32_cifar10.th",
    "vit": "vit_mnist.pth",
    "stories": "stories260K.pt",
    "lstm": "char_lstm_shakespeare.pt",
}
UNITS = {"resnet20": "%", "resnet32": "%", "vit": "%", "stories": "perplexity", "lstm": "bits per character"}


def metric_of(name: str) -> Callable[[dict[str, torch.Tensor]], float]:
    """Function from weights to the published metric of a model."""
    resnets = importlib.import_module("cifar_resnet")
    sequences = importlib.import_module("sequence_models")
    if name.startswith("resnet"):
        build, metric = getattr(resnets, f"build_{name}"), resnets.accuracy
    else:
        build, metric = getattr(sequences, f"build_{name}"), getattr(sequences, f"{name}_metric")

    def measure(weights: dict[str, torch.Tensor]) -> float:
        model = build()
        missing, unexpected = model.load_state_dict(weights, strict=False)
        missing = [key for key in missing if "num_batches" not in key]
        assert not unexpected, unexpected
        assert not missing, missing
        return float(metric(model))

    return measure


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("bench", type=Path)
    parser.add_argument("--models", default=",".join(CHECKPOINTS))
    parser.add_argument("--levels", default=",".join(map(str, LEVELS)))
    parser.add_argument("--effort", default="default")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "defaults.json")
    args = parser.parse_args()
    sys.path.insert(0, str(args.bench))
    done: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {}
    results = done.setdefault("results", [])
    known = {(row["model"], row["max_rel_error"]) for row in results}
    for name in args.models.split(","):
        measure = metric_of(name)
        source = args.bench.parent / "data" / "checkpoints" / CHECKPOINTS[name]
        for level in map(float, args.levels.split(",")):
            if (name, level) in known:
                continue
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "squeezed.safetensors"
                report = paramcompress.squeeze(source, out, max_rel_error=level, effort=args.effort)
                weights = paramcompress.load_file(out)
            row = {
                "model": name,
                "max_rel_error": level,
                "metric": round(measure(weights), 4),
                "unit": UNITS[name],
                "bytes_before": report.bytes_before,
                "bytes_after": report.bytes_after,
            }
            results.append(row)
            print(row, flush=True)
            done.update(
                name="defaults",
                command="python benchmarks/defaults.py BENCH_FOLDER",
                **origin(),
                threads=torch.get_num_threads(),
                seed=0,
            )
            args.out.parent.mkdir(exist_ok=True)
            args.out.write_text(json.dumps(done, indent=1) + "\n")


if __name__ == "__main__":
    main()
