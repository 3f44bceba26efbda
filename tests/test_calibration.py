"""Second moments against what the modules themselves give, sensitivities against exact derivatives, and wrong input."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import paramcompress
from paramcompress import calibration
from paramcompress.calibration import calibrate
from paramcompress.codec import Layout
from paramcompress.errors import CalibrationError
from paramcompress.inputs import MOST_POSITIONS, products
from paramcompress.lockstep import run_in_lockstep
from paramcompress.moments import Moment, SecondMoments


@pytest.fixture(autouse=True)
def seeded() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def inputs(*shape: int) -> Tensor:
    """Correlated numbers with a mean."""
    x = torch.randn(shape) + 0.5
    return x + 0.5 * x.roll(1, -1)


LINEAR: dict[str, tuple[nn.Module, Tensor]] = {
    "linear": (nn.Linear(6, 5), inputs(7, 3, 6)),
    "conv1d": (nn.Conv1d(4, 6, 3, stride=2, padding=1), inputs(3, 4, 12)),
    "conv2d": (nn.Conv2d(4, 6, 3, padding=1), inputs(2, 4, 8, 7)),
    "conv2d strided": (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0)), inputs(2, 4, 9, 8)),
    "conv2d dilated": (nn.Conv2d(4, 6, 3, dilation=2, padding=2), inputs(2, 4, 9, 8)),
    "conv2d same": (nn.Conv2d(4, 6, (3, 5), padding="same", dilation=(2, 1)), inputs(2, 4, 9, 8)),
    "conv2d reflecting": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), inputs(2, 4, 9, 8)),
    "conv2d grouped": (nn.Conv2d(4, 6, 3, groups=2), inputs(2, 4, 8, 7)),
    "conv2d depthwise": (nn.Conv2d(4, 8, 3, groups=4), inputs(2, 4, 8, 7)),
    "conv2d one image": (nn.Conv2d(4, 6, 3), inputs(4, 8, 7)),
    "conv3d": (nn.Conv3d(2, 3, (2, 3, 2), stride=(1, 2, 1)), inputs(2, 2, 4, 6, 5)),
}
"""Modules whose output is linear in the weight, with an input each."""


@pytest.mark.parametrize("name", LINEAR)
def test_moments_say_what_an_error_in_the_weight_does_to_the_output(name: str) -> None:
    """The oracle is the module itself: with the error for its weight, what it gives has that energy."""
    module, x = LINEAR[name]
    moment = calibrate(module, [x], n_probes=0).layers["weight"]
    error = copy.deepcopy(module)
    error.weight.data = torch.randn_like(error.weight)
    assert error.bias is not None
    error.bias.data.zero_()
    given = error(x).detach().double()
    layout = Layout.of(tuple(error.weight.shape))
    n_vectors = given.numel() / layout.n_rows
    energy = moment.output_energy(error.weight.detach().reshape(layout.n_rows, -1).numpy()) * n_vectors
    assert energy == pytest.approx(float(given.square().sum()), rel=1e-5)


@pytest.mark.parametrize("name", LINEAR)
def test_about_the_means_they_say_how_much_the_output_varies(name: str) -> None:
    """The oracle is the module itself: what is left of the output when the mean of each row is taken back."""
    module, x = LINEAR[name]
    moment = calibrate(module, [x]).layers["weight"].about_means()
    error = copy.deepcopy(module)
    error.weight.data = torch.randn_like(error.weight)
    layout = Layout.of(tuple(error.weight.shape))
    given = error(x).detach().double()
    rows = given.reshape(-1, layout.n_rows).T if name == "linear" else given.movedim(-len(layout.kernel) - 1, 0)
    rows = rows.reshape(layout.n_rows, -1)
    energy = moment.output_energy(error.weight.detach().reshape(layout.n_rows, -1).numpy())
    assert energy == pytest.approx(float(rows.var(1, correction=0).sum()), rel=1e-4)


def test_of_many_windows_some_are_taken() -> None:
    """Always the same ones, and enough that the moments are about those of all."""
    module, x = nn.Conv2d(3, 4, 3, padding=1), inputs(8, 3, 40, 40)
    (product,) = products(module, ((x,), {}))
    assert product.inputs is not None
    assert product.inputs.shape == (1, 8 * MOST_POSITIONS, 27)
    (again,) = products(module, ((x,), {}))
    assert torch.equal(product.inputs, again.inputs)
    some = calibrate(module, [x], n_probes=0).layers["weight"].columns[0]
    windows = nn.functional.unfold(x, 3, padding=1).transpose(1, 2).reshape(-1, 27).double()
    whole = (windows.T @ windows / len(windows)).numpy()
    assert abs(some - whole).max() < 0.15 * whole.max()


def test_a_transposed_convolution_knows_the_energy_of_its_inputs() -> None:
    """Exact where only one input channel is wrong."""
    module, x = nn.ConvTranspose2d(3, 4, 2, stride=2), inputs(2, 3, 5, 5)  # windows do not overlap
    moment = calibrate(module, [x], n_probes=0).layers["weight"]
    error = copy.deepcopy(module)
    error.weight.data.zero_()
    error.weight.data[1] = torch.randn_like(error.weight[1])
    assert error.bias is not None
    error.bias.data.zero_()
    energy = moment.output_energy(error.weight.detach().reshape(3, -1).numpy()) * 2 * 5 * 5
    assert energy == pytest.approx(float(error(x).detach().double().square().sum()), rel=1e-5)


def test_rows_that_are_scaled_go_together_as_their_inputs_do() -> None:
    """The moments of a transposed convolution give the energy of any error, where windows do not overlap."""
    module, x = nn.ConvTranspose2d(3, 4, 2, stride=2, bias=False), inputs(2, 3, 5, 5) + 1
    moment = calibrate(module, [x], n_probes=0).layers["weight"]
    assert moment.coupling is not None
    root = np.sqrt(moment.rows)
    gram = moment.coupling[0] * root[:, None] * root
    error = module.weight.detach().reshape(3, -1).double().numpy()
    assert 2 * 5 * 5 * float((gram * (error @ error.T)).sum()) == pytest.approx(
        float(module(x).detach().double().square().sum()), rel=1e-5
    )


@pytest.mark.parametrize("module", [nn.Conv1d(6, 1, 1), nn.Conv2d(6, 1, 1), nn.Conv2d(6, 1, 3, stride=3)])
def test_a_convolution_of_one_feature_has_its_channels_for_rows(module: Any) -> None:
    """As its weight is read. Exact for kernels of one number, and in the mean of all errors where windows tile."""
    x = inputs(8, 6, *(9 for _ in module.kernel_size))
    moment = calibrate(module, [x]).layers["weight"]
    assert moment.coupling is not None
    root = np.sqrt(moment.rows)
    gram = moment.coupling[0] * root[:, None] * root
    found, expected = 0.0, 0.0
    for _ in range(1 if module.weight[0, 0].numel() == 1 else 200):
        error = torch.randn(6, module.weight[0, 0].numel(), dtype=torch.float64)
        given = functional_of(module)(x.double(), error.reshape(module.weight.shape), stride=module.stride)
        found += float((gram * (error @ error.T).numpy()).sum())
        expected += float(given.square().mean())
    assert found == pytest.approx(expected, rel=1e-5 if module.weight[0, 0].numel() == 1 else 0.2)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_long_convolution_has_a_row_for_each_pair_of_channels(groups: int) -> None:
    """As its weight is read. Its rows see the windows of all channels, one at a time."""
    module, x = nn.Conv1d(4, 6, 20, groups=groups), inputs(3, 4, 50)
    moment = calibrate(module, [x], n_probes=2000).layers["weight"]
    windows = x.unfold(2, 20, 1).reshape(-1, 20).double()
    np.testing.assert_allclose(moment.columns[0], windows.T @ windows / len(windows), rtol=1e-5)
    gradients = torch.autograd.functional.jacobian(
        lambda weight: nn.functional.conv1d(x, weight, module.bias, groups=groups), module.weight
    )
    energy = float(module(x).detach().square().sum())
    exact = gradients.square().sum((0, 1, 2, 5)).reshape(-1) / energy
    assert moment.sensitivity is not None
    np.testing.assert_allclose(moment.sensitivity, exact, rtol=0.15)
    assert moment.means is None
    assert moment.gauss_newton is None


def test_a_weight_that_is_read_otherwise_is_named() -> None:
    """A kernel wider than 16 is taken for a stack of matrices."""
    moments = calibrate(nn.Conv2d(3, 1, (2, 20)), [inputs(2, 3, 4, 30)])
    assert not moments.layers
    assert moments.notes == ("weight: its shape is not read as its module uses it; coded without data",)


def functional_of(module: Any) -> Callable[..., Tensor]:
    return nn.functional.conv1d if len(module.kernel_size) == 1 else nn.functional.conv2d


def test_a_linear_layer_whose_weight_is_turned_is_known_by_its_name() -> None:
    class Conv1D(nn.Module):
        """As in transformers: x @ weight + bias."""

        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(5, 7)), nn.Parameter(torch.zeros(7))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight + self.bias

    x = inputs(2, 6, 5)
    moment = calibrate(nn.Sequential(Conv1D(), nn.ReLU()), [x]).layers["0.weight"]
    assert moment.rows == pytest.approx(x.double().square().mean((0, 1)).numpy(), rel=1e-6)
    assert moment.coupling is not None
    assert moment.coupling.shape == (1, 5, 5)
    module = Conv1D()
    assert not list(products(module, ((inputs(2, 6, 7),), {})))  # of another kind, but of that name
    linear = type("Conv1D", (nn.Linear,), {})(5, 5)
    assert [one.scales for one in products(linear, ((x,), {}))] == [None]  # what a module is says more than its name
    assert len(list(products(module, ((), {"x": x})))) == 1


def test_a_call_with_nothing_counts_for_nothing() -> None:
    module, x = nn.Linear(5, 3), inputs(4, 5)
    found = [calibrate(module, batches, n_probes=0).layers["weight"] for batches in ([x], [x, x[:0]])]
    np.testing.assert_array_equal(found[0].columns, found[1].columns)


def test_noise_says_how_far_moments_are_from_the_truth() -> None:
    """Measured on one set of inputs: what other sets show."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.logspace(0, -1.5, 40).double()
    truth = torch.diag(spread**2).numpy()
    module, stated, true = nn.Linear(40, 4), [], []
    for _ in range(30):
        x = torch.randn(8, 25, 40, generator=generator).double() * spread
        moment = calibrate(module, list(x.float()), n_probes=0).layers["weight"]
        flat = np.trace(moment.columns[0]) / 40 * np.eye(40)
        assert moment.noise is not None
        stated.append(float(moment.noise[0]))
        true.append(float(np.square(moment.columns[0] - truth).sum() / np.square(moment.columns[0] - flat).sum()))
    assert np.mean(stated) == pytest.approx(np.mean(true), rel=0.1)
    assert calibrate(module, [torch.randn(1, 40)], n_probes=0).layers["weight"].noise is None


