"""Data-free beside calibrated squeezing of nets of other kinds: depthwise convolutions, transposed ones, attention.

Usage:  python benchmarks/architectures.py BENCH_FOLDER [--models M,...] [--out FILE]

Trains four small nets for a few minutes in all, far from convergence, on the data beside BENCH_FOLDER, squeezes each to
two sizes without data and with a few hundred training inputs, and compares what they give on held-out inputs. Resumes:
what the output file holds already is not measured again.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from origin import origin
from torch import Tensor, nn
from torch.nn import functional

import paramcompress

BITS = (2.0, 3.0)
OUT = Path(__file__).parent / "results" / "architectures.json"
CONTEXT = 128
"""Characters that the language model sees."""


# ------------------------------------------------------------------------------------------- nets


class Inverted(nn.Module):
    """Widen, filter each channel by itself, narrow (Sandler et al. 2018)."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        n = 4 * n_in
        self.inner = nn.Sequential(
            nn.Conv2d(n_in, n, 1, bias=False), nn.BatchNorm2d(n), nn.ReLU6(),
            nn.Conv2d(n, n, 3, stride, 1, groups=n, bias=False), nn.BatchNorm2d(n), nn.ReLU6(),
            nn.Conv2d(n, n_out, 1, bias=False), nn.BatchNorm2d(n_out),
        )  # fmt: skip
        self.adds = stride == 1 and n_in == n_out

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x)
        return x + y if self.adds else y


def mobile() -> nn.Module:
    blocks = [(16, 24, 1), (24, 24, 1), (24, 40, 2), (40, 40, 1), (40, 80, 2), (80, 80, 1), (80, 80, 1)]
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6(), *(Inverted(*one) for one in blocks),
        nn.Conv2d(80, 256, 1, bias=False), nn.BatchNorm2d(256), nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip


