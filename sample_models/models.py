"""The four sample models: how to build, load, measure and calibrate them. Knows nothing of training or compression.

    DigitsMLP, DigitsConv               called on images   (n, 1, 8, 8) float32, 0 to 1   -> logits (n, 10)
    TopicsGRU, TopicsTransformer        called on symbols  (n, t) int64, t <= N_CONTEXT   -> logits (n, t, n_symbols)

`build_mlp` and its sisters take no argument and return the module in eval mode, untrained, with the names, shapes and
dtypes of its checkpoint; `load("mlp")` also fills in the committed weights. Data are what every machine has:
scikit-learn's digits and the text of Python's own `pydoc_data.topics`.
"""

from __future__ import annotations

import copy
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "SAMPLES",
    "VOCABULARY",
    "build_conv",
    "build_gru",
    "build_mlp",
    "build_transformer",
    "digits",
    "digits_accuracy",
    "digits_batches",
    "load",
    "topics_batches",
    "topics_bits",
    "topics_symbols",
    "window_bits",
    "windows",
]

N_CONTEXT = 128
"""Characters in one window of text; the transformer has this many positions."""

VOCABULARY = "\n !\"#%'()*+,-./0123456789:;<=>ABCDEFGHIKLMNOPRSTUVWX[\\]^_abcdefghijklmnopqrstuvwxyz{|}~"
"""The characters the text models know; a symbol is an index into it.

The ASCII characters found 20 times or more in the topics of Python 3.11 without repeated paragraphs. It is written down
because the text, and with it any vocabulary counted on the spot, differs between Python versions.
"""


# Data


def _held_out(content: bytes, one_in: int) -> bool:
    """Whether this image or paragraph is for testing.

    Its own bytes decide, so the answer depends on no random generator, order or library version, and copies of one
    item never end up on both sides.
    """
    return zlib.crc32(content) % one_in == 0


def digits(*, held_out: bool) -> tuple[Tensor, Tensor]:
    """Images (n, 1, 8, 8) float32, 0 to 1, and labels (n,) int64 of scikit-learn's digits; every fourth is held out."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels).float().view(-1, 1, 8, 8)
    chosen = torch.tensor([_held_out(bytes(image.byte().flatten().tolist()), 4) == held_out for image in images])
    return images[chosen] / 16, torch.from_numpy(labels).long()[chosen]


def topics_symbols(*, held_out: bool) -> Tensor:
    """Symbols (n,) int64 of the paragraphs of `pydoc_data.topics`, each told once; every tenth is held out.

    Topics repeat one another, so a paragraph counts once, whatever its layout, and the split goes by paragraph. One
    that a later Python leaves unchanged stays on its side. Characters outside `VOCABULARY` are dropped.
    """
    from pydoc_data.topics import topics

    paragraphs: dict[str, str] = {}
    for name in sorted(topics):
        for paragraph in topics[name].split("\n\n"):
            paragraphs.setdefault("".join(filter(str.isalnum, paragraph)), paragraph)
    kept = [text for key, text in paragraphs.items() if _held_out(key.encode(), 10) == held_out]
    symbol = {character: index for index, character in enumerate(VOCABULARY)}
    return torch.tensor([symbol[character] for character in "\n\n".join(kept) if character in symbol])


def windows(symbols: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs and the symbols that follow each, both (n, N_CONTEXT), cut from `symbols` (m,) without overlap."""
    n = (len(symbols) - 1) // N_CONTEXT
    return symbols[: n * N_CONTEXT].view(n, -1), symbols[1 : n * N_CONTEXT + 1].view(n, -1)


def digits_batches() -> list[Tensor]:
    """Calibration inputs for `mlp` and `conv`: 8 training batches (64, 1, 8, 8)."""
    return list(digits(held_out=False)[0].split(64)[:8])


