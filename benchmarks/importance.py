"""What Adam's squared gradients in a training checkpoint are worth: accuracy at one size, beside data and none.

Usage:  python benchmarks/importance.py [--out benchmarks/results/importance.json]

Trains the convolutional sample model and the perceptron on handwritten digits for a minute, keeps the optimizer's state
as a trainer would, and squeezes the checkpoint to several sizes in three ways. Needs scikit-learn.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from origin import origin
from torch import nn

import paramcompress

ROOT = Path(__file__).parents[1]
BITS = (0.6, 0.8, 1.0, 1.5, 2.0)
N_EPOCHS = 30


def trained(build: Any, models: Any) -> tuple[nn.Module, dict[str, Any]]:
    """A model after training, and the checkpoint with its optimizer."""
    torch.manual_seed(0)
    model = build().train()
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.01)
    images, labels = models.digits(held_out=False)
    for _ in range(N_EPOCHS):
        for chosen in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[chosen]), labels[chosen]).backward()
            optimizer.step()
    return model.eval(), {"state_dict": model.state_dict(), "optimizer": optimizer.state_dict()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "importance.json")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from sample_models import models

    images, _ = models.digits(held_out=True)
    results = []
    for name, build in (("conv", models.build_conv), ("mlp", models.build_mlp)):
        model, checkpoint = trained(build, models)
        with torch.no_grad():
            wanted = model(images)
        for bits in BITS:
            for way, options in (
                ("data-free", {}),
                ("optimizer", {"importance": "optimizer"}),
                ("calibrated", {"model": model, "batches": models.digits_batches()}),
            ):
                with tempfile.TemporaryDirectory() as folder:
                    out = Path(folder) / "squeezed.safetensors"
                    report = paramcompress.squeeze(checkpoint, out, bits_per_weight=bits, **options)
                    squeezed = copy.deepcopy(model)
                    paramcompress.load_into(squeezed, out)
                with torch.no_grad():
                    change = (squeezed(images) - wanted).square().sum() / wanted.square().sum()
                row = {
                    "model": name,
                    "way": way,
                    "bits_per_weight": bits,
                    "bytes": report.bytes_after,
                    "accuracy": round(models.digits_accuracy(squeezed), 4),
                    "output_change": float(f"{float(change):.3g}"),
                }
                results.append(row)
                print(row, flush=True)
        results.append({"model": name, "way": "original", "accuracy": round(models.digits_accuracy(model), 4)})
    record = {
        "name": "importance",
        "command": "python benchmarks/importance.py",
        **origin(),
        "threads": torch.get_num_threads(),
        "seed": 0,
        "results": results,
    }
    args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
