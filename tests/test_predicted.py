"""Checkpoints of predicted networks: squeezed to their learned numbers and a recipe, expanded to dense weights."""

from __future__ import annotations

import contextlib
import copy
import json
import random
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference_decoder
import safetensors.torch
import torch
from helpers import raw
from torch import Tensor, nn

import paramcompress
from paramcompress import anatomy, predict, predicted
from paramcompress import layer as layers
from paramcompress.container import Reader
from paramcompress.dictionaries import recipe as recipes
from paramcompress.dictionaries.orthonormal import on_grid, orthonormalised
from paramcompress.dictionaries.recipe import Recipe
from paramcompress.metrics import deviation

GRID = (16, 12)
N_IN = 192


def net(**options: Any) -> nn.Sequential:
    """A predicted layer on a grid, one on activations, a dense one."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(N_IN, 120), nn.Sigmoid(), nn.Linear(120, 100), nn.Sigmoid(), nn.Linear(100, 10))
    dictionaries = {"0": predict.SquaredExponential(GRID), "2": predict.RandomFixed()}
    return predict.convert(model, 0.06, dictionaries, **{"groups": 6, **options})  # type: ignore[return-value]


def expanded(path: Path, state: dict[str, Any], **options: Any) -> dict[str, Tensor]:
    """State of a network after squeeze, verify, expand."""
    torch.save(state, path / "model.pt")
    paramcompress.squeeze(path / "model.pt", path / "small", force=True, **options)
    paramcompress.verify(path / "small", path / "model.pt")
    paramcompress.expand(path / "small", path / "full.pt", force=True)
    found: dict[str, Tensor] = torch.load(path / "full.pt")
    return found


# ------------------------------------------------------------------------------------------- what comes back


def test_expands_to_the_merged_network(tmp_path: Path) -> None:
    """Without loss where none is allowed: names, order and bits are those of the merged network."""
    model = net()
    dense = predict.merge(copy.deepcopy(model)).state_dict()
    found = expanded(tmp_path, model.state_dict(), max_rel_error=0)
    assert list(found) == list(dense)
    assert all(raw(found[name]) == raw(dense[name]) for name in dense)
    plain = nn.Sequential(nn.Linear(N_IN, 120), nn.Sigmoid(), nn.Linear(120, 100), nn.Sigmoid(), nn.Linear(100, 10))
    plain.load_state_dict(found)


@pytest.mark.parametrize("limit", [0.003, 0.03, 0.2])
def test_the_limit_holds_for_the_dense_weights(limit: float, tmp_path: Path) -> None:
    model = net()
    dense = predict.merge(copy.deepcopy(model)).state_dict()
    found = expanded(tmp_path, model.state_dict(), max_rel_error=limit)
    errors = [deviation(dense[name], found[name]).rel_error for name in ("0.weight", "2.weight")]
    assert all(0.5 * limit < error <= limit for error in errors)


@pytest.mark.parametrize("sigma", [1.0, 3.0])
def test_the_limit_holds_where_atoms_enlarge_errors(sigma: float, tmp_path: Path) -> None:
    """Overlapping bumps as they are: one coefficient is in many weights, so that the first try is too coarse."""
    layer = predict.PredictedLinear(
        N_IN, 120, dictionary=predict.SquaredExponential(GRID, sigma), n_support=20, variant="raw", orthonormal=False
    )
    assert "dictionary" not in layer.state_dict()
    weight = layer.dense_weight()
    found = expanded(tmp_path, nn.Sequential(layer).state_dict(), max_rel_error=0.03)["0.weight"]
    assert 0.01 < deviation(weight, found).rel_error <= 0.03
    with Reader(tmp_path / "small") as reader:
        assert reader.entries["0.weight"].codec == "predicted"


def test_bytes_are_those_of_the_learned_numbers(tmp_path: Path) -> None:
    """About as many bits for each learned number as for each weight of an ordinary matrix, and some words of recipe;
    a tenth of what the same weights take without their recipe."""
    model = net()
    merged = predict.merge(copy.deepcopy(model)).state_dict()
    one = paramcompress.squeeze(model.state_dict(), tmp_path / "a")
    other = paramcompress.squeeze(merged, tmp_path / "b")
    sizes, dense = ({layer.name: layer.bytes_after for layer in report.layers} for report in (one, other))
    for name, number in (("0.weight", 0), ("2.weight", 2)):
        learned = model[number].learned.numel()
        assert sizes[name] < 6 * learned / 8 + 80
        assert sizes[name] < 0.13 * dense[name]
    assert any("are predicted from" in note for note in one.notes)


def test_a_size_can_be_asked_for(tmp_path: Path) -> None:
    paramcompress.squeeze(net().state_dict(), tmp_path / "a", target_size="7kB")
    assert 6500 < (tmp_path / "a").stat().st_size <= 7000


@pytest.mark.parametrize("kind", ["torch", "safetensors", "nested", "module.", "parameters"])
def test_every_kind_of_checkpoint(kind: str, tmp_path: Path) -> None:
    model = net()
    state = model.state_dict()
    dense = predict.merge(copy.deepcopy(model)).state_dict()
    source, prefix = tmp_path / "model.pt", ""
    if kind == "safetensors":
        source = tmp_path / "model.safetensors"
        safetensors.torch.save_file(state, source)
    else:
        tree: Any = {
            "torch": state,
            "nested": {"state_dict": state, "epoch": 7},
            "module.": {f"module.{name}": value for name, value in state.items()},
            "parameters": {**state, **dict(model.named_parameters())},
        }[kind]
        torch.save(tree, source)
        prefix = kind if kind == "module." else ""
    paramcompress.squeeze(source, tmp_path / "small", max_rel_error=0)
    out = paramcompress.expand(tmp_path / "small", tmp_path / f"full{source.suffix}")
    found: Any = safetensors.torch.load_file(out) if kind == "safetensors" else torch.load(out, weights_only=False)
    if kind == "nested":
        assert found["epoch"] == 7
        found = found["state_dict"]
    assert {name: raw(value.detach()) for name, value in found.items()} == {
        prefix + name: raw(value) for name, value in dense.items()
    }


def test_tied_layers_stay_tied(tmp_path: Path) -> None:
    layer = predict.PredictedLinear(N_IN, 120, dictionary=predict.SquaredExponential(GRID), fraction=0.05)
    found = expanded(tmp_path, nn.Sequential(layer, nn.Sigmoid(), layer).state_dict(), max_rel_error=0.01)
    assert found["0.weight"].data_ptr() == found["2.weight"].data_ptr()


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
@pytest.mark.parametrize("limit", [0, 0.05])
def test_dtypes(dtype: str, limit: float, tmp_path: Path) -> None:
    model = net().to(getattr(torch, dtype))
    dense = predict.merge(copy.deepcopy(model)).state_dict()
    found = expanded(tmp_path, model.state_dict(), max_rel_error=limit)
    assert {value.dtype for value in found.values()} == {getattr(torch, dtype)}
    if dtype == "float64":  # what float64 has beyond float32 is not predicted with
        assert deviation(dense["0.weight"], found["0.weight"]).rel_error <= limit + 1e-7
    elif limit == 0 and dtype == "float16":
        # a merged layer in half types predicts with rounded atoms, a checkpoint with those of the recipe
        assert deviation(dense["0.weight"], found["0.weight"]).rel_error <= 2**-10


@pytest.mark.parametrize("limit", [0, 0.05])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("kind", ["covariance", "pca", "learned"])
def test_stored_dictionaries(kind: str, groups: int, limit: float, tmp_path: Path) -> None:
    """They cost bytes, and still fewer than the dense weight."""
    data = torch.randn(300, N_IN, generator=torch.Generator().manual_seed(0))
    dictionary = {
        "covariance": predict.Covariance(data),
        "pca": predict.PCA(data),
        "learned": predict.LearnedLowRank(),
    }[kind]
    layer = predict.PredictedLinear(N_IN, 300, dictionary=dictionary, n_support=10, groups=groups)
    weight = layer.dense_weight()
    found = expanded(tmp_path, nn.Sequential(layer).state_dict(), max_rel_error=limit)["0.weight"]
    assert deviation(weight, found).rel_error <= limit
    with Reader(tmp_path / "small") as reader:
        entry = reader.entries["0.weight"]
    assert (entry.codec, entry.dictionary, entry.rank) == ("predicted", kind, 10)
    assert entry.n_bytes < (0.06 + 0.05 * groups) * weight.numel() * (4 if limit == 0 else 1)


def test_dense_where_that_is_shorter(tmp_path: Path) -> None:
    """A stored dictionary for each of twelve features is no bargain; nor is a recipe for a layer of 3 weights."""
    data = torch.randn(60, 40, generator=torch.Generator().manual_seed(0))
    layer = predict.PredictedLinear(40, 12, dictionary=predict.Covariance(data), n_support=20, groups=12)
    tiny = predict.PredictedLinear(3, 1, dictionary=predict.RandomFixed(), n_support=2)
    paramcompress.squeeze(nn.Sequential(layer, tiny).state_dict(), tmp_path / "a")
    with Reader(tmp_path / "a") as reader:
        assert {reader.entries[name].codec for name in ("0.weight", "1.weight")} <= {"factored", "vector", "exact"}


@pytest.mark.parametrize(("limit", "structure"), [(0.03, False), (0, False), (0.03, True)])
def test_the_dense_stream_is_made_only_where_it_may_be_shorter(
    limit: float, structure: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not beside thousands of learned numbers that cost what noise does; but beside those of rank one."""
    layer = predict.PredictedLinear(N_IN, 400, dictionary=predict.SquaredExponential(GRID), n_support=12)
    if structure:
        layer.learned.data[:] = layer.learned[:1] * torch.linspace(0.5, 2, 400)[:, None]
    asked = []
    dense = layers.encode
    monkeypatch.setattr(
        layers, "encode", lambda info, *args, **how: asked.append(info.name) or dense(info, *args, **how)
    )
    paramcompress.squeeze(
        {"0." + name: one for name, one in layer.state_dict().items()}, tmp_path / "a", max_rel_error=limit
    )
    assert ("0.weight" in asked) == structure