def test_an_embedding_counts() -> None:
    module, ids = nn.Embedding(5, 3), torch.tensor([[0, 1, 1], [4, 1, 0]])
    moment = calibrate(module, [ids], n_probes=0).layers["weight"]
    assert moment.rows.tolist() == pytest.approx([2 / 6, 3 / 6, 0, 0, 1 / 6])
    assert moment.output_energy(module.weight.detach().numpy()) * 6 == pytest.approx(
        float(module(ids).detach().double().square().sum()), rel=1e-5
    )


RECURRENT: dict[str, Callable[[], nn.RNNBase]] = {
    "rnn": lambda: nn.RNN(4, 5),
    "gru": lambda: nn.GRU(4, 5, num_layers=2, batch_first=True),
    "lstm": lambda: nn.LSTM(4, 5, num_layers=2, bidirectional=True),
    "projected": lambda: nn.LSTM(4, 5, proj_size=3, num_layers=2),
}


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_layers_are_followed_as_the_module_runs_them(name: str) -> None:
    """What goes into the second layer is what the first gives; the module of one layer is the oracle for that, and its
    cell, step by step, for the states."""
    module = RECURRENT[name]().eval()
    x = inputs(6, 3, 4)
    found = {product.weight: product.inputs for product in products(module, ((x,), {}))}
    n_directions = 2 if module.bidirectional else 1
    assert len(found) == 2 * module.num_layers * n_directions
    assert torch.equal(found["weight_ih_l0"], x.reshape(1, -1, 4))
    if module.num_layers == 1:
        state = torch.zeros(3, 5)
        states = []
        for step in x:
            states.append(state)
            state = torch.tanh(
                step @ module.weight_ih_l0.T + module.bias_ih_l0 + state @ module.weight_hh_l0.T + module.bias_hh_l0
            )
        seen, expected = found["weight_hh_l0"][0], torch.cat(states)
        torch.testing.assert_close(seen.T @ seen, expected.T @ expected)
    else:  # the last layer's own run on what is said to go into it gives what the module gives
        last = module.num_layers - 1
        width = found[f"weight_ih_l{last}"].shape[-1]
        between = found[f"weight_ih_l{last}"].reshape(*x.shape[:2], width)
        options: dict[str, Any] = {"bidirectional": module.bidirectional, "batch_first": module.batch_first}
        if isinstance(module, nn.LSTM):
            options["proj_size"] = module.proj_size
        one = type(module)(width, 5, **options)
        one.load_state_dict(
            {key.replace(f"_l{last}", "_l0"): value for key, value in module.state_dict().items() if f"_l{last}" in key}
        )
        torch.testing.assert_close(one(between)[0], module(x)[0])


