"""What a few hundred unlabelled inputs are worth: bytes and accuracy with data, without data, and of NNCodec.

Usage:  python benchmarks/calibrated.py BENCH_FOLDER [--peer-python PEER/bin/python] [--models M,...] [--plot FILE]

BENCH_FOLDER holds cifar_resnet.py and sequence_models.py with their data beside it. Calibration inputs come from the
training data, metrics from all test data, and every figure is measured on the weights that come back from the file. Of
the ResNets it is also said how near they come to the original on the test images, which scatters less than how often
they are right. The peer's points are measured once, with --peer-python, and kept in the output file. Resumes: what the
output file holds already is not measured again.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from defaults import CHECKPOINTS, UNITS, metric_of
from origin import origin

import paramcompress

PEER_QP = (-24, -22, -20)
SHARES = (0.5, 0.45)
"""Of the peer's bytes, which calibrated files of the ResNets may have."""
BITS = {"vit": (0.5, 0.75, 1.0, 1.5, 2.0), "stories": (1.5, 2.0, 2.5, 3.0, 4.0), "lstm": (1.0, 1.5, 2.0, 3.0, 4.0)}
"""Bits per weight at which the other models are squeezed, with and without data."""
OUT = Path(__file__).parent / "results" / "calibrated.json"


def builder_and_batches(name: str) -> tuple[Any, Any]:
    """What `--model` and `--data` would name."""
    if name.startswith("resnet"):
        module = importlib.import_module("cifar_resnet")
        return getattr(module, f"build_{name}"), module.calibration_batches
    module = importlib.import_module("sequence_models")
    return getattr(module, f"build_{name}"), getattr(module, f"{name}_batches")


def nearness(name: str, source: Path) -> Callable[[dict[str, torch.Tensor]], dict[str, float]]:
    """Function from weights of a ResNet to how near their logits on the test images are to the original's: squared
    relative change, and how many answers in a hundred are the same."""
    cifar = importlib.import_module("cifar_resnet")
    images = cifar.images("test")[0]

    @torch.inference_mode()
    def logits(weights: dict[str, torch.Tensor]) -> torch.Tensor:
        model = getattr(cifar, f"build_{name}")()
        model.load_state_dict(weights, strict=False)
        return torch.cat([model(some) for some in images.split(500)])

    original = logits(cifar.state_dict(source))

    def measure(weights: dict[str, torch.Tensor]) -> dict[str, float]:
        found = logits(weights)
        return {
            "change": round(float((found - original).square().sum() / original.square().sum()), 5),
            "same_answers": round(100 * float((found.argmax(1) == original.argmax(1)).double().mean()), 2),
        }

    return measure


def peer_points(name: str, source: Path, bench: Path, python: str) -> list[dict[str, Any]]:
    """Bytes and metric of NNCodec at PEER_QP."""
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "plain.safetensors"
        subprocess.run([sys.executable, bench / "prepare.py", source, plain], check=True, stdout=subprocess.DEVNULL)
        script = Path(__file__).parent / "peer_points.py"
        command = [python, str(script), str(plain), ",".join(map(str, PEER_QP)), folder]
        sizes = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        cifar = importlib.import_module("cifar_resnet")
        measure, near = metric_of(name), nearness(name, source)
        found = []
        for qp in PEER_QP:
            weights = cifar.state_dict(Path(folder) / f"{qp}.safetensors")
            row = {"model": name, "codec": "nncodec", "qp": qp, "bytes": sizes[str(qp)]}
            found.append(row | {"metric": round(measure(weights), 4)} | near(weights))
        return found


def squeezed(name: str, source: Path, size: int, *, with_data: bool, effort: str) -> dict[str, Any]:
    """Bytes, metric and seconds of one file."""
    options: dict[str, Any] = {}
    start = time.perf_counter()
    if with_data:
        build, batches = builder_and_batches(name)
        options = {"model": build(), "batches": batches()}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "squeezed.safetensors"
        report = paramcompress.squeeze(source, out, target_size=size, effort=effort, **options)
        seconds = time.perf_counter() - start
        weights = paramcompress.load_file(out)
    near = nearness(name, source)(weights) if name.startswith("resnet") else {}
    return {
        "model": name,
        "codec": "calibrated" if with_data else "data-free",
        "target": size,
        "effort": effort,
        "bytes": report.bytes_after,
        "bytes_before": report.bytes_before,
        "metric": round(metric_of(name)(weights), 4),
        "unit": UNITS[name],
        **near,
        "seconds": round(seconds, 1),
    }


def plan_of(name: str, source: Path, peers: list[dict[str, Any]]) -> list[tuple[int, bool]]:
    """Sizes to squeeze to, and whether with data."""
    if name.startswith("resnet"):
        shares = [(int(share * peer["bytes"]), True) for share in SHARES for peer in peers]
        return shares + [(peer["bytes"], False) for peer in peers]
    weights = paramcompress.squeeze(source, "unused", dry_run=True, max_rel_error=1.0).n_weights
    return [(int(bits * weights / 8), with_data) for bits in BITS[name] for with_data in (False, True)]


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Metric against bytes: one chart for each model, a line for each codec."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = [name for name in CHECKPOINTS if any(row["model"] == name for row in results)]
    figure, axes = plt.subplots(1, len(names), figsize=(3.6 * len(names), 3.4), layout="constrained", squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        for codec, style in (("calibrated", "o-"), ("data-free", "s--"), ("nncodec", "^:")):
            rows = sorted(
                (row["bytes"], row["metric"])
                for row in results
                if (row["model"], row["codec"]) == (name, codec) and row.get("effort") != "max"
            )
            if rows:
                axis.plot([size / 1000 for size, _ in rows], [value for _, value in rows], style, label=codec, ms=4)
        axis.set_title(name)
        axis.set_xlabel("kB")
        axis.set_ylabel(UNITS[name])
        if "%" not in UNITS[name]:
            axis.set_yscale("log")
        axis.grid(alpha=0.3)
    axes[0][0].legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("bench", type=Path)
    parser.add_argument("--models", default=",".join(CHECKPOINTS))
    parser.add_argument("--effort", default="default")
    parser.add_argument("--peer-python")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    sys.path.insert(0, str(args.bench))
    record: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {"results": []}
    results = record["results"]

    def keep(*rows: dict[str, Any]) -> None:
        for row in rows:
            results.append(row)
            print(row, flush=True)
        record.update(
            name="calibrated",
            command="python benchmarks/calibrated.py BENCH_FOLDER --peer-python PEER/bin/python",
            **origin(),
            threads=torch.get_num_threads(),
            seed=0,
        )
        args.out.parent.mkdir(exist_ok=True)
        args.out.write_text(json.dumps(record, indent=1) + "\n")

    for name in args.models.split(",") if args.models else ():
        source = args.bench.parent / "data" / "checkpoints" / CHECKPOINTS[name]
        peers = [row for row in results if (row["model"], row["codec"]) == (name, "nncodec")]
        if name.startswith("resnet") and not peers:
            if not args.peer_python:
                parser.error("the peer's points are not in the output file yet: --peer-python measures them")
            peers = peer_points(name, source, args.bench, args.peer_python)
            keep(*peers)
        mine = [row for row in results if row["model"] == name and "target" in row]
        done = {(row["target"], row["codec"], row["effort"]) for row in mine}
        for size, with_data in plan_of(name, source, peers):
            if (size, "calibrated" if with_data else "data-free", args.effort) not in done:
                keep(squeezed(name, source, size, with_data=with_data, effort=args.effort))
    if args.plot:
        draw(results, args.plot)


if __name__ == "__main__":
    main()