def test_settings_by_hand_are_for_the_dense_weight(tmp_path: Path) -> None:
    layers = {"0.weight": {"dictionary": "lowrank", "rank": 3}, "2.weight": {"exact": True}}
    paramcompress.squeeze(net().state_dict(), tmp_path / "a", layers=layers)
    with Reader(tmp_path / "a") as reader:
        assert (reader.entries["0.weight"].codec, reader.entries["0.weight"].dictionary) == ("factored", "lowrank")
        assert (reader.entries["2.weight"].codec, reader.entries["2.weight"].rel_error) == ("predicted", 0)


def test_the_slow_decoder_agrees(tmp_path: Path) -> None:
    model = nn.Sequential(
        predict.PredictedConv2d(3, 30, 5, dictionary=predict.SquaredExponential(), fraction=0.25, groups=4),
        predict.PredictedLinear(60, 50, dictionary=predict.Cosine((10, 6)), n_support=6, supports="uniform", groups=3),
        predict.PredictedLinear(
            60, 50, dictionary=predict.SquaredExponential((5, 4, 3), sigma=9.0), n_support=20, supports="uniform"
        ),
    ).half()
    paramcompress.squeeze(model.state_dict(), tmp_path / "a", layers={"2.*": {"exact": True}})
    with Reader(tmp_path / "a") as reader:
        assert [one.codec for one in reader.entries.values() if "weight" in one.name] == ["predicted"] * 3
    fast = paramcompress.load_file(tmp_path / "a")
    slow = reference_decoder.decode_file(tmp_path / "a")
    assert {name: bits for name, (_, _, bits) in slow.items()} == {name: raw(value) for name, value in fast.items()}


