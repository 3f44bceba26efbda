"""The paper's layer-wise protocol: build each layer's dictionary from what the layers below give it, bottom up.

    for every layer: see its inputs -> make its dictionary -> replace it -> pre-train it, or leave it random

What follows is an ordinary training loop over all learned numbers and biases, with the dictionaries fixed. The plain
protocol is `convert` and that loop.

Shapes: inputs of a layer (n_samples, n_in), those of a convolution being patches in torch's order.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from paramcompress.calls import called, mapped
from paramcompress.dictionaries.contract import Dictionary
from paramcompress.dictionaries.data import FromData
from paramcompress.errors import PredictionError

from .choosing import chosen_layers
from .conversion import named, predicted, replaced
from .layers import Predicted, PredictedConv2d

_BATCH = 256
"""Samples that the model sees at once where one tensor holds all of them."""


def layerwise(
    model: nn.Module,
    batches: Tensor | Iterable[Any],
    fraction: float = 0.05,
    dictionaries: Mapping[str, Dictionary] | Dictionary | None = None,
    *,
    pretrain_epochs: int = 0,
    rate: float = 1e-3,
    n_samples: int = 20_000,
    groups: int = 10,
    include: Sequence[str] | str = (),
    exclude: Sequence[str] | str = (),
    seed: int = 0,
    **options: Any,
) -> nn.Module:
    """Convert `model` in place from its first layer to its last, dictionaries that need data fitted on the way.

    Layers are taken in the order in which the first batch reaches them.

    Args:
        model: takes a batch; convert what it gives back.
        batches: one tensor, or batches, each of which is what the model is called with, as in `calibrate`: a tensor, a
            tuple or list of arguments, or a dict of keywords. No labels.
        fraction, dictionaries, groups, include, exclude, seed, options: as for `convert`. A dictionary that holds data
            already, such as `Covariance(x)`, stays as it is; `Covariance()` is fitted to its layer's inputs.
        pretrain_epochs: passes over the inputs in which each new layer learns to reproduce them, as a sigmoid
            autoencoder with tied weights, before the next layer's inputs are looked at; 0 leaves it random.
        rate: Adam's, in pre-training.
        n_samples: inputs that a dictionary is fitted to at most; of a convolution, patches.

    Returns:
        The model, to be trained as a whole.

    Raises:
        PredictionError: as `convert`; a layer that no batch reached; a batch that the model cannot be called with. The
            model is then what it was.
    """
    seen = list(_batches(batches))
    chosen = chosen_layers(model, dictionaries, include, exclude)
    reached = _as_reached(model, {name: layer for name, (layer, _) in chosen.items()}, seen[:1])
    with contextlib.ExitStack() as undo:
        for number, name in enumerate(reached):
            layer, dictionary = chosen[name]
            needed = isinstance(dictionary, FromData) and dictionary.data is None
            if needed or pretrain_epochs:
                samples = layer_inputs(model, name, seen, n_samples=n_samples, seed=seed + number)
            try:
                if needed:
                    assert isinstance(dictionary, FromData)
                    dictionary = dictionary.given(samples)
                made = predicted(
                    layer,
                    dictionary=dictionary,
                    fraction=fraction,
                    groups=min(groups, layer.weight.shape[0]),
                    seed=seed + number,
                    **options,
                )
            except PredictionError as error:
                raise named(error, name) from error
            if pretrain_epochs:
                dtype = made.learned.dtype  # in which Adam's squares may have no room
                with torch.enable_grad():
                    pretrain(made.float(), samples, epochs=pretrain_epochs, rate=rate, seed=seed + number)
                made.to(dtype)
            model = replaced(model, layer, made)
            undo.callback(replaced, model, made, layer)
        undo.pop_all()
    return model


def layer_inputs(
    model: nn.Module, name: str, batches: Tensor | Iterable[Any], *, n_samples: int = 20_000, seed: int = 0
) -> Tensor:
    """What the layer of that name is given, (n_samples or fewer, n_in), on the CPU; the model is in eval mode for it.

    Args:
        n_samples: the same share of every batch is kept, at random.

    Raises:
        PredictionError: there is no such layer, or it was not reached; a batch that the model cannot be called with.
    """
    layer = dict(model.named_modules(remove_duplicate=False)).get(name)
    if not isinstance(layer, nn.Linear | nn.Conv2d | Predicted):
        raise PredictionError(f"no linear layer or convolution is named {name!r}")
    generator = torch.Generator().manual_seed(seed)
    every = list(_batches(batches))
    kept: list[Tensor] = []

    def keep(_: str, given: Tensor) -> None:
        rows = _rows(layer, given)
        some = torch.randperm(len(rows), generator=generator, device="cpu")[: -(-n_samples // len(every))]
        kept.append(rows[some.to(rows.device)].float().cpu())

    _watch(model, {name: layer}, every, keep)
    if not kept:
        raise PredictionError(f"layer {name!r} was given nothing", hint="do the batches reach it?")
    return torch.cat(kept)[:n_samples]


def _as_reached(model: nn.Module, layers: Mapping[str, nn.Module], batches: Sequence[Any]) -> list[str]:
    """Names of the layers in the order in which batches reach them first; those never reached last, as they were."""
    reached: dict[str, None] = {}
    _watch(model, layers, batches, lambda name, _: reached.setdefault(name))
    return [*reached, *(name for name in layers if name not in reached)]


def _watch(
    model: nn.Module, layers: Mapping[str, nn.Module], batches: Iterable[Any], see: Callable[[str, Tensor], object]
) -> None:
    """Run batches through the model in eval mode, and have a look at what each of the layers is given."""

    def seeing(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], dict[str, Tensor]], None]:
        def look(_: nn.Module, given: tuple[Tensor, ...], by_name: dict[str, Tensor]) -> None:
            see(name, given[0] if given else next(iter(by_name.values())))

        return look

    hooks = [layer.register_forward_pre_hook(seeing(name), with_kwargs=True) for name, layer in layers.items()]
    training = {module: module.training for module in model.modules()}
    device = next(model.parameters()).device
    try:
        model.eval()
        with torch.no_grad():
            for number, batch in enumerate(batches, 1):
                called(model, mapped(batch, lambda one: one.to(device)), number, PredictionError)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in training.items():
            module.training = mode


def pretrain(
    layer: Predicted, samples: Tensor, *, epochs: int, rate: float = 1e-3, batch: int = 100, seed: int = 0
) -> float:
    """Train a predicted layer to reproduce its inputs: x ~ f(W^T sigmoid(W x + b) + c), W predicted throughout.

    Args:
        samples: (n_samples, n_in). f is a sigmoid where all of them lie between 0 and 1, else nothing.

    Returns:
        Mean squared error of the last epoch, relative to the variance of the samples.
    """
    generator = torch.Generator().manual_seed(seed)
    like = layer.learned
    bounded = bool(samples.min() >= 0) and bool(samples.max() <= 1)
    mean = samples.mean(0)
    visible = (torch.logit(mean.clamp(1e-3, 1 - 1e-3)) if bounded else mean.clone()).to(like).requires_grad_()
    parameters = [one for one in layer.parameters() if one.requires_grad]
    optimizer = torch.optim.Adam([*parameters, visible], lr=rate)
    lost = 0.0
    for _ in range(epochs):
        lost = 0.0
        for some in torch.randperm(len(samples), generator=generator, device="cpu").split(batch):  # type: ignore[no-untyped-call]
            x = samples[some].to(like)
            weight = layer.weight.reshape(len(layer.learned), -1)
            again = torch.sigmoid(functional.linear(x, weight, layer.bias)) @ weight + visible
            squares = ((torch.sigmoid(again) if bounded else again) - x).square().sum()
            optimizer.zero_grad()
            (squares / len(x)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            lost += float(squares.detach())
    optimizer.zero_grad()
    return lost / max(float((samples - mean).square().sum()), 1e-30)


def _batches(batches: Tensor | Iterable[Any]) -> Iterable[Any]:
    """Batch by batch, where one tensor may hold all of them."""
    return batches.split(_BATCH) if isinstance(batches, Tensor) else batches  # type: ignore[no-untyped-call]


def _rows(layer: nn.Module, given: Tensor) -> Tensor:
    """What each of the layer's features is multiplied with, one row each time."""
    if isinstance(layer, nn.Conv2d | PredictedConv2d):
        padding: Any = layer.padding
        if isinstance(padding, str):
            pairs = zip(layer.dilation, layer.kernel_size, strict=True)
            whole = [d * (k - 1) if padding == "same" else 0 for d, k in pairs]
            left = [n // 2 for n in whole]
            given = functional.pad(given, (left[1], whole[1] - left[1], left[0], whole[0] - left[0]))
            padding = 0
        patches = functional.unfold(given, layer.kernel_size, layer.dilation, padding, layer.stride)
        return patches.transpose(1, 2).reshape(-1, patches.shape[1])
    return given.reshape(-1, given.shape[-1])
