"""benchmarks/paper: readers of the public formats, resumed runs, and every experiment on scikit-learn's digits."""

from __future__ import annotations

import copy
import doctest
import gzip
import importlib
import json
import pickle
import struct
import wave
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.paper import __main__ as run
from benchmarks.paper import cifar, mnist, nets, report, rica, speech, store, training, utterances
from benchmarks.paper import images as pictures
from benchmarks.paper.experiment import SMALLER, Setting, table
from paramcompress import predict

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "paper.md"


# ---- readers: MNIST


def idx(array: np.ndarray) -> bytes:
    """An idx file of unsigned bytes."""
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def pixels(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, (3, 28, 28), dtype=np.uint8)


@pytest.mark.parametrize("name", ["{}-idx{}-ubyte", "{}-idx{}-ubyte.gz", "{}.idx{}-ubyte"])
def test_mnist_in_idx_files(name: str, pixels: np.ndarray, tmp_path: Path) -> None:
    labels = np.array([7, 0, 9], np.uint8)
    for stem, array in (("images", pixels), ("labels", labels)):
        for part in ("train", "t10k"):
            path = tmp_path / name.format(f"{part}-{stem}", array.ndim)
            path.write_bytes(gzip.compress(idx(array)) if path.suffix == ".gz" else idx(array))
    for part in pictures.read_mnist(tmp_path):
        assert part.labels.tolist() == [7, 0, 9]
        assert part.inputs.shape == (3, 1, 28, 28)
        assert torch.equal((part.inputs[:, 0] * 255).round().byte(), torch.from_numpy(pixels))