CELLS: dict[str, tuple[type[nn.RNNCellBase], type[nn.RNNBase]]] = {
    "rnn": (nn.RNNCell, nn.RNN),
    "gru": (nn.GRUCell, nn.GRU),
    "lstm": (nn.LSTMCell, nn.LSTM),
}


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_in_a_loop_is_the_layer_that_it_stands_for(name: str) -> None:
    """The oracle is torch's own recurrent layer. The first state is not given, and counts as nothing seen."""
    cell, layer = (kind(4, 5) for kind in CELLS[name])
    layer.load_state_dict({f"{key}_l0": value for key, value in cell.state_dict().items()})
    x = inputs(6, 3, 4)

    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = cell

        def forward(self, x: Tensor) -> Tensor:
            state, outputs = None, []
            for step in x:
                state = self.cell(step, state)
                outputs.append(state[0] if isinstance(state, tuple) else state)
            return torch.stack(outputs)

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.layer(x)[0]
            return found

    found, expected = (calibrate(one, [x]).layers for one in (Loop(), Whole()))
    for weight, n_steps in (("weight_ih", 6), ("weight_hh", 5)):
        mine, its = found[f"cell.{weight}"], expected[f"layer.{weight}_l0"]
        np.testing.assert_allclose(mine.columns * n_steps / 6, its.columns, rtol=1e-5)
        assert its.sensitivity is not None
        np.testing.assert_allclose(mine.sensitivity, its.sensitivity, rtol=1e-4)


