"""A network with layers that predict from one without, and back. Changes modules in place; trains nothing."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from paramcompress.dictionaries.contract import Dictionary
from paramcompress.errors import PredictionError

from .layers import Predicted, PredictedConv2d, PredictedLinear

STARTS = ("fresh", "project")


def convert(
    model: nn.Module,
    fraction: float = 0.05,
    dictionaries: Mapping[str, Dictionary] | Dictionary | None = None,
    *,
    groups: int = 10,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
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

    Args:
        model: its nn.Linear and nn.Conv2d are candidates. To replace the model itself, take what is returned.
        fraction: learned numbers / weights of each layer.
        dictionaries: by pattern, the first that matches counts and what none matches stays dense; or one for all.
        groups: column groups; no more than a layer has features.
        include, exclude: patterns; those included are candidates, all but the last linear layer if empty.
        seed: of supports and starts; every layer has its own from it.
        variant, supports, orthonormal, order: as for `PredictedConv2d`.
        start: `fresh` begins anew, as the paper does; `project` takes what is nearest to the weights that are there.

    Returns:
        The model.

    Raises:
        PredictionError: a fraction outside (0, 1]; a pattern that names no layer, or one that cannot be predicted; a
            support larger than the layer; a dictionary that needs data or a grid and has none, or is for another
            number of inputs. The message names the layer.
        SingularKernelError: a kernel matrix without inverse; the message says which ridge mends it.

    >>> from paramcompress import predict
    >>> net = nn.Sequential(nn.Linear(64, 40), nn.Sigmoid(), nn.Linear(40, 10))
    >>> predict.convert(net, 0.25, predict.SquaredExponential((8, 8)), groups=4)[0]
    PredictedLinear(squared-exponential, 16 of 64 learned, 4 column groups)
    """
    if start not in STARTS:
        raise PredictionError(f"start {start!r} is not known", hint=f"one of {', '.join(STARTS)}")
    chosen = chosen_layers(model, dictionaries, include, exclude)
    made: dict[str, Predicted] = {}
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
            made[name] = predicted(layer, order=order, **options)  # type: ignore[arg-type]
        except PredictionError as error:
            raise named(error, name) from error
        if start == "project":
            made[name].project(layer.weight)
            if layer.bias is not None:
                made[name].bias.data.copy_(layer.bias.detach())  # type: ignore[union-attr]
    for name, one in made.items():
        model = replaced(model, name, one)
    return model


def predicted(
    layer: nn.Linear | nn.Conv2d, *, dictionary: Dictionary, order: str = "filters", **options: object
) -> Predicted:
    """A fresh predicted layer of the sizes, device and dtype of a dense one; options as for its class."""
    common = {"dictionary": dictionary, "bias": layer.bias is not None, **options}
    made: Predicted
    if isinstance(layer, nn.Linear):
        made = PredictedLinear(layer.in_features, layer.out_features, **common)  # type: ignore[arg-type]
    else:
        sizes = layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, layer.dilation
        made = PredictedConv2d(*sizes, order=order, **common)  # type: ignore[arg-type]
    return made.to(layer.weight.device, layer.weight.dtype).train(layer.training)


def merge(model: nn.Module) -> nn.Module:
    """Replace the predicted layers of `model`, in place, by dense ones with the weights that they predict.

    Returns:
        The model; a predicted layer itself becomes the dense layer that is returned.
    """
    for name, layer in list(model.named_modules()):
        if isinstance(layer, Predicted):
            model = replaced(model, name, merged(layer))
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
    return dense


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


def replaced(model: nn.Module, name: str, layer: nn.Module) -> nn.Module:
    """`model` with the module of that name exchanged; the layer itself where the name is empty."""
    if not name:
        return layer
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, layer)
    return model


def named(error: PredictionError, name: str) -> PredictionError:
    """The same error with the layer's name before it."""
    error.args = (f"layer {name!r}: {error}",)
    return error


def candidates(model: nn.Module, include: Sequence[str], exclude: Sequence[str]) -> dict[str, nn.Linear | nn.Conv2d]:
    """Layers to be replaced, by name.

    Raises:
        PredictionError: a pattern of `include` names no module, or one that cannot be predicted and no module that can.
    """
    modules = dict(model.named_modules())
    able = {name: layer for name, layer in modules.items() if _why_not(layer) is None}
    for pattern in include:
        hits = [name for name in modules if matches(pattern, name)]
        if not hits:
            raise PredictionError(f"no layer is named {pattern!r}", hint=f"there are {', '.join(able) or 'none'}")
        if not any(name in able for name in hits):
            raise PredictionError(f"layer {hits[0]!r}: {_why_not(modules[hits[0]])}")
    last = [name for name, layer in able.items() if isinstance(layer, nn.Linear)][-1:]
    wanted = [name for name in able if (any(matches(one, name) for one in include) if include else name not in last)]
    return {name: able[name] for name in wanted if not any(matches(one, name) for one in exclude)}


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern (exact, glob, or `re:`) names a layer."""
    if pattern.startswith("re:"):
        return re.fullmatch(pattern[3:], name) is not None
    return pattern == name or fnmatch.fnmatchcase(name, pattern)


def chosen_layers(
    model: nn.Module,
    dictionaries: Mapping[str, Dictionary] | Dictionary | None,
    include: Sequence[str],
    exclude: Sequence[str],
) -> dict[str, tuple[nn.Linear | nn.Conv2d, Dictionary]]:
    """Layers to be replaced, in the order of the model, with their dictionaries.

    Raises:
        PredictionError: as `candidates`; no layer or no dictionary at all.
    """
    if dictionaries is None:
        raise PredictionError("no dictionary to predict weights with", hint="such as predict.RandomFixed()")
    if isinstance(dictionaries, Dictionary):
        layers = candidates(model, include, exclude)
        found = {name: (layer, dictionaries) for name, layer in layers.items()}
    else:
        layers = candidates(model, include or tuple(dictionaries), exclude)
        found = {name: (layer, one) for name, layer in layers.items() for one in _first(dictionaries, name)}
    if not found:
        raise PredictionError("no layer of the model is to be predicted", hint="see include, exclude and dictionaries")
    return found


def _first(dictionaries: Mapping[str, Dictionary], name: str) -> Iterator[Dictionary]:
    """The dictionary of the first pattern that matches."""
    for pattern, dictionary in dictionaries.items():
        if matches(pattern, name):
            yield dictionary
            return


def _why_not(layer: nn.Module) -> str | None:
    """Why a module's weights cannot be predicted; None if they can."""
    if type(layer) is nn.Linear:
        return None
    if type(layer) is not nn.Conv2d:
        return f"weights of a {type(layer).__name__} cannot be predicted, those of Linear and Conv2d can"
    if layer.groups != 1:
        return f"weights of a convolution in {layer.groups} groups cannot be predicted"
    if layer.padding_mode != "zeros":
        return f"weights of a convolution with padding mode {layer.padding_mode!r} cannot be predicted"
    return None