def test_other_commands_take_it(tmp_path: Path) -> None:
    """Difference, anatomy and explanation of such a file, against its checkpoint and without."""
    torch.save(net().state_dict(), tmp_path / "model.pt")
    paramcompress.squeeze(tmp_path / "model.pt", tmp_path / "a.safetensors")
    found = paramcompress.diff(tmp_path / "model.pt", tmp_path / "a.safetensors")
    assert {one.name for one in found.layers} == {f"{i}.{part}" for i in (0, 2, 4) for part in ("weight", "bias")}
    sections = anatomy.examine(tmp_path / "a.safetensors").sections
    assert sections["coefficients"] > 1000
    for original in (None, tmp_path / "model.pt"):
        why = paramcompress.explain(tmp_path / "a.safetensors", "0.weight", original)
        assert why.choices[0].dictionary == "squared-exponential"
        assert sum(why.sections.values()) == why.choices[0].bytes
        assert {"exact", "none"} <= {one.dictionary for one in why.choices}


# ------------------------------------------------------------------------------------------- parts that do not fit


def test_what_is_not_a_predicted_layer_stays_what_it_is(tmp_path: Path) -> None:
    state = net().state_dict()
    wrong: dict[str, dict[str, Tensor]] = {
        "no recipe": {name: value for name, value in state.items() if name != "0.recipe"},
        "no JSON": state | {"0.recipe": torch.arange(50, dtype=torch.uint8)},
        "another shape": state | {"0.learned": state["0.learned"][:, 1:]},
        "weight there": state | {"0.weight": torch.zeros(3)},
        "a dictionary too many": state | {"0.dictionary": torch.zeros(6, 12, N_IN)},
    }
    for name, tensors in wrong.items():
        paramcompress.squeeze(tensors, tmp_path / "a", force=True, max_rel_error=0)
        found = paramcompress.load_file(tmp_path / "a")
        assert "0.learned" in found, name
        assert "2.weight" in found, name
        assert raw(found["0.learned"]) == raw(tensors["0.learned"])


