"""A network with layers that predict from one without, and back. Changes modules in place; trains nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from paramcompress.dictionaries.contract import Dictionary
from paramcompress.errors import PredictionError

from .choosing import chosen_layers
from .layers import Predicted, PredictedConv2d, PredictedLinear, check_order

STARTS = ("fresh", "project")


def convert(
    model: nn.Module,
    fraction: float = 0.05,
    dictionaries: Mapping[str, Dictionary] | Dictionary | None = None,
    *,
    groups: int = 10,
    include: Sequence[str] | str = (),
    exclude: Sequence[str] | str = (),
    seed: int = 0,
    variant: str = "kernel",
    supports: str | None = None,
    orthonormal: bool = True,
    order: str = "filters",
    start: str = "fresh",
) -> nn.Module:
    """Replace linear and convolution layers of `model`, in place, by layers that learn a fraction of their weights.

    The last linear layer stays dense unless a pattern names it: predicting the outputs' own weights costs accuracy and
    saves little. Layers are matched by their names in the model: exact, glob, or `re:` and a regular expression.
    What is frozen stays frozen.

    Args:
        model: its nn.Linear and nn.Conv2d are candidates, but for weights that are tied to another module's or computed
            from others. A layer that stands in it twice still does afterwards. To replace the model itself, take what
            is returned.
        fraction: learned numbers / weights of each layer; one number a feature at least, and where channels share a
            support, one a channel.
        dictionaries: by pattern, the first that matches counts and what none matches stays dense; or one for all.
        groups: column groups; no more than a layer has features.
        include, exclude: a pattern or several; those included are candidates, all but the last linear layer if empty.
        seed: of supports and starts; every layer has its own from it.
        variant, supports, orthonormal, order: as for `PredictedConv2d`.
        start: `fresh` begins anew, as the paper does; `project` takes what is nearest to the weights that are there.

    Returns:
        The model.

    Raises:
        PredictionError: a fraction outside (0, 1]; a pattern that names no layer, or one that cannot be predicted; a
            support larger than the layer; a dictionary that needs data or a grid and has none, or is for another
            number of inputs; weights to project that are not there or not finite. The message names the layer.
        ConfigError: a pattern that is no regular expression.
        SingularKernelError: a kernel matrix without inverse; the message says which ridge mends it.

    >>> from paramcompress import predict
    >>> net = nn.Sequential(nn.Linear(64, 40), nn.Sigmoid(), nn.Linear(40, 10))
    >>> predict.convert(net, 0.25, predict.SquaredExponential((8, 8)), groups=4)[0]
    PredictedLinear(squared-exponential, 16 of 64 learned, 4 column groups)
    """
    chosen = chosen_layers(model, dictionaries, include, exclude)
    made: list[tuple[nn.Module, Predicted]] = []
    for number, (name, (layer, dictionary)) in enumerate(chosen.items()):
        options = {
            "dictionary": dictionary,
            "fraction": fraction,
            "groups": min(groups, layer.weight.shape[0]),
            "seed": seed + number,
            "variant": variant,
            "supports": supports,
            "orthonormal": orthonormal,
        }
        try:
            made.append((layer, predicted(layer, order=order, start=start, **options)))
        except PredictionError as error:
            raise named(error, name) from error
    for old, new in made:
        model = replaced(model, old, new)
    return model


def predicted(
    layer: nn.Linear | nn.Conv2d, *, order: str = "filters", start: str = "fresh", **options: Any
) -> Predicted:
    """A predicted layer of the sizes, device, dtype and mode of a dense one, frozen where that is; `start` as for
    `convert`, options as for the layer's class."""
    if start not in STARTS:
        raise PredictionError(f"start {start!r} is not known", hint=f"one of {', '.join(STARTS)}")
    check_order(order)
    made: Predicted
    with layer.weight.device:
        if isinstance(layer, nn.Linear):
            made = PredictedLinear(layer.in_features, layer.out_features, bias=layer.bias is not None, **options)
        else:
            sizes: tuple[Any, ...] = layer.in_channels, layer.out_channels, layer.kernel_size
            where: tuple[Any, ...] = layer.stride, layer.padding, layer.dilation
            made = PredictedConv2d(*sizes, *where, order=order, bias=layer.bias is not None, **options)
    made.to(layer.weight.dtype).train(layer.training)
    if start == "project":
        made.project(layer.weight)
        if made.bias is not None:
            made.bias.data.copy_(layer.bias.detach())  # type: ignore[union-attr]
    _freeze(made, layer)
    return made


def merge(model: nn.Module) -> nn.Module:
    """Replace the predicted layers of `model`, in place, by dense ones with the weights that they predict.

    Returns:
        The model; a predicted layer itself becomes the dense layer that is returned.
    """
    for layer in predicted_layers(model).values():
        model = replaced(model, layer, merged(layer))
    return model


def merged(layer: Predicted) -> nn.Linear | nn.Conv2d:
    """The dense layer that a predicted one stands for."""
    bias = layer.bias is not None
    kind: type[nn.Module]
    sizes: tuple[Any, ...]
    if isinstance(layer, PredictedLinear):
        kind, sizes = nn.Linear, (layer.in_features, layer.out_features)
    else:
        assert isinstance(layer, PredictedConv2d)
        kind = nn.Conv2d
        sizes = layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, layer.dilation
    dense: nn.Linear | nn.Conv2d = nn.utils.skip_init(kind, *sizes, bias=bias)  # type: ignore[no-untyped-call]
    dense = dense.to(layer.learned.device, layer.learned.dtype).train(layer.training)
    with torch.no_grad():
        dense.weight.copy_(layer.dense_weight())
        if layer.bias is not None and dense.bias is not None:
            dense.bias.copy_(layer.bias)
    _freeze(dense, layer)
    return dense


def _freeze(new: nn.Module, old: nn.Module) -> None:
    """Leave out of training what was left out of it: the bias, or all else."""
    trained = {
        is_bias: any(one.requires_grad for name, one in old.named_parameters() if (name == "bias") == is_bias)
        for is_bias in (True, False)
    }
    for name, one in new.named_parameters():
        one.requires_grad_(trained[name == "bias"])


def learned_fraction(model: nn.Module) -> float:
    """Learned numbers / weights, of the predicted layers only and without biases, as the paper counts.

    Raises:
        PredictionError: no layer of the model predicts.
    """
    layers = list(predicted_layers(model).values())
    if not layers:
        raise PredictionError("no layer of the model predicts its weights", hint="predict.convert makes some")
    return sum(layer.n_learned for layer in layers) / sum(layer.n_weights for layer in layers)


def frobenius_decay(model: nn.Module) -> Tensor:
    """Half the squared Frobenius norm of the weights of all layers with learned atoms, to be added to the loss.

    Decay of the product, not of the factors: what makes learned low rank a fair opponent (Khodak et al. 2021).
    """
    total = torch.zeros(())
    for layer in predicted_layers(model).values():
        if layer.is_low_rank:
            gram = layer.dictionary[0] @ layer.dictionary[0].T
            total = total.to(gram) + ((layer.learned.T @ layer.learned) * gram).sum() / 2
    return total


def predicted_layers(model: nn.Module) -> dict[str, Predicted]:
    """Predicted layers by their names."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, Predicted)}


def replaced(model: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """`model` with a module exchanged wherever it stands in it; the new one where it is the model."""
    if model is old:
        return new
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is old:
                setattr(parent, name, new)
    return model


def named(error: PredictionError, name: str) -> PredictionError:
    """The same error with the layer's name before it."""
    error.args = (f"layer {name!r}: {error}",)
    return error