def test_packed_sequences_leave_the_padding_out() -> None:
    module = nn.GRU(4, 5, num_layers=2, bidirectional=True).eval()
    x, lengths = inputs(6, 3, 4), [6, 4, 1]
    packed = pack_padded_sequence(x, torch.tensor(lengths))
    found = {product.weight: product.inputs for product in products(module, ((packed,), {}))}
    assert found["weight_ih_l0"].shape == (1, sum(lengths), 4)
    between = found["weight_ih_l1"][0]
    first = nn.GRU(4, 5, bidirectional=True)
    first.load_state_dict({key: value for key, value in module.state_dict().items() if "_l0" in key})
    torch.testing.assert_close(between, first(packed)[0].data)


@pytest.mark.parametrize("same_width", [True, False])
def test_attention_is_seen_before_and_after(same_width: bool) -> None:
    """Its output is linear in the last projection: the oracle is the module with the error there."""
    width = None if same_width else 5
    module = nn.MultiheadAttention(8, 2, batch_first=True, kdim=width, vdim=width).eval()
    query = inputs(3, 4, 8)
    memory = query if same_width else inputs(3, 6, 5)
    moments = calibrate(_Call(module), [(query, memory, memory)], n_probes=0)
    names = {"in_proj_weight"} if same_width else {"q_proj_weight", "k_proj_weight", "v_proj_weight"}
    assert moments.layers.keys() == {f"inner.{name}" for name in (*names, "out_proj.weight")}
    error = copy.deepcopy(module)
    error.out_proj.weight.data = torch.randn_like(error.out_proj.weight)
    error.out_proj.bias.data.zero_()
    given = error(query, memory, memory)[0].detach().double()
    energy = moments.layers["inner.out_proj.weight"].output_energy(error.out_proj.weight.detach().numpy()) * 3 * 4
    assert energy == pytest.approx(float(given.square().sum()), rel=1e-5)