def honest() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(net()[0].cooked.to_json())
    return found


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "magic"},
        {"kind": 3},
        {"shape": [120]},
        {"shape": [120, 2**61]},
        {"shape": [120, -192]},
        {"groups": 0},
        {"groups": 121},
        {"n_support": 193},
        {"n_support": 1.5},
        {"seed": [-1]},
        {"seed": "x"},
        {"supports": "best"},
        {"supports": [[1, 2]]},
        {"supports": [[5] * 12] * 6},
        {"supports": [list(range(185, 197))] * 6},
        {"parameters": {}},
        {"parameters": {"grid": [16, 11], "sigma": 1.0}},
        {"parameters": {"grid": [16, 12], "sigma": 0}},
        {"parameters": {"grid": [16, 12], "sigma": "wide"}},
        {"parameters": {"grid": [16, 12], "sigma": 1.0, "extra": 1}},
        {"parameters": {"grid": "here", "sigma": 1.0}},
        {"parameters": [16, 12]},
        {"kind": "down-sampling", "parameters": {"grid": [16, 12]}},
        {"kind": "down-sampling", "parameters": {"grid": [16, 12], "coarse": [17, 1]}},
        {"kind": "random", "parameters": {"seed": 0}, "supports": "uniform"},
        {"extra": 1},
    ],
)
def test_a_recipe_that_cannot_be_cooked(change: dict[str, Any]) -> None:
    good = honest()
    Recipe.from_json(json.dumps(good).encode())
    with pytest.raises(ValueError):  # noqa: PT011 - the message depends on what is wrong
        Recipe.from_json(json.dumps(good | change).encode())


def test_a_recipe_asks_for_no_more_than_a_layer_is_worth() -> None:
    """Neither memory nor time: few bytes shall not start a day's work."""
    wide = honest() | {"shape": [4, 2**16], "n_support": 2**15, "groups": 1}
    with pytest.raises(ValueError, match="numbers"):
        Recipe.from_json(json.dumps(wide | {"parameters": {"grid": [256, 256], "sigma": 1.0}}).encode())
    slow = honest() | {"shape": [4, 2**13], "n_support": 2**12, "groups": 4}
    with pytest.raises(ValueError, match="too large to regenerate"):
        Recipe.from_json(json.dumps(slow | {"parameters": {"grid": [128, 64], "sigma": 1.0}}).encode())
    stored = Recipe("pca", (64, 4096), 64, 4096, "leading", [0], stored=True)
    with pytest.raises(ValueError, match="numbers"):
        Recipe.from_json(stored.to_json())
    assert not predicted.is_bargain(Recipe("pca", (64, 4096), 32, 2048, "leading", [0], stored=True))


