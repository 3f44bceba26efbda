"""Which layers of a network are predicted: those that are named, but for weights that are not a layer's own."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from paramcompress import predict
from paramcompress.errors import ConfigError, PredictionError

RANDOM = predict.RandomFixed()


def kinds(model: nn.Module) -> list[str]:
    return [type(one).__name__ for one in model._modules.values()]


class LanguageModel(nn.Module):
    """Its head is the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.hidden, self.head = nn.Embedding(50, 32), nn.Linear(32, 32), nn.Linear(32, 50, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(self.embedding(x)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["0", "2"])
@pytest.mark.parametrize("how", ["convert", "layerwise"])
def test_a_layer_that_is_used_twice_stays_one(how: str, name: str) -> None:
    """By either of its names; and as one it is merged."""
    layer = nn.Linear(16, 16)
    net = nn.Sequential(layer, nn.Sigmoid(), layer, nn.Linear(16, 3))
    if how == "convert":
        predict.convert(net, 0.5, {name: RANDOM})
    else:
        predict.layerwise(net, torch.rand(30, 16), 0.5, {name: predict.Covariance()})
    assert kinds(net) == ["PredictedLinear", "Sigmoid", "PredictedLinear", "Linear"]
    assert net[0] is net[2]
    x = torch.rand(4, 16)
    before = net(x)
    predict.merge(net)
    assert kinds(net) == ["Linear", "Sigmoid", "Linear", "Linear"]
    assert net[0] is net[2]
    assert torch.allclose(net(x), before, atol=1e-6)


def test_tied_weights_stay_tied() -> None:
    """They are dense, the last layer's as all others'; a pattern that names them is refused."""
    net = predict.convert(LanguageModel(), 0.5, RANDOM)
    assert list(predict.predicted_layers(net)) == ["hidden"]
    assert net.head.weight is net.embedding.weight
    with pytest.raises(PredictionError, match="layer 'head': weights that another module holds too"):
        predict.convert(LanguageModel(), 0.5, {"head": RANDOM})


@pytest.mark.parametrize("how", ["weight_norm", "old weight_norm", "pruning"])
def test_weights_that_are_computed_are_refused(how: str) -> None:
    layer = nn.Linear(16, 8)
    if how == "weight_norm":
        parametrizations.weight_norm(layer)
    elif how == "pruning":
        prune.l1_unstructured(layer, "weight", 0.5)  # type: ignore[no-untyped-call]
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            nn.utils.weight_norm(layer)
    with pytest.raises(PredictionError, match=r"layer '0': weights .*cannot be predicted"):
        predict.convert(nn.Sequential(layer, nn.Linear(8, 2)), 0.5, {"0": RANDOM})


def test_one_pattern_needs_no_list() -> None:
    """A string is one pattern, and not one for each of its letters."""
    net = nn.ModuleDict({"fc": nn.Linear(8, 8), "cf": nn.Linear(8, 8), "head": nn.Linear(8, 2)})
    predict.convert(net, 0.5, RANDOM, include="?[cf]", exclude="cf")
    assert kinds(net) == ["PredictedLinear", "Linear", "Linear"]


def test_an_exact_name_is_no_glob() -> None:
    net = nn.ModuleDict({"a[0]": nn.Linear(8, 8), "a0": nn.Linear(8, 8)})
    assert kinds(predict.convert(net, 0.5, {"a[0]": RANDOM})) == ["PredictedLinear", "Linear"]


def test_a_pattern_that_does_not_parse() -> None:
    with pytest.raises(ConfigError, match="not a regular expression"):
        predict.convert(nn.Linear(8, 8), 0.5, {"re:(": RANDOM})


def test_a_transformer() -> None:
    """Attention stays as it is; the rest is predicted, in training and on torch's fast path of evaluation."""
    net = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True), 2)
    predict.convert(net, 0.25, RANDOM, include="*.linear?")
    assert len(predict.predicted_layers(net)) == 4
    x = torch.rand(2, 5, 32)
    expected = net(x)
    with torch.no_grad():
        assert torch.allclose(net.eval()(x), expected, atol=1e-5)
