"""Checkpoints come in and go out unchanged, and nothing that is not one comes in."""

from __future__ import annotations

import argparse
import collections
import datetime
import io
import json
import math
import os
import pickle
import shutil
import struct
import threading
import weakref
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from paramcompress.checkpoint import TensorInfo, from_tensors, kind_for, open_checkpoint, write_checkpoint
from paramcompress.checkpoint.tree import Encoder, decode
from paramcompress.errors import CheckpointError, OutputError, ParamCompressError

SHARED = Path(__file__).parents[2] / "shared" / "data"
REAL = sorted((SHARED / "checkpoints").glob("*"))
AWKWARD = sorted((SHARED / "awkward").glob("*"))
FLOATS = ["float64", "float32", "float16", "bfloat16", "complex64"]
FLOAT8 = [f"float8_{kind}" for kind in ("e4m3fn", "e5m2", "e4m3fnuz", "e5m2fnuz", "e8m0fnu")]
INTEGERS = [f"{sign}int{n_bits}" for sign in ("", "u") for n_bits in (8, 16, 32, 64)]
IN_SAFETENSORS = [name for name in (*FLOATS, *FLOAT8, *INTEGERS, "bool") if hasattr(torch, name)]
DTYPES = [*IN_SAFETENSORS, "complex128", "complex32"]

pytestmark = pytest.mark.filterwarnings(
    "ignore:Sparse CSR", "ignore:torch.quantize", "ignore:ComplexHalf", "ignore:.*nested tensors"
)


@pytest.fixture(autouse=True)
def nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test works in an empty folder in which a pickle that runs would leave its mark."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not list(Path().glob("CANARY*"))


def bits(tensor: Tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)


def random_tensor(dtype: str, *shape: int) -> Tensor:
    """Every bit pattern of the dtype may occur, NaN among them; for bool 0 and 1."""
    kind = getattr(torch, dtype)
    raw = torch.randint(0, 2 if dtype == "bool" else 256, (math.prod(shape) * kind.itemsize,), dtype=torch.uint8)
    return raw.view(kind).reshape(shape)


def assert_same(found: Any, expected: Any) -> None:
    """Same types, order, keys and bits, all the way down."""
    assert type(found) is type(expected)
    if isinstance(expected, Tensor):
        assert (found.dtype, found.shape, found.layout) == (expected.dtype, expected.shape, expected.layout)
        assert found.requires_grad == expected.requires_grad
        if expected.is_quantized:
            assert str(found) == str(expected)
        elif expected.layout == torch.strided:
            assert bits(found.detach().resolve_conj()) == bits(expected.detach().resolve_conj())
        else:
            assert torch.equal(found.to_dense(), expected.to_dense())
    elif isinstance(expected, dict):
        assert_same(list(found), list(expected))
        for key in expected:
            assert_same(found[key], expected[key])
        assert_same(getattr(found, "__dict__", None), getattr(expected, "__dict__", None))
    elif isinstance(expected, list | tuple | collections.deque):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, float | complex):
        assert repr(found) == repr(expected)
    elif isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    else:
        assert found == expected


def save(value: Any, path: str | Path = "model.pt", **options: Any) -> Path:
    torch.save(value, path, **options)
    return Path(path)


def rewrite(source: str | Path, target: str | Path, kind: str | None = None) -> tuple[str, ...]:
    """Read, pass the tree through JSON as a container would, write."""
    with open_checkpoint(source) as checkpoint:
        tree = json.loads(json.dumps(checkpoint.tree, sort_keys=True, allow_nan=False, ensure_ascii=False))
        return write_checkpoint(target, tree, checkpoint.tensors, checkpoint.load, kind=kind)


def names(checkpoint: Any) -> list[str]:
    return [info.name for info in checkpoint.tensors]


# ---- laws: what comes in goes out

KEYS = st.one_of(st.text(max_size=5), st.integers(), st.booleans(), st.none(), st.tuples(st.integers(), st.text()))
PLAIN = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(st.characters(exclude_categories=())),
        st.binary(max_size=9),
        st.complex_numbers(),
        st.sampled_from([torch.float8_e5m2, torch.device("cuda:1"), torch.Size([2, 3]), 2**200, -(2**63)]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(KEYS, inner, max_size=3),
        st.dictionaries(KEYS, inner, max_size=3).map(OrderedDict),
    ),
    max_leaves=9,
)


@given(PLAIN)
@settings(max_examples=150, deadline=None)
def test_plain_values_survive_json(value: Any) -> None:
    node = Encoder("test").encode(value)
    text = json.dumps(node, sort_keys=True, allow_nan=False, ensure_ascii=False).encode()
    assert_same(decode(json.loads(text)), value)


