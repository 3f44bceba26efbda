"""How far the layers of a model that is squeezed with data are from what any code could do: bits and cost of each
against the rate-distortion bound of a Gaussian weight.

Usage:  python benchmarks/bound.py BENCH_FOLDER [--model resnet32] [--level 0.12] [--out FILE]

A layer W is quantised at a price of a bit, its error costs the sum over rows of worth_i e_i^T M e_i, and what is
minimised is J = bits + cost / price. If row i of W, in the coordinates of its dictionary, were drawn from a Gaussian of
covariance v_i diag(s)^2, reverse water-filling over the eigenvalues of v_i worth_i diag(s) M diag(s) would give the
least J of all codes that know v, s and M. Ours have to be told what stands for v and s, and the bound is flattered by
taking the measured ones for true. Rows count alone here: their coupling is left out on both sides.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from calibrated import builder_and_batches
from defaults import CHECKPOINTS
from origin import origin

import paramcompress
from paramcompress import layer, prices
from paramcompress.calibrated import Calibrated
from paramcompress.checkpoint import TensorInfo
from paramcompress.fit import EFFORTS
from paramcompress.metric_fit import MetricFit

LEAST_COLUMNS = 100
"""Of layers that are looked at."""


def bound_of(fit: MetricFit, price: float) -> tuple[float, float]:
    """Bits and cost / price where reverse water-filling has the slope of that price, in the fit's dictionary."""
    assert fit.dictionary is not None
    found = fit._coordinates(fit.dictionary)
    scale = np.sqrt(found.space.column_square)
    spectra = [np.linalg.eigvalsh(metric * scale[:, None] * scale) for metric in found.space.metrics[0]]
    water = price / (2 * math.log(2))
    per_row = ((found.x**2).mean(0) * fit.metric.rows).reshape(len(spectra), -1)
    bits = cost = 0.0
    for spectrum, rows in zip(spectra, per_row, strict=True):
        variances = np.maximum(spectrum, 0)[:, None] * rows
        bits += 0.5 * float(np.log2(np.maximum(variances / water, 1)).sum())
        cost += float(np.minimum(variances, water).sum())
    return bits, cost / price


def row_of(name: str, tensor: torch.Tensor, fit: MetricFit, price: float) -> dict[str, Any]:
    """What one layer takes, and what it might take, in bits a weight."""
    factors = fit.at(price)
    piece = layer.piece_of(TensorInfo(name, "float32", tuple(tensor.shape)), tensor, factors)
    n = tensor.numel()
    stored = factors.stored
    side = 0.0 if stored is None or stored.scales is None else prices.class_bits(stored.scales, fit.layout.kernel_size)
    bits, cost = 8 * len(piece.stream), fit.metric.cost(factors.reconstruct() - fit.weight) / price
    least_bits, least_cost = bound_of(fit, price)
    assert fit.dictionary is not None
    per_weight = {
        "bits": bits,
        "cost": cost,
        "bound_bits": least_bits,
        "bound_cost": least_cost,
        "excess": bits + cost - least_bits - least_cost,
        "classes_and_basis": side + 8 * fit.dictionary.n_bytes,
    }
    return {"layer": name, "rows": len(tensor), "weights": n} | {key: round(v / n, 4) for key, v in per_weight.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("bench", type=Path)
    parser.add_argument("--model", default="resnet32")
    parser.add_argument("--level", type=float, default=0.12)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "bound.json")
    args = parser.parse_args()
    sys.path.insert(0, str(args.bench))
    build, batches = builder_and_batches(args.model)
    model = build()
    source = args.bench.parent / "data" / "checkpoints" / CHECKPOINTS[args.model]
    model.load_state_dict(importlib.import_module("cifar_resnet").state_dict(source), strict=False)
    moments = paramcompress.calibrate(model.eval(), batches())
    for name, moment in moments.layers.items():
        moments.layers[name] = replace(moment, coupling=None, mean_free_coupling=None)
    weights = {name: value for name, value in model.state_dict().items() if value.is_floating_point()}
    job = Calibrated(moments, weights, EFFORTS["default"], seed=0, device="cpu", means_return=True)
    price = job.price(args.level)
    rows = []
    for name, fit in job.fits.items():
        if fit.weight.shape[1] >= LEAST_COLUMNS:
            rows.append(row_of(name, weights[name], fit, price))
            print(rows[-1], flush=True)
    record = {
        "name": "bound",
        "command": f"python benchmarks/bound.py BENCH_FOLDER --model {args.model} --level {args.level}",
        **origin(),
        "results": rows,
    }
    args.out.write_text(json.dumps(record, indent=1) + "\n")
    print("| rows of a layer | weights | bits a weight | bound | excess, with its cost | of it classes and basis |")
    print("|---|---|---|---|---|---|")
    for n_rows in sorted({row["rows"] for row in rows}):
        some = [row for row in rows if row["rows"] == n_rows]
        total = sum(row["weights"] for row in some)
        mean = {
            key: sum(row[key] * row["weights"] for row in some) / total
            for key in ("bits", "bound_bits", "excess", "classes_and_basis")
        }
        print(f"| {n_rows} | {total:,} | " + " | ".join(f"{value:.2f}" for value in mean.values()) + " |")


if __name__ == "__main__":
    main()