class NextBlock(nn.Module):
    """A wide filter of each channel, then a perceptron at each place (Liu et al. 2022)."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.filter = nn.Conv2d(n, n, 7, padding=3, groups=n)
        self.mix = nn.Sequential(nn.LayerNorm(n), nn.Linear(n, 4 * n), nn.GELU(), nn.Linear(4 * n, n))
        self.scale = nn.Parameter(torch.full((n,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        return x + (self.scale * self.mix(self.filter(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


def convnext() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 48, 4, 4), nn.GroupNorm(1, 48), NextBlock(48), NextBlock(48), nn.GroupNorm(1, 48),
        nn.Conv2d(48, 96, 2, 2), NextBlock(96), NextBlock(96),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(96), nn.Linear(96, 10),
    )  # fmt: skip


def autoencoder() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.LeakyReLU(0.1),
        nn.Conv2d(32, 64, 3, 2, 1), nn.BatchNorm2d(64), nn.LeakyReLU(0.1), nn.Flatten(), nn.Linear(64 * 49, 32),
        nn.Linear(32, 128 * 49), nn.Unflatten(1, (128, 7, 7)), nn.BatchNorm2d(128), nn.ReLU(),
        nn.ConvTranspose2d(128, 64, 4, 2, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
        nn.ConvTranspose2d(64, 32, 4, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 1, 3, padding=1),
    )  # fmt: skip


class Block(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(n), nn.MultiheadAttention(n, 4, batch_first=True)
        self.mix = nn.Sequential(nn.LayerNorm(n), nn.Linear(n, 4 * n), nn.GELU(), nn.Linear(4 * n, n))

    def forward(self, x: Tensor) -> Tensor:
        y, later = self.norm(x), torch.full((x.shape[1], x.shape[1]), -1e9).triu(1)
        x = x + self.attention(y, y, y, attn_mask=later, need_weights=False)[0]
        return x + self.mix(x)


class Language(nn.Module):
    """Characters to logits of the next one; the output is tied to the embedding."""

    def __init__(self, n_tokens: int = 65, n: int = 128) -> None:
        super().__init__()
        self.embedding, self.places = nn.Embedding(n_tokens, n), nn.Parameter(0.02 * torch.randn(CONTEXT, n))
        self.blocks = nn.Sequential(*(Block(n) for _ in range(4)), nn.LayerNorm(n))
        self.output = nn.Linear(n, n_tokens, bias=False)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.output.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.output(self.blocks(self.embedding(tokens) + self.places[: tokens.shape[1]]))
        return logits


# ------------------------------------------------------------------------------------------- what they learn


@dataclass(frozen=True)
class Task:
    """Inputs and what is wanted of each, to learn from and held out."""

    x: Tensor
    y: Tensor
    held_x: Tensor
    held_y: Tensor
    loss: Callable[[Tensor, Tensor], Tensor]
    metric: Callable[[Tensor, Tensor], float]
    unit: str


def objects(bench: Path) -> Task:
    images = importlib.import_module("cifar_resnet").images
    return Task(*images("train"), *(one[:4000] for one in images("test")), functional.cross_entropy, _percent, "%")


def digits(bench: Path) -> Task:
    both = [np.load(bench.parent / "data" / "mnist" / f"{part}.npz")["x"] for part in ("train", "test")]
    x, held = (torch.from_numpy(one).float().reshape(-1, 1, 28, 28) / 255 for one in both)
    return Task(x, x, held[:1000], held[:1000], functional.mse_loss, _decibels, "dB")


def characters(bench: Path) -> Task:
    text = (bench.parent / "data" / "text" / "tinyshakespeare.txt").read_text()
    codes = {one: i for i, one in enumerate(sorted(set(text)))}
    lines = torch.tensor([codes[one] for one in text]).unfold(0, CONTEXT + 1, CONTEXT // 4)
    n = 95 * len(lines) // 100
    kept, held = lines[:n], lines[n + 4 :: 4]
    return Task(kept[:, :-1], kept[:, 1:], held[:, :-1], held[:, 1:], _by_character, _bits, "bits per character")


def _percent(given: Tensor, wanted: Tensor) -> float:
    return 100 * float((given.argmax(1) == wanted).float().mean())


def _decibels(given: Tensor, wanted: Tensor) -> float:
    return -10 * math.log10(float(functional.mse_loss(given, wanted)))


def _by_character(given: Tensor, wanted: Tensor) -> Tensor:
    return functional.cross_entropy(given.flatten(0, 1), wanted.flatten())


def _bits(given: Tensor, wanted: Tensor) -> float:
    return float(_by_character(given, wanted)) / math.log(2)


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[Path], Task], int, int]] = {
    "inverted residuals": (mobile, objects, 1000, 512),
    "wide depthwise": (convnext, objects, 1000, 512),
    "autoencoder": (autoencoder, digits, 1500, 256),
    "language model": (Language, characters, 300, 64),
}
"""Net, task, steps of training, inputs to calibrate with."""


def trained(build: Callable[[], nn.Module], task: Task, n_steps: int) -> nn.Module:
    torch.manual_seed(0)
    model = build().train()
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
    for _ in range(n_steps):
        chosen = torch.randint(len(task.x), (32 if task.x.dtype == torch.int64 else 64,))
        optimizer.zero_grad()
        task.loss(model(task.x[chosen]), task.y[chosen]).backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def given_by(model: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([model(part) for part in x.split(100)])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("bench", type=Path)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    sys.path.insert(0, str(args.bench.resolve()))
    results = json.loads(args.out.read_text())["results"] if args.out.exists() else []
    for name in args.models.split(","):
        if any(row["model"] == name for row in results):
            continue
        build, task_of, n_steps, n_inputs = MODELS[name]
        task = task_of(args.bench.resolve())
        model = trained(build, task, n_steps)
        wanted = given_by(model, task.held_x)
        row: dict[str, Any] = {"model": name, "codec": "original", "metric": task.metric(wanted, task.held_y)}
        rows = [row | {"unit": task.unit, "weights": sum(one.numel() for one in model.parameters())}]
        for bits in BITS:
            for codec, data in (
                ("data-free", {}),
                ("calibrated", {"model": model, "batches": list(task.x[:n_inputs].split(64))}),
            ):
                start = time.monotonic()
                with tempfile.TemporaryDirectory() as folder:
                    out = Path(folder) / "squeezed.safetensors"
                    report = paramcompress.squeeze(model.state_dict(), out, bits_per_weight=bits, **data)
                    seconds = time.monotonic() - start
                    squeezed = build().eval()
                    paramcompress.load_into(squeezed, out)
                given = given_by(squeezed, task.held_x)
                change = float((given - wanted).square().sum() / wanted.square().sum())
                row = {"model": name, "codec": codec, "bits_per_weight": bits, "bytes": report.bytes_after}
                row |= {
                    "metric": task.metric(given, task.held_y),
                    "output_change": change,
                    "seconds": round(seconds, 1),
                }
                rows.append(row)
                print(row, flush=True)
        results += rows
        record = {"name": "architectures", "command": "python benchmarks/architectures.py BENCH_FOLDER", **origin()}
        record |= {"threads": torch.get_num_threads(), "seed": 0, "results": results}
        args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
