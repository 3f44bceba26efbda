"""Trains the sample checkpoints again: `python sample_models/make.py [mlp conv gru transformer]`.

Knows how each model is trained and in which shape its file is saved; what is trained, and on what, stands in
`models.py`. Seeds are fixed and torch runs on one thread, so a second run on the same machine, Python and torch gives
the same weights. The numbers for the file's row in README.md are printed: weights, bytes, metric, seconds.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sample_models import models

SEED = 2013


def fit(model: nn.Module, batches: Iterator[tuple[Tensor, Tensor]], n_steps: int, lr: float, decay: float) -> None:
    """AdamW with a one-cycle rate that peaks at `lr`; `decay` holds for matrices and kernels, not for vectors.

    A batch is (what the model is called with, classes); the model's last axis is that of the classes.
    """
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=n_steps, pct_start=0.1)
    model.train()
    for _ in range(n_steps):
        inputs, classes = next(batches)
        loss = F.cross_entropy(model(inputs).flatten(0, -2), classes.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """`images` (n, 1, 8, 8), the whole batch moved by up to one pixel each way; what comes in is empty."""
    down, right = torch.randint(3, (2,), generator=generator).tolist()
    return F.pad(images, (1, 1, 1, 1))[..., down : down + 8, right : right + 8]


def digit_batches(batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Training digits for ever: shuffled anew in each epoch, the last part batch left out, moved by up to a pixel."""
    generator = torch.Generator().manual_seed(SEED)
    images, labels = models.digits(held_out=False)
    while True:
        for chosen in torch.randperm(len(images), generator=generator).split(batch_size):
            if len(chosen) == batch_size:
                yield shifted(images[chosen], generator), labels[chosen]


def topic_batches(batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Windows of the training text for ever, at random places, with the symbols that follow."""
    generator = torch.Generator().manual_seed(SEED)
    symbols = models.topics_symbols(held_out=False)
    span = torch.arange(models.N_CONTEXT + 1)
    while True:
        starts = torch.randint(len(symbols) - models.N_CONTEXT, (batch_size, 1), generator=generator)
        chunk = symbols[starts + span]
        yield chunk[:, :-1], chunk[:, 1:]


def train_mlp(n_steps: int = 3000) -> dict:
    """The bare state dict, as `torch.save(model.state_dict(), path)` leaves it."""
    model = models.DigitsMLP()
    fit(model, digit_batches(64), n_steps, lr=2e-3, decay=0.1)
    return model.state_dict()


def train_conv(n_steps: int = 1200) -> dict:
    """A trainer's checkpoint: the state dict among epoch and arguments, with BatchNorm's statistics and counters."""
    args = {"seed": SEED, "lr": 5e-3, "weight_decay": 0.2, "batch_size": 64, "augment": ["shift"], "amp": False}
    model = models.DigitsConv()
    fit(model, digit_batches(args["batch_size"]), n_steps, args["lr"], args["weight_decay"])
    n_batches = len(models.digits(held_out=False)[0]) // args["batch_size"]
    return {"epoch": n_steps // n_batches, "state_dict": model.state_dict(), "args": args}


def train_gru(n_steps: int = 1200) -> dict:
    """The state dict with the vocabulary that gives its rows a meaning."""
    model = models.TopicsGRU()
    fit(model, topic_batches(32), n_steps, lr=6e-3, decay=0.05)
    return {"state_dict": model.state_dict(), "vocabulary": models.VOCABULARY}


def train_transformer(n_steps: int = 700) -> dict:
    """The bare state dict in bfloat16; embedding and output are two names of one tensor."""
    model = models.TopicsTransformer()
    fit(model, topic_batches(32), n_steps, lr=3e-3, decay=0.1)
    return model.bfloat16().state_dict()


TRAIN: dict[str, Callable[..., dict]] = {
    "mlp": train_mlp,
    "conv": train_conv,
    "gru": train_gru,
    "transformer": train_transformer,
}


def make(name: str, folder: Path) -> str:
    """Train sample `name`, write its checkpoint to `folder` and return its numbers for the README table."""
    sample = models.SAMPLES[name]
    torch.manual_seed(SEED)
    contents = TRAIN[name]()
    path = folder / sample.file
    torch.save(contents, path)
    model = sample.build()
    model.load_state_dict(contents[sample.wrapper] if sample.wrapper else contents)
    n_weights = sum(p.numel() for p in model.parameters())
    return f"| `{sample.file}` | {n_weights:,} | {path.stat().st_size:,} | {sample.metric(model):.4f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the sample checkpoints again.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(TRAIN)}; all where none is given")
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent, help="where the files go")
    args = parser.parse_args()
    if unknown := set(args.names) - set(TRAIN):
        parser.error(f"unknown sample {', '.join(sorted(unknown))}; there are {', '.join(TRAIN)}")
    torch.set_num_threads(1)
    for name in args.names or TRAIN:
        start = time.perf_counter()
        print(make(name, args.folder), f"{time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