def test_mnist_in_npz_files(pixels: np.ndarray, tmp_path: Path) -> None:
    np.savez(tmp_path / "train.npz", x=pixels, y=np.arange(3, dtype=np.uint8))
    np.savez(tmp_path / "test.npz", x=pixels[:1], y=np.array([5], np.uint8))
    training, test = pictures.read_mnist(tmp_path)
    assert training.inputs.max() <= 1
    assert (len(training.labels), test.labels.tolist()) == (3, [5])


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-1], lambda b: b + b"x", lambda b: b"\0\0\x0d" + b[3:], lambda b: b[:2], lambda b: b[:9]]
)
def test_damaged_idx_files(damage: Any, pixels: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(damage(idx(pixels)))
    with pytest.raises(ValueError, match=path.name):
        pictures.read_idx(path)


@pytest.mark.parametrize(
    ("read", "where"),
    [
        (pictures.read_mnist, "yann.lecun.com"),
        (pictures.read_cifar10, "cs.toronto.edu"),
        (utterances.read_utterances, "free-spoken-digit-dataset"),
    ],
)
def test_an_empty_folder_says_where_data_are_to_be_had(read: Any, where: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=where):
        read(tmp_path)


# ---- readers: CIFAR-10


def python2_pickle(data: np.ndarray, labels: list[int]) -> bytes:
    """A batch as Python 2 and an old numpy wrote it: byte strings, and arrays of numpy.core."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes((len(value),)) + value if len(value) < 256 else b"T" + struct.pack("<i", len(value)) + value

    empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\0t" + text(b"b") + b"tR"
    kind = (
        b"cnumpy\ndtype\n(" + text(b"u1") + b"K\0K\1tR(K\3" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
    )
    shape = b"(" + b"".join(b"M" + struct.pack("<H", n) for n in data.shape) + b"t"
    array = empty + b"(K\1" + shape + kind + b"\x89" + text(data.tobytes()) + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes((label,)) for label in labels) + b"e"
    return b"\x80\2}(" + text(b"data") + array + text(b"labels") + numbers + b"u."


@pytest.fixture
def colours(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, (4, 3, 32, 32), dtype=np.uint8)


def write_binary(folder: Path, colours: np.ndarray) -> None:
    for number, name in enumerate(("data_batch_1.bin", "data_batch_2.bin", "test_batch.bin")):
        records = [bytes((number,)) + image.tobytes() for image in colours]
        (folder / name).write_bytes(b"".join(records))


def write_python(folder: Path, colours: np.ndarray) -> None:
    for number, name in enumerate(("data_batch_1", "data_batch_2", "test_batch")):
        (folder / name).write_bytes(python2_pickle(colours.reshape(4, -1), [number] * 4))


@pytest.mark.parametrize("write", [write_binary, write_python])
def test_cifar_batches(write: Any, colours: np.ndarray, tmp_path: Path) -> None:
    write(tmp_path, colours)
    training, test = pictures.read_cifar10(tmp_path)
    assert training.labels.tolist() == [0] * 4 + [1] * 4
    assert test.labels.tolist() == [2] * 4
    assert torch.equal((training.inputs[4:] * 255).round().byte(), torch.from_numpy(colours))


def test_a_pickle_that_is_no_batch_runs_nothing(tmp_path: Path) -> None:
    path, canary = tmp_path / "data_batch_1", tmp_path / "canary"

    class Runs:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.mkdir, (canary,)

    path.write_bytes(pickle.dumps({b"data": Runs()}))
    with pytest.raises(ValueError, match="asks for pathlib"):
        pictures.read_python_batch(path)
    assert not canary.exists()
    path.write_bytes(pickle.dumps([1]))
    with pytest.raises(ValueError, match="no batch"):
        pictures.read_python_batch(path)


def test_a_binary_batch_cut_short(colours: np.ndarray, tmp_path: Path) -> None:
    write_binary(tmp_path, colours)
    path = tmp_path / "data_batch_1.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="multiple of 3073"):
        pictures.read_binary_batch(path)


def test_cifar_mosaics(rng: np.random.Generator, tmp_path: Path) -> None:
    """Lossless mosaics, 25 rows of 40 images."""
    image = pytest.importorskip("PIL.Image")
    mosaic = rng.integers(0, 256, (800, 1280, 3), dtype=np.uint8)
    for part in ("train", "test"):
        image.fromarray(mosaic).save(tmp_path / f"{part}_00.webp", lossless=True)
        np.save(tmp_path / f"{part}_labels.npy", np.arange(1000) % 10)
    training, _ = pictures.read_cifar10(tmp_path)
    found = (training.inputs[41].permute(1, 2, 0) * 255).round().byte().numpy()
    assert np.array_equal(found, mosaic[32:64, 32:64])


# ---- readers: speech


def sound(n: int = 4000) -> np.ndarray:
    """A tone of 500 Hz."""
    return (0.5 * np.sin(2 * np.pi * 500 * np.arange(n) / utterances.RATE_HZ)).astype(np.float32)


def write_wav(path: Path, samples: np.ndarray, rate: int = utterances.RATE_HZ) -> None:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes((samples * 2**15).astype("<i2").tobytes())


def test_recordings_and_mu_law_bytes_say_the_same(tmp_path: Path) -> None:
    samples = sound()
    write_wav(tmp_path / "7_theo_12.wav", samples)
    (recorded,) = utterances.read_utterances(tmp_path)
    assert (recorded.digit, recorded.speaker, recorded.take) == (7, "theo", 12)
    level = np.sign(samples) * np.log1p(255 * np.abs(samples)) / np.log1p(255)
    path = tmp_path / "digits.npz"
    arrays = {"label": [7], "speaker": ["theo"], "take": [12], "offsets": [0, len(samples)]}
    np.savez(path, audio=np.round((level + 1) * 127.5).astype(np.uint8), **arrays)
    (companded,) = utterances.read_utterances(path)
    assert companded[1:] == recorded[1:]
    # half a step of the 8-bit scale, times the scale's steepest slope
    step = np.log1p(255) / 255 * (1 + 255 * 0.5) / 255
    assert np.abs(companded.samples - recorded.samples).max() < step + 2**-15


def test_recordings_at_another_rate_are_refused(tmp_path: Path) -> None:
    write_wav(tmp_path / "7_theo_12.wav", sound(), rate=16000)
    with pytest.raises(ValueError, match="16000"):
        utterances.read_utterances(tmp_path)


def test_cepstra_are_of_frames_and_see_the_tone() -> None:
    samples = sound()
    features = utterances.cepstra(samples)
    assert features.shape == (1 + (4000 - utterances.WINDOW) // utterances.STEP, 39)
    assert np.isfinite(features).all()
    assert utterances.cepstra(samples[:50]).shape == (1, 39)
    filters = utterances.mel_filters()
    spectrum = np.abs(np.fft.rfft(samples[: utterances.WINDOW] * np.hamming(utterances.WINDOW), utterances.N_FFT)) ** 2
    centres = filters @ np.linspace(0, utterances.RATE_HZ / 2, filters.shape[1]) / filters.sum(1)
    assert abs(centres[np.argmax(filters @ spectrum)] - 500) < 100


def test_differences_are_slopes() -> None:
    line = np.arange(20.0)[:, None] * 3
    assert np.allclose(utterances.differences(line)[2:-2], 3)


def test_context_is_in_the_order_of_time() -> None:
    seen = utterances.with_context(np.arange(6.0)[:, None] * [1, -1], 2)
    assert seen[3].tolist() == [1, -1, 2, -2, 3, -3, 4, -4, 5, -5]
    assert seen[0, ::2].tolist() == [0, 0, 0, 1, 2]


# ---- settings and results


def test_settings_have_names_of_their_own_and_dense_first() -> None:
    for experiment in run.EXPERIMENTS.values():
        names = [one.name for one in experiment.settings]
        assert len(set(names)) == len(names)
        assert names[0] == "dense"
        assert experiment.setting(names[-1]) == experiment.settings[-1]
    assert table((("A",), (0.5,), 1), (("A",), (0.5,), 5)) == (Setting("A", 0.5, 5),)


def test_an_interval_is_students() -> None:
    """Against SciPy, which the tests have through scikit-learn."""
    stats = pytest.importorskip("scipy.stats")
    for values in ([1.0, 2.5], [1.0, 1.5, 1.2, 1.9, 1.1]):
        low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
        found = store.mean(values)
        assert found.margin == pytest.approx((high - low) / 2, rel=0.0005 / 2.262)  # three decimals of a quantile
        assert found.value == pytest.approx((high + low) / 2)
    assert store.mean([1.0]).margin is None


class Cut(Exception):
    """Stands for a kill."""


def test_a_run_that_is_cut_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[str, int]] = []
    settings = (Setting("dense", n_seeds=2), Setting("SE", 0.5))

    def measure(setting: Setting, data: Any, seed: int) -> dict[str, Any]:
        if len(done) == 2 and not (tmp_path / "again").exists():
            raise Cut
        done.append((setting.name, seed))
        return {"test_error": 10.0 + seed}

    experiment = replace(mnist.EXPERIMENT, settings=settings, digits=lambda: None, run=measure)
    monkeypatch.setitem(run.EXPERIMENTS, "mnist", experiment)
    arguments = ["mnist", "--digits", "--out", str(tmp_path / "out.json")]
    with pytest.raises(Cut):
        run.main(arguments)
    assert done == [("dense", 0), ("SE 50%", 0)]
    (tmp_path / "again").touch()
    assert run.main([*arguments, "--minutes", "0"]) == 0
    assert run.main(arguments) == 0
    assert done == [("dense", 0), ("SE 50%", 0), ("dense", 1)]
    results = store.Store(tmp_path / "out.json")
    assert str(results.mean("dense", "test_error")) == "10.50 ± 6.35"
    assert results.records[0]["about"]["threads"] == 1


def test_no_time_starts_no_net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = replace(mnist.EXPERIMENT, digits=lambda: None, run=lambda *_: pytest.fail("it ran"))
    monkeypatch.setitem(run.EXPERIMENTS, "mnist", experiment)
    assert run.main(["mnist", "--digits", "--minutes", "-1", "--out", str(tmp_path / "out.json")]) == 0


def test_without_data_one_line_says_where_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run.main(["cifar"])
    assert stopped.value.code == 2
    assert pictures.CIFAR_FROM in capsys.readouterr().err


# ---- training


def test_features_of_predicted_layers_move_as_those_of_dense_ones() -> None:
    """What the raised rate is for: one step of Adam from equal gradients, lengths of features compared."""
    torch.manual_seed(0)
    made = predict.PredictedLinear(64, 20, dictionary=predict.Cosine((8, 8)), n_support=16)
    moved = {}
    for name, layer in (("dense", nn.Linear(64, 20)), ("predicted", made)):
        before = layer.weight.detach().clone()
        optimizer = torch.optim.Adam(training.parameter_groups(layer, 1e-3))
        layer(torch.randn(32, 64)).square().sum().backward()
        optimizer.step()
        moved[name] = float((layer.weight.detach() - before).norm(dim=1).mean())
    assert moved["predicted"] == pytest.approx(moved["dense"], rel=0.01)
    assert moved["dense"] == pytest.approx(1e-3 * 8, rel=0.01)


def test_the_epoch_is_chosen_by_validation_and_not_by_test(monkeypatch: pytest.MonkeyPatch) -> None:
    part = pictures.Labelled(torch.zeros(8, 1), torch.zeros(8, dtype=torch.int64))
    parts = training.Split(
        part, pictures.Labelled(part.inputs, part.labels), pictures.Labelled(part.inputs, part.labels)
    )
    found = {id(parts.validation): iter([5.0, 3.0, 3.0, 4.0]), id(parts.test): iter([1.0, 2.0])}
    monkeypatch.setattr(training, "error", lambda _, data: next(found[id(data)]))
    outcome = training.fit(nn.Linear(1, 2), parts, training.Recipe(4, batch=4), seed=0)
    assert outcome[:3] == (3.0, 2.0, 2)


def test_validation_is_set_aside_from_training_data() -> None:
    whole = pictures.Labelled(torch.arange(20.0)[:, None], torch.arange(20))
    parts = training.split(whole, whole, 5, seed=1)
    assert sorted([*parts.training.labels.tolist(), *parts.validation.labels.tolist()]) == list(range(20))
    assert len(parts.validation.labels) == 5
    assert not torch.equal(training.split(whole, whole, 5, seed=2).validation.labels, parts.validation.labels)
    with pytest.raises(ValueError, match="20 of 20"):
        training.split(whole, whole, 20, seed=1)


def test_a_dictionary_sees_what_the_layers_below_give(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those below are replaced, and trained a little, before; those above are still as they were."""
    data = mnist.load_digits()
    inputs, seen = data.training.inputs[:200], []
    model = mnist.perceptron(64, (20, 20))

    def given(samples: torch.Tensor, *_: Any) -> predict.Dictionary:
        assert isinstance(model[0], predict.PredictedLinear)
        assert isinstance(model[2], nn.Linear)
        seen.append((samples, torch.relu(model[0](inputs)).detach()))
        return predict.Covariance(samples)

    def pretrain(model: nn.Module) -> None:
        model[0].bias.data += 1

    monkeypatch.setitem(nets.KINDS, "Emp", given)
    nets.predicted(model, "SE-Emp", 0.25, data.places, inputs, 0, pretrain)
    ((samples, wanted),) = seen
    assert samples.shape == wanted.shape
    assert torch.allclose(samples.sum(0), wanted.sum(0), rtol=1e-4)  # in another order
    assert isinstance(model[2], predict.PredictedLinear)


@pytest.mark.parametrize("method", ["PivEmp", "SE1", "Cosine", "LowRank"])
def test_levelled_layers_start_with_features_as_large_as_dense_ones(method: str) -> None:
    """Smooth atoms on smooth inputs: unlevelled ones are several times as large from the first layer on."""
    inputs = cifar.load_digits().training.inputs
    torch.manual_seed(0)
    dense = cifar.small()
    model = nets.predicted(copy.deepcopy(dense), method, 0.25, cifar.SMALL_PLACES, inputs, 0, level=True)
    for place in cifar.SMALL_PLACES:
        seen = predict.layer_inputs(model, place.name, inputs, n_samples=5000, seed=1)
        weights = (net.get_submodule(place.name).weight.detach().flatten(1) for net in (model, dense))
        found, wanted = (float((seen @ weight.T).square().mean()) for weight in weights)
        assert found == pytest.approx(wanted, rel=0.1)


def test_smaller_nets_have_no_more_numbers() -> None:
    for fraction in (0.025, 0.1, 0.5):
        setting = Setting("smaller", fraction)
        data = mnist.load_digits()
        parts = training.split(data.training, data.test, data.n_validation, 0)
        budget = fraction * (64 * 100 + 100 * 100) + 1000
        assert 0.8 * budget < cifar.n_weights(mnist.build(setting, data, parts, 0)) <= budget
    whole = cifar.convolutional()
    factor = cifar.equal_factor(cifar.convolutional, cifar.n_weights(whole) // 4)
    assert cifar.n_weights(cifar.convolutional(factor)) <= cifar.n_weights(whole) / 4
    assert cifar.n_weights(cifar.convolutional(factor + 0.01)) > cifar.n_weights(whole) / 4


@pytest.mark.parametrize("fraction", cifar.FRACTIONS)
def test_a_first_layer_that_learns_more_leaves_the_whole_as_it_was(fraction: float) -> None:
    sizes = [9_216, 196_608, 102_400, 288_000]
    shares = cifar.more_first(fraction, sizes)
    assert shares[0] == min(1, 4 * fraction)
    assert sum(share * size for share, size in zip(shares, sizes, strict=True)) == pytest.approx(fraction * sum(sizes))
    assert 0.95 * fraction < min(shares[1:]) == max(shares[1:]) < fraction


def test_the_paper_s_sizes() -> None:
    """Its text: 392,000 + 250,000 weights; convolutions of 9,216, 196,608 and 102,400."""
    assert [one.weight.numel() for one in mnist.perceptron(784, (500, 500)) if isinstance(one, nn.Linear)][:2] == [
        392_000,
        250_000,
    ]
    net = cifar.convolutional()
    sizes = [net.get_submodule(place.name).weight.numel() for place in cifar.PLACES]
    assert sizes[:3] == [9_216, 196_608, 102_400]
    assert net(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


@pytest.mark.parametrize(
    "method", [one.method for one in mnist.SETTINGS if one.fraction == 0.25 and one.method != SMALLER]
)
def test_every_method_learns_the_fraction_it_is_named_for(method: str) -> None:
    data = mnist.load_digits()
    parts = training.split(data.training, data.test, data.n_validation, 0)
    brief = replace(data, pretrained=0)
    torch.manual_seed(0)
    model = mnist.build(Setting(method, 0.25), brief, parts, seed=0)
    n_learned = nets.learned(model, data.places)["learned"]
    assert n_learned == pytest.approx(0.25 * (64 * 100 + 100 * 100), rel=0.06)  # supports and widths are whole numbers


# ---- the experiments on digits


def test_mnist_on_digits() -> None:
    """A quarter of the weights learned costs little; a dense net of a quarter's size and learned low rank cost more."""
    data = mnist.load_digits()
    errors = {
        name: mnist.run(setting, data, seed=0)["test_error"]
        for name, setting in (
            ("dense", Setting("dense")),
            ("predicted", Setting("SE-Emp", 0.25)),
            ("low rank", Setting("LowRank", 0.25)),
        )
    }
    assert errors["dense"] < 7
    assert errors["predicted"] < errors["dense"] + 2
    assert errors["predicted"] < errors["low rank"]


def test_cifar_on_digits() -> None:
    data = cifar.load_digits()
    dense = cifar.run(Setting("dense"), data, seed=0)
    quarter = cifar.run(Setting("PivEmp", 0.25), data, seed=0)
    assert dense["test_error"] < 6
    assert quarter["test_error"] < dense["test_error"] + 2.5
    assert quarter["learned"] == pytest.approx(dense["learned"] / 4, rel=0.1)


def test_rica_on_digits() -> None:
    data = rica.load_digits()
    plain, half, wide = (
        rica.run(setting, data, seed=0)
        for setting in (Setting("dense"), Setting("SE1", 0.5), Setting("SE1", 0.5, width=2))
    )
    assert plain["test_error"] < 5
    assert half["test_error"] < plain["test_error"] + 2
    assert wide["learned"] <= plain["learned"]
    assert wide["test_error"] < plain["test_error"] + 1


def test_rica_s_objective_is_that_of_its_formula() -> None:
    torch.manual_seed(0)
    weight, patches = torch.randn(5, 4), torch.randn(7, 4)
    by_hand = 0.0
    for x in patches:
        found = [float(w @ x) for w in weight]
        back = sum((f * w for f, w in zip(found, weight, strict=True)), torch.zeros(4))
        by_hand += 0.3 * float((back - x).square().sum()) + sum((rica.EPS + f * f) ** 0.5 for f in found)
    assert float(rica.cost(weight, patches, 0.3)) == pytest.approx(by_hand / 7, rel=1e-5)


def test_whitening_makes_directions_alike() -> None:
    patches = torch.randn(2000, 12, generator=torch.Generator().manual_seed(0)) @ torch.diag(torch.arange(1.0, 13))
    whiten = rica.whitening(patches, floor=0.0)
    values = torch.linalg.eigvalsh(torch.cov(whiten(patches).T))
    assert values[1:].sub(1).abs().max() < 1e-2  # the first is the mean of a patch, which is taken off
    assert values[0] < 0.1


def test_images_are_encoded_as_their_windows_say() -> None:
    """Convolved with whitened filters, against every window cut out, whitened and multiplied."""
    data, generator = rica.load_digits(), torch.Generator().manual_seed(0)
    images = torch.rand(6, 2, 8, 8, generator=generator)
    whiten = rica.whitening(rica.sampled(images, data.size, 300, generator))
    weight = torch.randn(3, 2 * data.size**2, generator=generator)
    found = whiten(rica.windows(images, data.size, data.stride)) @ weight.T
    maps = torch.cat([found.clamp(min=0), (-found).clamp(min=0)], 2).transpose(1, 2).reshape(6, 6, 4, 4)
    wanted = torch.stack([maps[:, :, y : y + 2, x : x + 2].mean((2, 3)) for y in (0, 2) for x in (0, 2)], 2)
    assert torch.allclose(rica.encoded(images, weight, whiten, data, batch=4), wanted.flatten(1), atol=1e-4)


def test_the_classifier_is_at_its_minimum() -> None:
    """Along axes of very different variance the gradient is gone, and has not been before."""
    generator = torch.Generator().manual_seed(0)
    variances = torch.logspace(1, -5, 40)
    codes = torch.randn(500, 40, generator=generator) * variances.sqrt()
    targets = 2 * nn.functional.one_hot(torch.randint(10, (500,), generator=generator), 10).float() - 1

    def gradient(weight: torch.Tensor, bias: torch.Tensor) -> float:
        weight, bias = weight.clone().requires_grad_(), bias.clone().requires_grad_()
        hinge = (1 - targets * (codes @ weight + bias)).clamp(min=0).square().sum(1).mean()
        parts = torch.autograd.grad(hinge + 1e-3 * weight.square().sum(), (weight, bias))
        return max(float(part.abs().max()) for part in parts)

    start = torch.zeros(40, 10), torch.zeros(10)
    weight, bias = rica.classifier(codes, targets, 1e-3, variances, start, steps=60)
    assert gradient(*start) > 0.1
    assert gradient(weight, bias) < 1e-3


def test_speech_on_digits() -> None:
    data = speech.load_digits()
    dense, tenth = (speech.run(setting, data, seed=0) for setting in (Setting("dense"), Setting("Emp", 0.1)))
    assert dense["test_error"] < dense["frame_error"] / 2  # frames together know more than each
    assert tenth["test_error"] < dense["test_error"] + 6
    assert tenth["frame_error"] < 60  # chance is 90


def test_an_utterance_is_the_sum_of_its_frames() -> None:
    """Two frames of the first are wrong with nine parts in ten, one is right with nearly all: logarithms sum to right,
    the posteriors themselves would to wrong."""
    logits = torch.tensor([[2.2, 0.0], [2.2, 0.0], [0.0, 9.0], [3.0, 0.0]])
    frames = pictures.Labelled(logits, torch.tensor([1, 1, 1, 0]))
    assert speech.errors(nn.Identity(), frames, torch.tensor([0, 0, 0, 1])) == (50.0, 0.0)


# ---- the page


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "paper").glob("*.py")), ids=lambda path: path.stem)
def test_examples_are_true(path: Path) -> None:
    if path.stem != "__main__":
        assert doctest.testmod(importlib.import_module(f"benchmarks.paper.{path.stem}")).failed == 0