def test_damaged_streams_are_refused(tmp_path: Path) -> None:
    """Every cut and a thousand changed bytes: ValueError or another matrix, never anything else."""
    paramcompress.squeeze(net().state_dict(), tmp_path / "a")
    with Reader(tmp_path / "a") as reader:
        entry = reader.entries["2.weight"]
        stream = bytes(reader.stream(entry))
    assert predicted.decode(stream, entry.shape, torch.float32).reconstruct().shape == entry.shape
    chance = random.Random(0)
    damaged = [stream[:n] for n in range(0, len(stream), 7)]
    for _ in range(1000):
        at = chance.randrange(120) if chance.random() < 0.7 else chance.randrange(len(stream))
        damaged.append(stream[:at] + bytes([chance.randrange(256)]) + stream[at + 1 :])
    for one in damaged:
        with contextlib.suppress(ValueError):
            assert predicted.decode(one, entry.shape, torch.float32).reconstruct().shape == entry.shape
    with pytest.raises(ValueError, match="recipe for shape"):
        predicted.decode(stream, (entry.shape[1], entry.shape[0]), torch.float32)


# ------------------------------------------------------------------------------------------- the same bits everywhere


def test_regenerated_dictionaries_have_not_changed() -> None:
    """Their CRC-32 in units of 2**-20: a change breaks every file that holds a recipe."""
    made: dict[str, tuple[predict.Dictionary, int]] = {
        "squared-exponential": (predict.SquaredExponential(GRID), 1269922840),
        "random": (predict.RandomFixed(), 439799270),
        "cosine": (predict.Cosine(GRID), 18030979),
        "connections": (predict.RandomConnections(), 2442132463),
        "down-sampling": (predict.DownSampling(GRID), 1148052849),
    }
    assert set(made) == set(recipes.REGENERATED)
    found = {}
    for kind, (dictionary, _) in made.items():
        layer = predict.PredictedLinear(N_IN, 20, dictionary=dictionary, n_support=16, groups=2)
        again = Recipe.from_json(bytes(layer.recipe.tolist())).regenerated()
        assert torch.equal(torch.from_numpy(again.copy()), layer.dictionary)
        units = np.rint(again.astype(np.float64) * 2.0**20).astype("<i4")
        assert np.array_equal(units * 2.0**-20, again)
        found[kind] = zlib.crc32(units.tobytes())
    assert found == {kind: checksum for kind, (_, checksum) in made.items()}


def test_orthonormal_against_a_decomposition() -> None:
    """The span is that of QR; dependent atoms give way to the unit vectors at their positions."""
    rng = np.random.default_rng(0)
    atoms = rng.standard_normal((30, 8))
    q = orthonormalised(atoms, np.arange(8))
    expected = np.linalg.qr(atoms)[0]
    assert np.abs(q @ q.T - expected @ expected.T).max() < 1e-13
    atoms[:, 5] = atoms[:, 2] * 3
    atoms[:, 7] = 0
    q = orthonormalised(atoms, np.arange(10, 18))
    assert np.abs(q.T @ q - np.eye(8)).max() < 1e-14
    span = np.linalg.qr(np.concatenate([atoms[:, [0, 1, 2, 3, 4, 6]], np.eye(30)[:, [15, 17]]], 1))[0]
    assert np.abs(q @ q.T - span @ span.T).max() < 1e-12


def test_orthonormal_of_nearly_dependent_atoms() -> None:
    """Wide bumps on a line, condition number beyond 1e15: one pass would not do."""
    line = np.arange(40.0)
    bumps = np.exp(-((line[:, None] - line[::2]) ** 2) / (2 * 12.0**2))
    assert np.linalg.cond(bumps) > 1e12
    q = orthonormalised(bumps, np.arange(0, 40, 2))
    assert np.abs(q.T @ q - np.eye(20)).max() < 1e-13


def test_grid_is_exact_in_float32() -> None:
    values = np.random.default_rng(0).standard_normal((20, 7)) * 3
    rounded = on_grid(values)
    unit = 2.0 ** (np.ceil(np.log2(np.abs(values).max())) - 15)
    assert np.abs(rounded - values).max() <= unit / 2
    assert np.array_equal(rounded / unit, np.rint(rounded / unit))
