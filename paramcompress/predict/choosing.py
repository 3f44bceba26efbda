"""Which layers of a network are to be predicted, and with which dictionaries. Changes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from torch import nn

from paramcompress.dictionaries.contract import Dictionary
from paramcompress.errors import PredictionError
from paramcompress.patterns import matching


def chosen_layers(
    model: nn.Module,
    dictionaries: Mapping[str, Dictionary] | Dictionary | None,
    include: Sequence[str] | str,
    exclude: Sequence[str] | str,
) -> dict[str, tuple[nn.Linear | nn.Conv2d, Dictionary]]:
    """Layers to be replaced, in the order of the model, with their dictionaries; each by the first of its names.

    Raises:
        PredictionError: no module, no dictionary, no layer at all, or a pattern that names none; one of `include`, or
            of dictionaries where nothing is included, that names none that can be predicted.
        ConfigError: a pattern that is no regular expression.
    """
    if not isinstance(model, nn.Module):
        raise PredictionError(
            f"{type(model).__name__} has no layers to predict", hint="pass the model, not its state_dict"
        )
    if dictionaries is None:
        raise PredictionError("no dictionary to predict weights with", hint="such as predict.RandomFixed()")
    by_pattern = {"*": dictionaries} if isinstance(dictionaries, Dictionary) else dictionaries
    if not isinstance(by_pattern, Mapping) or not all(isinstance(pattern, str) for pattern in by_pattern):
        raise PredictionError(
            f"{dictionaries!r} is no dictionary", hint="such as predict.RandomFixed(), or {'layer1.*': one, ...}"
        )
    wanted = _patterns(include) or (() if isinstance(dictionaries, Dictionary) else tuple(by_pattern))
    names = _Names(model)
    included = {layer for pattern in wanted for layer in names.able(pattern)}
    excluded = {layer for pattern in _patterns(exclude) for layer in names.meant(pattern)}
    if not wanted:
        included = set(model.modules()) - names.last_linear
    meant = {pattern: set(names.meant(pattern)) for pattern in by_pattern}
    found = {}
    for name, layer in model.named_modules():
        one = next((by_pattern[pattern] for pattern, layers in meant.items() if layer in layers), None)
        if one is None or layer not in included - excluded or names.why_not(layer) is not None:
            continue
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        found[name] = layer, one
    if not found:
        raise PredictionError("no layer of the model is to be predicted", hint="see include, exclude and dictionaries")
    return found


class _Names:
    """The modules of a model by all their names, of which one that is used twice has two."""

    def __init__(self, model: nn.Module) -> None:
        self._modules = dict(model.named_modules(remove_duplicate=False))
        held = Counter(id(one) for module in model.modules() for one in module.parameters(recurse=False))
        self._tied = {one for one, n_holders in held.items() if n_holders > 1}
        self.last_linear = set([layer for layer in model.modules() if isinstance(layer, nn.Linear)][-1:])

    def meant(self, pattern: str) -> list[nn.Module]:
        """Modules that a pattern names."""
        found = [self._modules[name] for name in matching(pattern, list(self._modules))]
        if not found:
            able = [name for name, layer in self._modules.items() if self.why_not(layer) is None]
            raise PredictionError(f"no layer is named {pattern!r}", hint=f"there are {', '.join(able) or 'none'}")
        return found

    def able(self, pattern: str) -> list[nn.Module]:
        """The same, of which one at least can be predicted."""
        found = self.meant(pattern)
        reasons = [self.why_not(layer) for layer in found]
        if None not in reasons:
            name = next(name for name, layer in self._modules.items() if layer is found[0])
            raise PredictionError(f"layer {name!r}: {reasons[0]}")
        return found

    def why_not(self, layer: nn.Module) -> str | None:
        """Why a module's weights cannot be predicted; None if they can."""
        if type(layer) is not nn.Linear and type(layer) is not nn.Conv2d:
            return f"weights of a {type(layer).__name__} cannot be predicted, those of Linear and Conv2d can"
        if layer._parameters.get("weight") is None:
            return "weights that are computed from others (weight_norm, pruning) cannot be predicted"
        if id(layer.weight) in self._tied:
            return "weights that another module holds too cannot be predicted"
        if isinstance(layer, nn.Conv2d) and layer.groups != 1:
            return f"weights of a convolution in {layer.groups} groups cannot be predicted"
        if isinstance(layer, nn.Conv2d) and layer.padding_mode != "zeros":
            return f"weights of a convolution with padding mode {layer.padding_mode!r} cannot be predicted"
        return None


def _patterns(given: Sequence[str] | str) -> tuple[str, ...]:
    """One pattern, or several."""
    return (given,) if isinstance(given, str) else tuple(given)