def test_runs_side_by_side_keep_one_another_s_results(tmp_path: Path) -> None:
    """Each had written what it had read when it began, and what the other had added was gone."""
    one, other = (store.Store(tmp_path / "out.json") for _ in range(2))
    one.add({"setting": "dense", "seed": 0, "test_error": 1.0}, {})
    other.add({"setting": "SE 50%", "seed": 0, "test_error": 2.0}, {})
    one.add({"setting": "dense", "seed": 0, "test_error": 3.0}, {})
    found = {record["setting"]: record["test_error"] for record in store.Store(tmp_path / "out.json").records}
    assert found == {"dense": 3.0, "SE 50%": 2.0}


def test_the_page_is_what_the_results_say(tmp_path: Path) -> None:
    """If not: python -m benchmarks.paper report."""
    text = PAGE.read_text(encoding="utf-8")
    for experiment in run.EXPERIMENTS.values():
        results = store.Store(store.FOLDER / f"{experiment.name}.json")
        assert report.with_table(text, experiment.name, report.markdown(experiment, results)) == text
        assert (PAGE.parent / report.PICTURE.format(experiment.name)).exists() == bool(results.records)


def test_results_say_how_they_came_about() -> None:
    for path in store.FOLDER.glob("*.json"):
        experiment = run.EXPERIMENTS[path.stem]
        for record in json.loads(path.read_text())["results"]:
            assert experiment.setting(record["setting"])
            assert record["about"]["command"] == f"python -m benchmarks.paper {path.stem}"
            assert set(record["about"]) == {"command", "commit", "versions", "machine", "threads"}
            assert 0 < record["test_error"] < 90