def trainer_checkpoint() -> dict[Any, Any]:
    """What a training script leaves behind, one of everything."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    state = model.state_dict()
    state["tied"] = state["0.weight"]
    return {
        "epoch": 7,
        "state_dict": OrderedDict((f"module.{name}", tensor) for name, tensor in state.items()),
        "with_metadata": {"inner": {"attributes": model.state_dict()._metadata}},
        "vocab": {"\n": 0, 1: "one", None: True, (1, "a"): b"\x00\xff", "": -0.0},
        "best": [math.nan, math.inf, -math.inf, 1e-300, 2**70, 1j, ()],
        "types": (torch.float16, torch.device("cpu"), torch.Size([1, 2]), collections.Counter("aab"), {"x"}),
    }


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_trainers_checkpoint_comes_back_whole(zipped: bool) -> None:
    source = trainer_checkpoint()
    path = save(source, "model.ckpt", _use_new_zipfile_serialization=zipped)
    rewrite(path, "back.ckpt")
    back = torch.load("back.ckpt", weights_only=True)
    assert_same(back, source)
    assert back["state_dict"]["module.tied"].data_ptr() == back["state_dict"]["module.0.weight"].data_ptr()


def test_state_dict_keeps_its_metadata() -> None:
    source = torch.nn.BatchNorm1d(2).state_dict()
    rewrite(save(source), "back.pt")
    back = torch.load("back.pt", weights_only=True)
    assert back._metadata == source._metadata
    assert back._metadata[""]["version"] == 2


def test_every_dtype_and_shape_keeps_its_bits() -> None:
    shapes = [(), (0,), (3, 0), (1,), (5, 3, 2)]
    source = {f"{dtype}{shape}": random_tensor(dtype, *shape) for dtype in DTYPES for shape in shapes}
    rewrite(save(source), "back.pt")
    assert_same(torch.load("back.pt", weights_only=True), source)
    few = {name: tensor for name, tensor in source.items() if name.partition("(")[0] in IN_SAFETENSORS}
    rewrite(save(few), "back.safetensors", "safetensors")
    with open_checkpoint("back.safetensors") as back:
        assert names(back) == list(few)
        for name, tensor in few.items():
            assert_same(back.load(name), tensor)


@pytest.mark.filterwarnings("ignore:TypedStorage", "ignore:.*[Ss]parse")
def test_parameters_sparse_and_quantized_tensors_come_back_as_they_were() -> None:
    weight = torch.randn(4, 6)
    sparse = torch.eye(4)[:, :3]
    source = {
        "parameter": torch.nn.Parameter(weight),
        "frozen": torch.nn.Parameter(weight.clone(), requires_grad=False),
        "grad": torch.ones(2, requires_grad=True),
        "coo": sparse.to_sparse(),
        "csr": sparse.to_sparse_csr(),
        "csc": sparse.to_sparse_csc(),
        "bsr": torch.eye(4).to_sparse_bsr((2, 2)),
        "quantized": torch.quantize_per_tensor(weight, 0.1, 3, torch.quint8),
        "by_channel": torch.quantize_per_channel(weight, torch.ones(4) / 9, torch.zeros(4).long(), 0, torch.qint8),
    }
    rewrite(save(source), "back.pt")
    back = torch.load("back.pt", weights_only=True)
    assert_same(back, source)
    assert torch.equal(back["by_channel"].q_per_channel_scales(), source["by_channel"].q_per_channel_scales())
    with open_checkpoint("model.pt") as checkpoint:
        assert {"coo.indices", "csr.crow_indices", "quantized.int_repr", "by_channel.scales"} <= set(names(checkpoint))


def test_writing_twice_gives_the_same_bytes() -> None:
    path = save(trainer_checkpoint())
    for kind in ("torch", "safetensors"):
        rewrite(path, "a", kind)
        rewrite(path, "b", kind)
        assert Path("a").read_bytes() == Path("b").read_bytes()


def test_torch_maps_the_tensors_of_a_written_file() -> None:
    rewrite(save({"a": torch.ones(3), "long.name": torch.ones(5).half()}), "back.pt")
    back = torch.load("back.pt", weights_only=True, mmap=True)
    assert [tensor.data_ptr() % 64 for tensor in back.values()] == [0, 0]


def test_safetensors_comes_back_byte_for_byte() -> None:
    tensors = {"z": torch.randn(3, 2), "a": torch.arange(5), "half": torch.ones(1).bfloat16()}
    safetensors.torch.save_file(tensors, "model.safetensors", metadata={"format": "pt"})
    rewrite("model.safetensors", "back.safetensors")
    assert Path("back.safetensors").read_bytes() == Path("model.safetensors").read_bytes()


def test_safetensors_with_much_metadata_comes_back() -> None:
    safetensors.torch.save_file({"a": torch.ones(2)}, "model.safetensors", metadata={"b": "1", "a": "ü", "c": ""})
    rewrite("model.safetensors", "back.safetensors")
    with safetensors.safe_open("back.safetensors", "pt") as file:
        assert file.metadata() == {"b": "1", "a": "ü", "c": ""}
        assert torch.equal(file.get_tensor("a"), torch.ones(2))


def sharded(kind: str) -> dict[str, Tensor]:
    """A folder "model" as Hugging Face lays it out; returns its tensors."""
    Path("model").mkdir()
    shards = [{"b.weight": torch.randn(3, 2), "a": torch.ones(1)}, {"c": torch.arange(4)}]
    weight_map = {}
    for i, shard in enumerate(shards):
        if kind == "safetensors":
            file = f"model-{i}.safetensors"
            safetensors.torch.save_file(shard, f"model/{file}", metadata={"format": "pt"})
        else:
            file = f"pytorch_model-{i}.bin"
            torch.save(shard, f"model/{file}")
        weight_map |= dict.fromkeys(shard, file)
    index = "model.safetensors.index.json" if kind == "safetensors" else "pytorch_model.bin.index.json"
    Path("model", index).write_text(json.dumps({"metadata": {"total_size": 60}, "weight_map": weight_map}))
    return shards[0] | shards[1]


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_sharded_folder_comes_back_shard_by_shard(kind: str) -> None:
    tensors = sharded(kind)
    rewrite("model", "back")
    assert sorted(path.name for path in Path("back").iterdir()) == sorted(path.name for path in Path("model").iterdir())
    (index,) = Path("model").glob("*.json")
    assert json.loads(Path("back", index.name).read_text()) == json.loads(index.read_text())
    for path in (Path("back"), Path("back", index.name)):
        with open_checkpoint(path) as back:
            assert back.kind == "sharded"
            assert set(names(back)) == set(tensors)
            for name, tensor in tensors.items():
                assert_same(back.load(name), tensor)


def test_a_dict_in_memory_is_a_checkpoint() -> None:
    weight = torch.randn(4, 3)
    source = {"model": {"a": weight.t(), "b": weight, "tied": weight}, "args": argparse.Namespace(lr=0.1)}
    with from_tensors(source) as checkpoint:
        assert (checkpoint.kind, checkpoint.path, checkpoint.file_bytes) == ("dict", None, None)
        assert [(info.name, info.alias_of) for info in checkpoint.tensors] == [("a", None), ("b", None), ("tied", "b")]
        write_checkpoint("back.pt", checkpoint.tree, checkpoint.tensors, checkpoint.load)
    with torch.serialization.safe_globals([argparse.Namespace]):
        assert_same(torch.load("back.pt", weights_only=True), source)


# ---- laws: one tensor at a time


def test_a_loaded_tensor_has_its_memory_alone() -> None:
    storage = torch.arange(1000.0)
    source = {"row": storage[10:20], "every_other": storage[::2], "conj": torch.ones(2, dtype=torch.complex64).conj()}
    with open_checkpoint(save(source)) as checkpoint:
        assert [info.alias_of for info in checkpoint.tensors] == [None] * 3
        for info in checkpoint.tensors:
            loaded = checkpoint.load(info.name)
            assert loaded.is_contiguous()
            assert loaded.untyped_storage().nbytes() == info.n_bytes
            assert torch.equal(loaded, source[info.name])
            loaded.zero_()
            assert torch.equal(checkpoint.load(info.name), source[info.name])


class Memory(bytearray):
    """Bytes of which one can see whether they are still held."""


@pytest.mark.parametrize("kind", ["torch", "safetensors"])
def test_writing_holds_one_tensor_and_asks_for_each_once(kind: str) -> None:
    tied = torch.ones(3)
    alive: list[weakref.ref[Memory]] = []
    asked = []

    def load(name: str) -> Tensor:
        assert all(reference() is None for reference in alive)
        memory = Memory(bits(checkpoint.load(name)))
        alive.append(weakref.ref(memory))
        asked.append(name)
        return torch.frombuffer(memory, dtype=torch.float32)

    with from_tensors({"b": tied, "a": torch.zeros(2), "again": tied}) as checkpoint:
        write_checkpoint("out", checkpoint.tree, checkpoint.tensors, load, kind=kind)
    assert asked == ["b", "a"]


def test_threads_may_load_at_once() -> None:
    tensors = {str(i): torch.full((50, 50), i) for i in range(20)}
    safetensors.torch.save_file(tensors, "model.safetensors")
    for path in (save(tensors), Path("model.safetensors")):
        with open_checkpoint(path) as checkpoint, ThreadPoolExecutor(4) as pool:
            for name, loaded in zip(tensors, pool.map(checkpoint.load, tensors), strict=True):
                assert torch.equal(loaded, tensors[name])


def test_a_closed_checkpoint_loads_nothing() -> None:
    with open_checkpoint(save({"a": torch.ones(1)})) as checkpoint:
        pass
    with pytest.raises(KeyError):
        checkpoint.load("a")


# ---- names, ties, what is left out

ONE = torch.ones(1)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ({"state_dict": {"module.a": ONE, "module.b": ONE * 2}, "epoch": 3}, ["a", "b"]),
        ({"model": {"state_dict": {"a": ONE}}}, ["a"]),
        ({"generator_state_dict": {"a": ONE}}, ["a"]),
        ({"model": {"a": ONE}, "best": torch.tensor(0.9)}, ["a", "best"]),
        ({"model": {"best": ONE}, "best": torch.tensor(0.9)}, ["model.best", "best"]),
        ({"model": {"a": ONE}, "ema": {"a": ONE}}, ["model.a", "ema.a"]),
        ({"encoder": {"a": ONE}}, ["encoder.a"]),
        ({"model": dict.fromkeys("abcdefghi", ONE), "scaler": {"mean": ONE}}, [*"abcdefghi", "scaler.mean"]),
        ({"model": {"a": ONE}, "scaler": {"mean": ONE}}, ["model.a", "scaler.mean"]),
        ({"state_dict": dict.fromkeys("abcdefghi", ONE), "ema": {"decay": ONE}}, [*"abcdefghi", "ema.decay"]),
        ({"model.a": ONE, "model.b": ONE}, ["model.a", "model.b"]),
        ({"module.a": ONE, "b": ONE}, ["module.a", "b"]),
        ({"_orig_mod.module.a": ONE}, ["a"]),
        ({"module.": ONE}, ["module."]),
        ({"a": {"b": ONE}, "a.b": ONE, "a.b#2": ONE}, ["a.b", "a.b#3", "a.b#2"]),
        ({1: ONE, "1": ONE, (1, 2): ONE}, ["1", "1#2", "#2"]),
        ({"layers": [ONE, (ONE, {"w": ONE})]}, ["layers.0", "layers.1.0", "layers.1.1.w"]),
        ({"": ONE, "\ud800": ONE}, ["", "\\ud800"]),
        (ONE, ["tensor"]),
        ([ONE, ONE * 2], ["0", "1"]),
    ],
)
def test_public_names(source: Any, expected: list[str]) -> None:
    with open_checkpoint(save(source)) as checkpoint:
        assert names(checkpoint) == expected
    rewrite("model.pt", "back.pt")
    assert_same(torch.load("back.pt", weights_only=True), source)


def test_ties_need_the_same_place_and_shape() -> None:
    weight, other = torch.randn(4, 4), torch.randn(2)
    source = {"a": weight, "t": weight.t(), "part": weight[:2], "tied": weight, "b": other, "c": other.clone()}
    source |= {"empty": torch.empty(0), "empty2": torch.empty(0)}
    for zipped in (True, False):
        with open_checkpoint(save(source, _use_new_zipfile_serialization=zipped)) as checkpoint:
            assert {info.name: info.alias_of for info in checkpoint.tensors if info.alias_of} == {"tied": "a"}


def test_optimizer_state_is_left_out_and_said() -> None:
    moments = {"step": torch.tensor(1.0), "exp_avg": torch.ones(3, 2), "exp_avg_sq": torch.full((3, 2), 1e-3)}
    adam = {"state": {0: moments}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    source = {
        "model": {"w": torch.ones(3, 2)},
        "optim_g": adam,
        "optimizer_states": [{"momentum": torch.ones(5)}],
        "lr_scheduler": {"last_epoch": 3, "base_lrs": [0.1]},
        "anything": adam,
    }
    with open_checkpoint(save(source)) as checkpoint:
        assert names(checkpoint) == ["w"]
        said = [note for note in checkpoint.notes if "optimizer" in note]
        assert len(said) == 3
        assert "3 tensors, 52 bytes" in said[0]
        assert_same(checkpoint.left_out["optim_g"], adam)
    rewrite("model.pt", "back.pt")
    back = torch.load("back.pt", weights_only=True)
    assert_same(back, {"model": source["model"], "lr_scheduler": source["lr_scheduler"]})


def test_a_layer_that_is_called_optimizer_is_kept() -> None:
    with open_checkpoint(save({"optimizer": ONE, "optimizer.weight": ONE * 2})) as checkpoint:
        assert len(checkpoint.tensors) == 2


def test_harmless_objects_come_back_and_are_named() -> None:
    source = {
        "w": ONE,
        "args": argparse.Namespace(lr=0.1, out=Path("runs/1"), sizes=[1, 2]),
        "when": datetime.datetime(2024, 2, 3, tzinfo=datetime.UTC),
        "best": np.float64(0.5),
        "mean": np.arange(6, dtype=np.float32).reshape(2, 3),
        "history": collections.defaultdict(list, {"loss": [np.float32(1), math.nan]}),
        "window": collections.deque([1, 2], maxlen=5),
        "torch": torch.torch_version.TorchVersion("2.4.0"),
    }
    with open_checkpoint(save(source)) as checkpoint:
        said = "\n".join(checkpoint.notes)
        for name in ("argparse.Namespace", "datetime.datetime", "multiarray.scalar", "defaultdict", "deque"):
            assert name in said
        assert "'args'" in said
    rewrite("model.pt", "back.pt")
    back = torch.load("back.pt", weights_only=False)  # this test wrote it
    assert_same(back, source)
    assert back["window"].maxlen == 5
    assert back["history"].default_factory is list


def test_what_the_process_allows_torch_is_not_allowed_here_and_stays_allowed() -> None:
    path = save({"w": ONE, "odd": Odd()})
    with torch.serialization.safe_globals([Odd]):
        with pytest.raises(CheckpointError, match="Odd"):
            open_checkpoint(path)
        assert Odd in torch.serialization.get_safe_globals()


class Odd:
    """A class that no list of harmless classes has."""


@pytest.mark.parametrize(
    ("source", "remedy"), [(torch.nn.Linear(2, 2), ".state_dict()"), ({"x": Odd()}, "['state_dict']")]
)
def test_a_refusal_says_how_to_save_the_weights_alone(source: Any, remedy: str) -> None:
    """By code that needs nothing but the file; `Odd` is what the hyperparameters of a trainer may be."""
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(save(source))
    assert f"torch.save(torch.load(path, weights_only=False){remedy}, new)" in str(caught.value.hint)


# ---- other kinds than the source's


def test_a_torch_source_as_safetensors() -> None:
    source = trainer_checkpoint()
    notes = rewrite(save(source), "back.safetensors", kind_for("back.safetensors"))
    assert len(notes) == 1
    back = safetensors.torch.load_file("back.safetensors")
    assert set(back) == {name.removeprefix("module.") for name in source["state_dict"]}
    assert torch.equal(back["tied"], back["0.weight"])
    with safetensors.safe_open("back.safetensors", "pt") as file:
        values = json.loads(file.metadata()["checkpoint_values"])
    assert values["epoch"] == 7
    assert values["vocab"]["1"] == "one"
    assert "state_dict" not in values


@pytest.mark.parametrize("target", ["back.pt", "back.safetensors"])
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_sharded_source_as_one_file(kind: str, target: str) -> None:
    tensors = sharded(kind)
    rewrite("model", target, kind_for(target))
    with open_checkpoint(target) as back:
        assert {name: bits(back.load(name)) for name in names(back)} == {k: bits(v) for k, v in tensors.items()}


def test_kind_for() -> None:
    found = [kind_for(name) for name in ("a.safetensors", "b.TH", "c.tar", "folder", "d.xyz")]
    assert found == ["safetensors", "torch", "torch", None, None]


def test_a_kind_that_cannot_hold_the_source_says_so() -> None:
    path = save({"w": torch.ones(2, dtype=torch.complex128)})
    with pytest.raises(OutputError, match="complex128"):
        rewrite(path, "back.safetensors", "safetensors")
    with pytest.raises(OutputError) as caught:
        rewrite(path, "back", "sharded")
    assert caught.value.hint


@pytest.mark.parametrize("kind", ["torch", "safetensors"])
def test_unwritable_places_and_full_disks(kind: str) -> None:
    path = save({"w": torch.ones(100_000)})
    Path("folder").mkdir()
    for target in ("missing/out", "folder", *(["/dev/full"] if Path("/dev/full").exists() else [])):
        with pytest.raises(OutputError) as caught:
            rewrite(path, target, kind)
        assert caught.value.path == Path(target)


@pytest.mark.parametrize("kind", ["torch", "safetensors"])
def test_descriptions_that_do_not_fit_the_tree_are_refused(kind: str) -> None:
    with from_tensors({"a": ONE, "b": torch.ones(2)}) as checkpoint:
        a, b = checkpoint.tensors
        for infos in ([a], [a, b, TensorInfo("c", "int8", (1,))], [a, TensorInfo("b", "float32", (2,), alias_of="a")]):
            with pytest.raises(ValueError, match=r"tensor|tied"):
                write_checkpoint("out", checkpoint.tree, infos, checkpoint.load, kind=kind)
        with pytest.raises(ValueError, match="expected"):
            write_checkpoint("out", checkpoint.tree, [a, b], lambda name: torch.ones(3), kind=kind)


@pytest.mark.parametrize(
    "tree",
    [
        None,
        ["torch"],
        ["pickle", 1],
        ["torch", ["call", "os.system", ["tuple", "true"], None, None]],
        ["torch", ["class", "builtins.eval"]],
        ["torch", ["dict", ["list"], 1]],
        ["torch", ["dict", 1]],
        ["torch", ["bytes", "?"]],
        ["sharded", "../index.json", ["dict"], "a", ["torch", ["t", "w"]]],
        ["sharded", "index.json", ["dict"], "../a", ["torch", ["t", "w"]]],
        ["torch", ["quantized", ["tuple", 1], ["dict"]]],
        ["torch", ["sparse", 1, ["t", "w"]]],
        ["torch", ["parameter", 1, True]],
    ],
    ids=str,
)
def test_trees_that_no_encoder_wrote_are_refused(tree: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        write_checkpoint("out", tree, [TensorInfo("w", "float32", ())], lambda name: torch.tensor(1.0))
    assert not Path("a").exists()


# ---- hostile and broken input


class Runs:
    """Pickles as a call of `builder`, whatever that is."""

    def __init__(self, builder: Callable[..., Any], *args: Any) -> None:
        self.call = builder, args

    def __reduce__(self) -> Any:
        return self.call


def torch_zip(data: bytes, name: str = "model.pt", **more: bytes) -> Path:
    """A zip file as torch writes it, around any bytes in place of the pickle."""
    with zipfile.ZipFile(name, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        for member, content in more.items():
            archive.writestr(f"archive/{member}", content)
        archive.writestr("archive/version", "3\n")
    return Path(name)


def safetensors_file(header: Any, data: bytes = b"", name: str = "model.safetensors") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    Path(name).write_bytes(struct.pack("<Q", len(text)) + text + data)
    return Path(name)


def entry(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def written(content: bytes, name: str = "model.pt") -> Path:
    Path(name).write_bytes(content)
    return Path(name)


def saved_bytes(value: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def compressed_zip() -> Path:
    with zipfile.ZipFile(save({"w": torch.zeros(100)})) as old, zipfile.ZipFile("b.pt", "w", 8) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return Path("b.pt")


def flipped_weight() -> Path:
    content = saved_bytes({"w": torch.full((50,), 1.5)})
    at = content.index(struct.pack("<f", 1.5) * 50)
    return written(content[: at + 3] + b"\x41" + content[at + 4 :])


def holds_itself() -> Path:
    value: dict[str, Any] = {"w": ONE}
    value["self"] = value
    return save(value)


def many_lists() -> Path:
    value: list[Any] = []
    for _ in range(60):
        value = [value, value]
    return save({"w": ONE, "bomb": value})


def deep_list() -> Path:
    return torch_zip(b"\x80\x02" + b"](" * 100_000 + b"e" * 100_000 + b".")


def deep_key() -> Path:
    """Hashing this key would overflow the C stack and end the process."""
    return torch_zip(b"\x80\x02})" + b"\x85" * 1_000_000 + b"K\x01s.")


def expanded() -> Path:
    return save({"w": torch.ones(1).expand(1 << 40)})


def two_shards_one_name() -> Path:
    sharded("safetensors")
    shutil.copy("model/model-0.safetensors", "model/model-1.safetensors")
    return Path("model")


def index_to(shard: Any, **more: Any) -> Path:
    sharded("safetensors")
    path = Path("model/model.safetensors.index.json")
    path.write_text(json.dumps({"weight_map": {"c": shard, **more}}))
    return Path("model")


def index_text(text: bytes) -> Path:
    sharded("safetensors")
    Path("model/model.safetensors.index.json").write_bytes(text)
    return Path("model")


def shard(header: Any, data: bytes = b"") -> Path:
    """A folder whose last shard is that; its index names c there."""
    text = json.dumps(header).encode()
    return shard_bytes(struct.pack("<Q", len(text)) + text + data)


def shard_bytes(content: bytes) -> Path:
    index_to("model-1.safetensors")
    Path("model/model-1.safetensors").write_bytes(content)
    return Path("model")


def two_files() -> Path:
    Path("model").mkdir()
    save({"w": ONE}, "model/a.pt")
    save({"w": ONE}, "model/b.pt")
    return Path("model")


def empty_folder() -> Path:
    Path("model").mkdir()
    return Path("model")


BAD = {
    "missing": (lambda: Path("none.pt"), "No such file"),
    "empty": (lambda: written(b""), "empty"),
    "text": (lambda: written(b"hello"), "no checkpoint"),
    "html": (lambda: written(b"<!DOCTYPE html>"), "web page"),
    "lfs": (lambda: written(b"version https://git-lfs.github.com/spec/v1\n"), "lfs"),
    "gzip": (lambda: written(b"\x1f\x8b" + saved_bytes({"w": ONE})), "gzip"),
    "tar": (lambda: written(bytes(257) + b"ustar" + bytes(300)), "tar archive"),
    "plain pickle": (lambda: written(pickle.dumps({"w": [1.0]})), "pickle"),
    "other zip": (lambda: torch_zip(b"", "a.pt").rename("inside.pt") and compressed_other(), "zip archive"),
    "npz": (lambda: (np.savez("a.npz", w=np.ones(3)), Path("a.npz"))[1], "npz"),
    "torchscript": (lambda: torch_zip(pickle.dumps(1, 2), **{"constants.pkl": b""}), "TorchScript"),
    "cut zip": (lambda: written(saved_bytes({"w": ONE})[:-200]), "cut short"),
    "cut legacy": (
        lambda: written(saved_bytes({"w": torch.ones(99)}, _use_new_zipfile_serialization=False)[:-99]),
        "damaged",
    ),
    "flipped weight": (flipped_weight, "checksum"),
    "compressed zip": (compressed_zip, "compressed"),
    "protocol 4": (lambda: save({"w": ONE}, pickle_protocol=4), "protocol 4"),
    "no tensor": (lambda: save({"epoch": 1}), "no tensor"),
    "only an optimizer": (lambda: save({"optimizer": {"m": ONE}}), "no tensor"),
    "runs code": (lambda: save({"w": ONE, "x": Runs(os.mkdir, "CANARY")}), "mkdir"),
    "runs code, legacy": (lambda: save(Runs(os.mkdir, "CANARY"), _use_new_zipfile_serialization=False), "mkdir"),
    "runs eval": (lambda: save({"w": ONE, "x": Runs(eval, "__import__('os').mkdir('CANARY')")}), "eval"),
    "whole module": (lambda: save(torch.nn.Linear(2, 2)), "module"),
    "foreign class": (lambda: save({"w": ONE, "x": Odd()}), "Odd"),
    "names our call": (lambda: torch_zip(b"\x80\x02cparamcompress.checkpoint.stand_ins\nCall\n)R."), "Call"),
    "bytearray": (lambda: save({"w": ONE, "x": bytearray(9)}), "bytearray"),
    "holds itself": (holds_itself, "holds itself"),
    "lists of lists": (many_lists, "plain values"),
    "deep list": (deep_list, "deeper"),
    "deep key": (deep_key, "deeper"),
    "tensor as key": (lambda: save({ONE: 1}), "key"),
    "expanded": (expanded, "claims"),
    "meta": (lambda: save({"w": torch.empty(3, device="meta")}), "meta"),
    "nested": (lambda: save({"w": torch.nested.nested_tensor([ONE, ONE])}), "nested"),
    "bad pickle": (lambda: torch_zip(b"\x80\x02q\x00R."), "damaged"),
    "header too long": (lambda: written(struct.pack("<Q", 1 << 60) + b"{}", "m.safetensors"), "header"),
    "header no json": (lambda: safetensors_file(b"{nope"), "parse"),
    "header a list": (lambda: safetensors_file([], name="m.safetensors"), "object"),
    "header deep": (lambda: safetensors_file(b'{"a":' + b"[" * 100_000), "parse"),
    "name twice": (lambda: safetensors_file(b'{"a":{},"a":{}}'), "twice"),
    "overlap": (lambda: safetensors_file({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12)), "overlaps"),
    "gap": (lambda: safetensors_file({"a": entry([1], 4, 8)}, bytes(8)), "gap"),
    "tail": (lambda: safetensors_file({"a": entry([1], 0, 4)}, bytes(8)), "expected"),
    "cut safetensors": (lambda: safetensors_file({"a": entry([2], 0, 8)}, bytes(4)), "cut short"),
    "shape bomb": (lambda: safetensors_file({"a": entry([1 << 40], 0, 4)}, bytes(4)), "expected"),
    "empty shape bomb": (lambda: safetensors_file({"a": entry([0, 1 << 62, 1 << 62], 0, 0)}), "expected"),
    "negative shape": (lambda: safetensors_file({"a": entry([-1, -1], 0, 4)}, bytes(4)), "no sense"),
    "float shape": (lambda: safetensors_file(b'{"a":{"dtype":"F32","shape":[1e0],"data_offsets":[0,4]}}'), "no sense"),
    "unknown dtype": (lambda: safetensors_file({"a": entry([1], 0, 4, "F7")}, bytes(4)), "F7"),
    "bad metadata": (lambda: safetensors_file({"__metadata__": {"a": 1}}), "metadata"),
    "no tensors": (lambda: safetensors_file({}), "no tensor"),
    "empty folder": (empty_folder, "without a checkpoint"),
    "two files": (two_files, "2 checkpoints"),
    "index deep": (lambda: index_text(b'{"weight_map":' + b"[" * 100_000), "index"),
    "index with a name twice": (
        lambda: index_text(b'{"weight_map":{"a":"model-0.safetensors","a":"model-1.safetensors"}}'),
        "stands twice",
    ),
    "index cut short": (lambda: index_text(b'{"weight_map":{"a":"model-0.safetensors"'), "index"),
    "index no UTF-8": (lambda: index_text(b'{"weight_map":{"\xff":"model-0.safetensors"}}'), "index"),
    "index a list": (lambda: index_text(b"[]"), "index"),
    "index of itself": (lambda: index_to("model.safetensors.index.json"), "no checkpoint"),
    "shard of petabytes": (lambda: shard({"c": entry([1 << 48], 0, 1 << 50)}), "expected"),
    "shard with a header of petabytes": (lambda: shard_bytes(struct.pack("<Q", 1 << 60) + b"{}"), "header"),
    "shard that overlaps itself": (
        lambda: shard({"b": entry([2], 0, 8), "c": entry([2], 4, 12)}, bytes(12)),
        "overlaps",
    ),
    "shard of an unknown dtype": (lambda: shard({"c": entry([1], 0, 4, "F7")}, bytes(4)), "F7"),
    "shard cut short": (lambda: shard({"c": entry([2], 0, 8)}, bytes(7)), "cut short"),
    "shard outside": (lambda: index_to("../x.safetensors"), "plain file name"),
    "shard absolute": (lambda: index_to("/etc/passwd"), "plain file name"),
    "shard no text": (lambda: index_to(3), "plain file name"),
    "shard missing": (lambda: index_to("model-9.safetensors"), "missing"),
    "shard lacks a tensor": (lambda: index_to("model-1.safetensors", d="model-0.safetensors"), "not"),
    "in two shards": (two_shards_one_name, "also in"),
}


def compressed_other() -> Path:
    with zipfile.ZipFile("other.pt", "w") as archive:
        archive.write("inside.pt")
    return Path("other.pt")


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_in_one_line(case: str) -> None:
    make, word = BAD[case]
    path = make()
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    text = str(caught.value)
    assert word in text
    assert "\n" not in text
    assert len(text) < 500
    assert str(caught.value.path).startswith(str(path))


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors", "index"])
def test_every_prefix_is_refused(kind: str) -> None:
    """A file that ends early, wherever that is."""
    tensors = {"a": torch.arange(3.0), "b": torch.ones(2, 2).half()}
    if kind == "index":
        path = index_to("model-1.safetensors") / "model.safetensors.index.json"
        content = path.read_bytes()
    else:
        path = Path("cut")
        content = {
            "zip": lambda: saved_bytes(tensors),
            "legacy": lambda: saved_bytes(tensors, _use_new_zipfile_serialization=False),
            "safetensors": lambda: safetensors.torch.save(tensors),
        }[kind]()
    for n_bytes in range(0, len(content), 2):
        path.write_bytes(content[:n_bytes])
        with pytest.raises(CheckpointError):
            open_checkpoint(path)


def test_the_tensor_is_named() -> None:
    for path in (save({"model": {"big": torch.ones(1).expand(1 << 40)}}), safetensors_file({"big": entry([9], 0, 4)})):
        with pytest.raises(CheckpointError) as caught:
            open_checkpoint(path)
        assert caught.value.tensor in ("big", "model.big")


def test_files_without_checksums_are_read() -> None:
    torch.serialization.set_crc32_options(False)
    try:
        path = save({"w": ONE})
    finally:
        torch.serialization.set_crc32_options(True)
    with open_checkpoint(path) as checkpoint:
        assert torch.equal(checkpoint.load("w"), ONE)


def test_content_counts_and_not_the_suffix() -> None:
    safetensors.torch.save_file({"a": ONE}, "model.pt")
    save({"a": ONE}, "model.safetensors")
    with open_checkpoint("model.pt") as checkpoint:
        assert checkpoint.kind == "safetensors"
    with pytest.raises(CheckpointError):  # torch itself goes by this suffix
        open_checkpoint("model.safetensors")


def test_the_checkpoint_in_a_folder_is_found() -> None:
    Path("model").mkdir()
    save({"lr": 1}, "model/optimizer.pt")
    save({"lr": 1}, "model/training_args.bin")
    save({"a": ONE}, "model/pytorch_model.bin")
    with open_checkpoint("model") as checkpoint:
        assert (names(checkpoint), checkpoint.kind) == (["a"], "torch")


def test_no_changed_byte_leads_to_a_foreign_error() -> None:
    """Every 3rd byte of a small file of each kind, inverted. A file that still opens must also load."""
    tensors = {"a": torch.arange(3.0), "b": torch.ones(2, 2).half()}
    contents = [saved_bytes(tensors), saved_bytes(tensors, _use_new_zipfile_serialization=False)]
    contents.append(safetensors.torch.save(tensors))
    n_refused = 0
    for content in contents:
        for at in range(0, len(content), 3):
            path = written(content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :], "damaged")
            try:
                with open_checkpoint(path) as checkpoint:
                    for info in checkpoint.tensors:
                        checkpoint.load(info.name)
            except ParamCompressError:
                n_refused += 1
    assert n_refused > 100


def test_opening_in_threads_leaves_no_trace() -> None:
    before = torch.serialization.get_safe_globals()
    path = save({"w": ONE, "x": np.float64(1)})
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(5):
                open_checkpoint(path)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert set(torch.serialization.get_safe_globals()) == set(before)  # a list made of a set


# ---- real files


@pytest.mark.skipif(not REAL, reason="needs the collection of real checkpoints")
@pytest.mark.parametrize("path", REAL, ids=lambda path: path.name)
def test_real_checkpoints_come_back(path: Path) -> None:
    target = f"back{path.suffix}"
    rewrite(path, target)
    if path.suffix == ".safetensors":
        assert_same(safetensors.torch.load_file(target), safetensors.torch.load_file(path))
    else:
        source = torch.load(path, map_location="cpu", weights_only=True)
        source.pop("optimizer", None)
        assert_same(torch.load(target, weights_only=True), source)


@pytest.mark.skipif(not AWKWARD, reason="needs the collection of awkward files")
@pytest.mark.parametrize("path", AWKWARD, ids=lambda path: path.name)
def test_awkward_files_come_back_or_are_refused_in_one_line(path: Path) -> None:
    try:
        with open_checkpoint(path) as checkpoint:
            loaded = {name: checkpoint.load(name) for name in names(checkpoint)}
    except CheckpointError as error:
        if "\n" in str(error):
            raise
        return
    rewrite(path, f"back{path.suffix}")
    with open_checkpoint(f"back{path.suffix}") as back:
        assert_same({name: back.load(name) for name in names(back)}, loaded)


@pytest.mark.skipif(not REAL, reason="needs the collection of real checkpoints")
def test_names_ties_and_notes_of_real_checkpoints() -> None:
    found = {path.name: open_checkpoint(path) for path in REAL}
    assert names(found["resnet20_cifar10.th"])[0] == "conv1.weight"
    assert names(found["char_lstm_shakespeare.pt"])[0] == "embedding.weight"
    tied = [info for info in found["stories260K.pt"].tensors if info.alias_of]
    assert [info.alias_of for info in tied] == ["tok_embeddings.weight"]
    assert "406 tensors" in " ".join(found["gtcrn_dns3.tar"].notes)
    assert len(found["lora_disney.safetensors"].tensors) == 386