def topics_batches() -> list[Tensor]:
    """Calibration inputs for `gru` and `transformer`: 8 batches (16, N_CONTEXT), spread over the training text."""
    inputs, _ = windows(topics_symbols(held_out=False))
    return list(inputs[:: len(inputs) // 128][:128].split(16))


# Metrics


def _measured(model: nn.Module) -> nn.Module:
    """A float32 copy in eval mode: the weights are measured, not the CPU's bfloat16 arithmetic."""
    return copy.deepcopy(model).float().eval()


@torch.no_grad()
def digits_accuracy(model: nn.Module) -> float:
    """Share of held-out digits read correctly, 0 to 1. Larger is better."""
    images, labels = digits(held_out=True)
    return (_measured(model)(images).argmax(1) == labels).double().mean().item()


@torch.no_grad()
def window_bits(model: nn.Module) -> Tensor:
    """Bits per character in each window of the held-out text, (n_windows,) float64. Smaller is better."""
    model = _measured(model)
    pairs = zip(*(part.split(64) for part in windows(topics_symbols(held_out=True))), strict=True)
    nats = [F.cross_entropy(model(x).transpose(1, 2), y, reduction="none").double().mean(1) for x, y in pairs]
    return torch.cat(nats) / math.log(2)


def topics_bits(model: nn.Module) -> float:
    """Bits per character of the held-out text, each window read without what came before it. Smaller is better."""
    return window_bits(model).mean().item()


# Models


class DigitsMLP(nn.Module):
    """64-256-256-10 with ReLU and, in training, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(64, 256)
        self.fc2 = nn.Linear(256, 256)
        self.fc3 = nn.Linear(256, 10)
        self.dropout = nn.Dropout(0.2)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.dropout(F.relu(self.fc1(images.flatten(1))))
        return self.fc3(self.dropout(F.relu(self.fc2(hidden))))


class DigitsConv(nn.Module):
    """Four 3x3 convolutions with BatchNorm (16, 32, 64, 64 channels), halved once, averaged, one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(32)
        self.conv3 = nn.Conv2d(32, 64, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(64)
        self.conv4 = nn.Conv2d(64, 64, 3, padding=1, bias=False)
        self.bn4 = nn.BatchNorm2d(64)
        self.fc = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(images)))
        x = F.max_pool2d(F.relu(self.bn2(self.conv2(x))), 2)
        x = F.relu(self.bn3(self.conv3(x)))
        x = F.relu(self.bn4(self.conv4(x)))
        return self.fc(x.mean((2, 3)))


class TopicsGRU(nn.Module):
    """Characters embedded in 64 dimensions, one GRU layer of 192 units, a linear output."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(VOCABULARY), 64)
        self.gru = nn.GRU(64, 192, batch_first=True)
        self.output = nn.Linear(192, len(VOCABULARY))
        self.dropout = nn.Dropout(0.1)

    def forward(self, symbols: Tensor) -> Tensor:
        hidden, _ = self.gru(self.embedding(symbols))
        return self.output(self.dropout(hidden))


class Block(nn.Module):
    """Pre-norm transformer layer: causal attention, then a feed-forward layer four times as wide; (n, t, width)."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(self.norm1(x)).unflatten(2, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.dropout(self.proj(mixed.transpose(1, 2).flatten(2)))
        return x + self.dropout(self.fc2(F.gelu(self.fc1(self.norm2(x)))))


class TopicsTransformer(nn.Module):
    """Two blocks of width 128 with four heads; the output layer is the embedding itself (one tied weight)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(VOCABULARY), 128)
        self.position = nn.Embedding(N_CONTEXT, 128)
        self.blocks = nn.ModuleList(Block(128, 4) for _ in range(2))
        self.norm = nn.LayerNorm(128)
        self.output = nn.Linear(128, len(VOCABULARY), bias=False)
        nn.init.normal_(self.embedding.weight, std=0.05)
        nn.init.normal_(self.position.weight, std=0.05)
        self.output.weight = self.embedding.weight

    def forward(self, symbols: Tensor) -> Tensor:
        x = self.embedding(symbols) + self.position(torch.arange(symbols.shape[1], device=symbols.device))
        for block in self.blocks:
            x = block(x)
        return self.output(self.norm(x))


def build_mlp() -> nn.Module:
    """Untrained `DigitsMLP`, for `mlp_digits.pt`."""
    return DigitsMLP().eval()


def build_conv() -> nn.Module:
    """Untrained `DigitsConv`, for `conv_digits.pt`."""
    return DigitsConv().eval()


def build_gru() -> nn.Module:
    """Untrained `TopicsGRU`, for `gru_topics.pt`."""
    return TopicsGRU().eval()


def build_transformer() -> nn.Module:
    """Untrained `TopicsTransformer` in bfloat16, for `transformer_topics.pt`."""
    return TopicsTransformer().bfloat16().eval()


# The four, by name


@dataclass(frozen=True)
class Sample:
    """One committed checkpoint and what belongs to it."""

    file: str
    """Name of the checkpoint in this folder."""
    wrapper: str
    """Key in the file under which the state dict lies; empty where the file is the state dict."""
    build: Callable[[], nn.Module]
    """The untrained module in eval mode."""
    metric: Callable[[nn.Module], float]
    """Its quality on held-out data."""
    larger_is_better: bool
    """Direction of `metric`."""
    batches: Callable[[], list[Tensor]]
    """Calibration batches, training inputs only; each is what the model is called with."""


SAMPLES = {
    "mlp": Sample("mlp_digits.pt", "", build_mlp, digits_accuracy, True, digits_batches),
    "conv": Sample("conv_digits.pt", "state_dict", build_conv, digits_accuracy, True, digits_batches),
    "gru": Sample("gru_topics.pt", "state_dict", build_gru, topics_bits, False, topics_batches),
    "transformer": Sample("transformer_topics.pt", "", build_transformer, topics_bits, False, topics_batches),
}


def load(name: str) -> nn.Module:
    """The trained sample `name`, a key of `SAMPLES`, in eval mode."""
    sample = SAMPLES[name]
    contents = torch.load(Path(__file__).parent / sample.file, weights_only=True)
    model = sample.build()
    model.load_state_dict(contents[sample.wrapper] if sample.wrapper else contents)
    return model