def test_wide_dense_nets_have_a_row_and_a_comparison_of_their_own(tmp_path: Path) -> None:
    results = store.Store(tmp_path / "rica.json")
    for seed, spread in ((0, 0.0), (1, 1.0)):
        for setting, error in (("dense", 40), ("dense x2", 37), ("SE1 50%", 41), ("SE1 50% x4", 38.5)):
            results.add({"setting": setting, "seed": seed, "test_error": error + spread}, {})
    table = report.markdown(rica.EXPERIMENT, results)
    assert "| dense, 2 times the features | - | - | - | - | 37.50 ± 6.35 (2) |" in table
    assert "dense net of the same seed, points: SE1 50% +1.00 ± 0.00 (2); dense x2 -3.00 ± 0.00 (2); SE1" in table
    assert "one with 2 times the features of the same seed, points: SE1 50% x4 +1.50 ± 0.00 (2).\n" in table


def test_a_page_without_its_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="results: mnist"):
        report.with_table("no markers", "mnist", "a table")


def test_curves_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    results = store.Store(tmp_path / "mnist.json")
    for setting, seed, error in (
        ("dense", 0, 1.5),
        ("dense", 1, 1.5),
        ("SE-Emp 5%", 0, 1.6),
        ("SE-Emp 5%", 1, 1.8),
        ("SE-Emp 10%", 0, 1.5),
    ):
        results.add({"setting": setting, "seed": seed, "test_error": error}, {})
    table = report.markdown(mnist.EXPERIMENT, results)
    assert "| SE-Emp | - | 1.70 ± 1.27 (2) | 1.50 | - | - | - | - |" in table
    assert "same seed, points: SE-Emp 5% +0.20 ± 1.27 (2).\n" in table
    assert "\n5 of " in table
    report.draw(mnist.EXPERIMENT, results, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