class _Call(nn.Module):
    """A module around another that calls it with three arguments."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return self.inner(query, key=key, value=value)[0]


def test_the_fast_path_of_torchs_own_transformer_is_gone_past() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    moments = calibrate(nn.TransformerEncoder(layer, 2), [inputs(3, 4, 8)], n_probes=0)
    assert len(moments.layers) == 8


def small_net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).eval()


def test_sensitivities_are_squared_derivatives() -> None:
    """Against the whole Jacobian, for the mean over many probes: its relative error falls like their inverse root."""
    model, x = small_net(), inputs(10, 4)
    found = calibrate(model, [x], n_probes=4000).layers["0.weight"].sensitivity
    assert found is not None

    def run(weight: Tensor) -> Tensor:
        return torch.func.functional_call(model, {"0.weight": weight}, (x,))

    jacobian = torch.func.jacrev(run)(model[0].weight.detach())  # (10, 3, 6, 4)
    expected = jacobian.square().sum((0, 1, 3)) / model(x).square().sum()
    torch.testing.assert_close(torch.from_numpy(found).float(), expected.detach(), rtol=0.15, atol=0)


def test_rows_are_coupled_as_the_whole_jacobian_says() -> None:
    """Gradients of two rows at the same input weights, multiplied and summed; ones on the diagonal."""
    model, x = small_net(), inputs(10, 4)
    found = calibrate(model, [x], n_probes=4000).layers["0.weight"].coupling
    assert found is not None

    def run(weight: Tensor) -> Tensor:
        return torch.func.functional_call(model, {"0.weight": weight}, (x,))

    jacobian = torch.func.jacrev(run)(model[0].weight.detach()).detach()
    products = torch.einsum("noij,nokj->ik", jacobian, jacobian)
    root = products.diagonal().sqrt()
    torch.testing.assert_close(torch.from_numpy(found[0]).float(), products / root[:, None] / root, rtol=0, atol=0.07)
    assert (products / root[:, None] / root - torch.eye(6)).abs().max() > 0.3


def test_rows_are_coupled_within_groups_and_runs() -> None:
    model = nn.Sequential(nn.Conv1d(4, 140, 2, groups=2), nn.Conv1d(140, 7, 1), nn.Conv1d(7, 67, 1))
    layers = calibrate(model, [inputs(3, 4, 5)]).layers
    assert layers["0.weight"].coupling.shape == (4, 35, 35)  # type: ignore[union-attr]
    assert layers["1.weight"].coupling.shape == (1, 7, 7)  # type: ignore[union-attr]
    assert layers["2.weight"].coupling is None  # no equal runs of a prime number


def test_rows_that_the_input_chooses_are_not_coupled() -> None:
    model = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 3))
    assert calibrate(model, [torch.tensor([[0, 1, 2]])]).layers["0.weight"].coupling is None


def normalised(*between: nn.Module) -> nn.Sequential:
    """A convolution without a bias, and a normalisation right behind it or after something else."""
    normalisation = nn.BatchNorm2d(4)
    normalisation.running_mean, normalisation.running_var = torch.randn(4), torch.rand(4) + 0.5
    normalisation.weight.data = torch.randn(4)
    return nn.Sequential(nn.Conv2d(3, 4, 2, bias=False), *between, normalisation, nn.Tanh(), nn.Flatten()).eval()


def test_means_are_taken_back_by_a_normalisation_right_behind() -> None:
    """Against the whole Jacobian: a change of the weight, and the shift of the output that makes good for its mean."""
    model, x = normalised(), inputs(10, 3, 4, 4)
    moment = calibrate(model, [x], n_probes=4000).layers["0.weight"]
    assert moment.mean_free is not None
    assert moment.sensitivity is not None
    mean = nn.functional.unfold(x, 2).mean((0, 2))

    def run(weight: Tensor) -> Tensor:
        back = (model[0].weight.detach() - weight).reshape(4, -1) @ mean
        given = torch.func.functional_call(model[0], {"weight": weight}, (x,)) + back[:, None, None]
        return model[1:](given)

    jacobian = torch.func.jacrev(run)(model[0].weight.detach())
    expected = jacobian.square().sum((0, 1, 3, 4, 5)) / model(x).square().sum()
    torch.testing.assert_close(torch.from_numpy(moment.mean_free).float(), expected.detach(), rtol=0.15, atol=0)
    assert (moment.mean_free < 0.9 * moment.sensitivity).all()


def test_where_nothing_shifts_the_output_means_count() -> None:
    moment = calibrate(normalised(nn.ReLU()), [inputs(5, 3, 4, 4)]).layers["0.weight"]
    assert moment.means is None
    assert moment.about_means() is moment


def test_inputs_that_never_vary_keep_their_mean() -> None:
    moment = calibrate(nn.Linear(4, 3), [torch.randn(1, 4)] * 3).layers["weight"]
    assert moment.means is not None
    assert moment.about_means() is moment


def test_a_weight_that_is_used_twice_has_no_one_mean() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    assert calibrate(model, [inputs(5, 4)]).layers["0.weight"].means is not None
    model.append(model[0])
    assert calibrate(model, [inputs(5, 4)]).layers["0.weight"].means is None


def test_it_is_what_the_library_offers() -> None:
    assert paramcompress.calibrate is calibrate
    assert paramcompress.SecondMoments is SecondMoments


def test_batches_add_up() -> None:
    x = inputs(12, 4)
    whole, parts = calibrate(small_net(), [x], n_probes=0), calibrate(small_net(), x.split(5), n_probes=0)
    assert parts.n_batches == 3
    for name, moment in whole.layers.items():
        if name == "0.weight":  # the nets differ, their inputs do not
            torch.testing.assert_close(torch.from_numpy(moment.columns), torch.from_numpy(parts.layers[name].columns))


def test_tied_weights_are_one() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.output = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
            self.output.weight = self.embedding.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.output(self.embedding(ids))

    moments = calibrate(Tied(), [torch.tensor([[1, 2, 3]])])
    assert list(moments.layers) == ["embedding.weight"]
    assert moments.layers["embedding.weight"].columns.shape == (1, 4, 4)


def test_a_wide_layer_keeps_the_diagonal_and_says_so() -> None:
    x = inputs(20, 6)
    whole = calibrate(nn.Linear(6, 2), [x], n_probes=0).layers["weight"]
    moments = calibrate(nn.Linear(6, 2), [x], n_probes=0, widest=5)
    diagonal = moments.layers["weight"]
    assert diagonal.is_diagonal
    torch.testing.assert_close(
        torch.from_numpy(diagonal.columns[0]), torch.from_numpy(whole.columns[0].diagonal().copy())
    )
    assert "only the diagonal" in moments.notes[0]


def test_an_output_that_cannot_be_followed_back_is_said() -> None:
    class Frozen(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input).detach()

    moments = calibrate(Frozen(4, 3), [inputs(5, 4)])
    assert moments.layers["weight"].sensitivity is None
    assert "cannot be differentiated" in moments.notes[0]


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).train()
    model[0].weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    calibrate(model, [inputs(8, 4)])
    assert model.training
    assert not model[0].weight.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model[0]._forward_pre_hooks
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


# ------------------------------------------------------------------------------------------- wrong input


@pytest.mark.parametrize(
    ("batches", "said"),
    [
        ([], "no batches"),
        ([torch.zeros(2, 5)], "batch 1 (tensor (2, 5)) does not fit the model"),
        ([inputs(2, 4), (inputs(2, 4), torch.zeros(2))], "batch 2 (tuple of tensor (2, 4), tensor (2,)) does not fit"),
        ([{"images": inputs(2, 4)}], "batch 1 (dict of images) does not fit"),
        ([torch.full((2, 4), torch.nan)], "'0' holds NaN or Inf"),
        ([torch.full((2, 4), torch.inf)], "'0' holds NaN or Inf"),
    ],
)
def test_wrong_batches_are_one_clear_line(batches: list[Any], said: str) -> None:
    with pytest.raises(CalibrationError) as found:
        calibrate(small_net(), batches)
    assert said in str(found.value)
    assert "\n" not in str(found.value)
    assert found.value.exit_code == 2


def test_numbers_that_go_bad_inside_are_found_where_they_do() -> None:
    model = small_net()
    model[0].bias.data.fill_(torch.inf)
    model[1] = nn.Identity()
    with pytest.raises(CalibrationError, match="'2' holds NaN or Inf"):
        calibrate(model, [inputs(2, 4)])


# ------------------------------------------------------------------------------------------- the file


def test_moments_come_back_from_their_file(tmp_path: Path) -> None:
    moments = calibrate(small_net(), [inputs(9, 4)])
    moments.save(tmp_path / "stats.safetensors")
    back = SecondMoments.load(tmp_path / "stats.safetensors")
    assert (back.shapes, back.vectors, back.n_batches, back.notes) == (
        moments.shapes, moments.vectors, moments.n_batches, moments.notes,
    )  # fmt: skip
    for name, moment in moments.layers.items():
        for word in (field.name for field in dataclasses.fields(Moment)):
            kept = getattr(moment, word).astype("float32").astype("float64")
            torch.testing.assert_close(getattr(back.layers[name], word), kept)
    assert [path.name for path in tmp_path.iterdir()] == ["stats.safetensors"]


def test_other_files_are_no_moments(tmp_path: Path) -> None:
    torch.save(small_net().state_dict(), tmp_path / "model.pt")
    paramcompress.squeeze(tmp_path / "model.pt", tmp_path / "squeezed.safetensors")
    for name in ("model.pt", "squeezed.safetensors"):
        with pytest.raises(CalibrationError, match="found no second moments"):
            SecondMoments.load(tmp_path / name)


def test_moments_of_another_model_are_refused() -> None:
    moments = calibrate(small_net(), [inputs(9, 4)])
    with pytest.raises(CalibrationError, match=r"'0\.weight' \(missing, \(6, 4\) in the moments\)"):
        moments.check({"2.weight": (3, 6)}, "model.pt")
    with pytest.raises(CalibrationError, match=r"another model than model\.pt"):
        moments.check({"0.weight": (6, 5), "2.weight": (3, 6)}, "model.pt")
    moments.check({"0.weight": (6, 4), "2.weight": (3, 6), "more": (1,)}, "model.pt")


# ------------------------------------------------------------------------------------------- in lockstep


def test_what_is_changed_at_a_station_holds_for_what_follows() -> None:
    """The second model doubles its first weight at the first station; the second station sees doubled inputs."""
    original, other = (nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 2, bias=False)) for _ in range(2))
    other.load_state_dict(original.state_dict())
    batches = [inputs(2, 3) for _ in range(5)]
    seen = []

    def meet(path: str, calls: Any) -> None:
        seen.append(path)
        assert len(calls) == 5
        for left, right in calls:
            torch.testing.assert_close(right[0][0], left[0][0] * (2 if path == "1" else 1))
        if path == "0":
            other[0].weight.data *= 2

    run_in_lockstep((original, other), batches, ["0", "1"], meet)
    assert seen == ["0", "1"]
    assert not original[0]._forward_pre_hooks


def test_batches_may_go_different_ways() -> None:
    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.last = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.left(x) if x.sum() > 0 else self.right(x))

    seen: dict[str, int] = {}
    model = Fork()
    batches = [torch.ones(1, 2), -torch.ones(1, 2), torch.ones(1, 2)]
    run_in_lockstep(
        (model, copy.deepcopy(model)),
        batches,
        ["left", "right", "last"],
        lambda path, calls: seen.update({path: len(calls)}),
    )
    assert seen.keys() == {"left", "right", "last"}
    assert (seen["left"], seen["right"]) == (2, 1)


def test_errors_in_a_run_or_a_meeting_end_every_thread() -> None:
    import threading

    model = small_net()
    before = threading.active_count()
    with pytest.raises(CalibrationError, match="batch 2"):
        run_in_lockstep((model, copy.deepcopy(model)), [inputs(2, 4), inputs(2, 5)], ["0", "2"], lambda *_: None)

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_in_lockstep((model, copy.deepcopy(model)), [inputs(2, 4), inputs(2, 4)], ["0"], fail)
    assert threading.active_count() == before
    assert calibration.run(model, inputs(2, 4), 1).shape == (2, 3)
