"""Squeezed files from a stranger: nothing foreign is raised, nothing large is allocated, nothing is written elsewhere.

Headers, tables and indices that make no sense are in test_container.py, torch files in test_pickles.py. What a
longer run of the mutations here has found has a test with its name.
"""

from __future__ import annotations

import json
import math
import resource
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zstandard
from forging import Forged
from helpers import files_in, gaussian, squeeze
from reading import outcome, read_squeezed, seeds
from typer.testing import CliRunner

import paramcompress
from paramcompress import codec, container, entropy
from paramcompress.cli import app
from paramcompress.codec import Layout
from paramcompress.container import Reader, is_squeezed
from paramcompress.dictionaries import mirror
from paramcompress.errors import ConfigError, FormatError

MIB = 1 << 20


@pytest.fixture
def forged(tmp_path: Path, rng: np.random.Generator) -> Forged:
    """Of a torch checkpoint with two factored tensors, one exact, one tied."""
    weight = gaussian(rng, 6, 5)
    torch.save({"w": weight, "v": gaussian(rng, 5, 5), "b": gaussian(rng, 3), "t": weight}, tmp_path / "model.pt")
    paramcompress.squeeze(tmp_path / "model.pt", tmp_path / "honest", max_rel_error=0.1)
    return Forged.of(tmp_path / "honest")


def put(forged: Forged, name: str, value: Any, at: int = 0) -> None:
    default = {"home": container.POOLED, "dtype": "float32"}.get(name)
    forged.index["entries"].setdefault(name, [default] * forged.index["n"])[at] = value


def asked(*args: str | Path) -> tuple[int, str]:
    """Exit code and stderr of the command line."""
    done = CliRunner().invoke(app, [str(arg) for arg in args])
    return done.exit_code, done.stderr


# ------------------------------------------------------------------------------------------- mutations


@pytest.mark.parametrize(
    ("kind", "n"), [("squeezed", 1500), ("safetensors", 1500), ("sharded", 400), ("torch", 300), ("stats", 100)]
)
def test_mutated_files_find_own_errors_only(kind: str, n: int, tmp_path: Path) -> None:
    """Structure-aware: checksums are right, so that what is wrong gets to decoders. `benchmarks/guarantees.py` reads a
    million of them; these are others."""
    honest = seeds(tmp_path)[kind]
    found = set()
    for number in range(n):
        path, mutate, read = honest[number % len(honest)]
        path.write_bytes(mutate(np.random.default_rng((2, number))))
        found.add(outcome(lambda read=read, path=path: read(path)))
    assert found >= {"", "FormatError" if kind == "squeezed" else "CheckpointError"}


def test_the_honest_files_are_read_in_full(tmp_path: Path) -> None:
    """The control: what the mutations begin with is good."""
    seeds(tmp_path)
    for path in [*tmp_path.glob("*.safetensors"), *(Path(__file__).parent / "golden").glob("*.safetensors")]:
        copy = tmp_path / "copy"
        copy.write_bytes(path.read_bytes())
        read_squeezed(copy, thorough=True)


def test_the_control_a_foreign_error_is_seen(forged: Forged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entropy, "unpack", lambda *_, **__: 1 // 0)
    (tmp_path / "a").write_bytes(forged.build())
    with pytest.raises(ZeroDivisionError):
        outcome(lambda: read_squeezed(tmp_path / "a"))


# ------------------------------------------------------------------------------------------- claims

NOTHING = b"\0" + np.float32(1).tobytes()
"""A factored stream that stands for zeros, however many."""


def of_nothing(forged: Forged, *shapes: list[int]) -> Forged:
    """A file of tensors that cost five bytes each."""
    n = len(shapes)
    names = [f"w{i}" for i in range(n)]
    columns = {
        "name": names,
        "shape": list(shapes),
        "codec": ["factored"] * n,
        "crc": "00000000" * n,
        "n_bytes": [5] * n,
    }
    forged.index |= {"n": n, "entries": columns | {"density": [0] * n, "rel_error": [0] * n}}
    forged.index["tree"] = ["torch", ["dict", *(one for name in names for one in (name, ["t", 0]))]]
    forged.parts = {container.POOL: NOTHING * n}
    return forged


CLAIMS = {
    "one of petabytes": [[1 << 25, 1 << 25]],
    "many of 200 MB": [[50, MIB]] * 400,
    "rows without columns": [[1 << 40, 0]],
    "columns without rows": [[0, 1 << 40]],
    "kernels without inputs": [[1 << 20, 0, 1 << 20]],
    "just above the limit": [[container.MAY_ALWAYS_CLAIM_BYTES // 4 + 1]],
}


@pytest.mark.parametrize("kind", CLAIMS)
def test_five_bytes_that_claim_huge_tensors(kind: str, forged: Forged, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(of_nothing(forged, *CLAIMS[kind]).build())
    with pytest.raises(FormatError, match="more than the 268,435,456 that are allowed") as caught:
        paramcompress.open_file(tmp_path / "a")
    assert "PARAMCOMPRESS_MAX_BYTES" in str(caught.value.hint)
    for command in ("inspect", "verify", "expand"):
        assert asked(command, tmp_path / "a")[0] == 3


def test_the_limit_can_be_moved(forged: Forged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Down for files from strangers, up for one's own, by argument or by environment."""
    path = tmp_path / "a"
    path.write_bytes(forged.build())
    with paramcompress.open_file(path) as file:
        expanded = file.expanded_bytes
    assert expanded == 4 * (30 + 25 + 3 + 30), "ties count, since not every kind of file keeps them"
    assert len(paramcompress.load_file(path, max_bytes=expanded)) == 4
    with pytest.raises(FormatError, match="claims 352 bytes"):
        paramcompress.load_file(path, max_bytes=expanded - 1)
    monkeypatch.setenv("PARAMCOMPRESS_MAX_BYTES", "300")
    with pytest.raises(FormatError, match="claims 352 bytes"):
        paramcompress.inspect(path)
    monkeypatch.setenv("PARAMCOMPRESS_MAX_BYTES", "1KiB")
    paramcompress.verify(path)
    monkeypatch.setenv("PARAMCOMPRESS_MAX_BYTES", "much")
    with pytest.raises(ConfigError, match="PARAMCOMPRESS_MAX_BYTES"):
        paramcompress.inspect(path)


def test_larger_files_may_claim_more(tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """What trained weights compress to is far from the limit, and squeeze's own check has none."""
    monkeypatch.setattr(container, "MAY_ALWAYS_CLAIM_BYTES", 0)
    paramcompress.verify(squeeze(tmp_path / "a", {"w": gaussian(rng, 300, 300)}, bits_per_weight=1.0))
    zeros = squeeze(tmp_path / "b", {"w": torch.zeros(4000, 4000)})
    with pytest.raises(FormatError, match="claims 64,000,000 bytes"):
        paramcompress.load_file(zeros)
    assert not paramcompress.load_file(zeros, max_bytes=64_000_000)["w"].any()


GROWTH = """
import resource, sys
from paramcompress.errors import ParamCompressError
import paramcompress
honest, *files = sys.argv[1:]
paramcompress.load_file(honest), paramcompress.verify(honest)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for file in files:
    for read in (paramcompress.load_file, paramcompress.inspect, paramcompress.verify):
        try:
            read(file)
        except ParamCompressError:
            pass
        else:
            assert read is paramcompress.inspect, file
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_hostile_claims_take_no_memory(forged: Forged, tmp_path: Path) -> None:
    """Peak resident memory of a process that reads them all, over one that reads the honest file: what allocators
    keep."""
    files = []

    def add(one: Forged) -> None:
        files.append(tmp_path / f"hostile{len(files)}")
        files[-1].write_bytes(one.build())

    for shapes in CLAIMS.values():
        add(of_nothing(forged.copy(), *shapes))
    for frame in BOMBS.values():
        bomb = forged.copy()
        bomb.index_frame = frame
        add(bomb)
    bomb = forged.copy()
    bomb.parts["paramcompress.exact4"] = zstandard.ZstdCompressor().compress(bytes(200 * MIB))
    add(bomb)
    done = subprocess.run(
        [sys.executable, "-c", GROWTH, tmp_path / "honest", *files], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) * 1024 < 8 * MIB


def packed(text: bytes) -> bytes:
    return zstandard.ZstdCompressor(dict_data=container._phrase_book()).compress(text)


BOMBS = {
    "200 MB of blanks": packed(b" " * 200 * MIB),
    "lists without end": packed(b"[" + b"[]," * 15 * MIB + b"[]]"),
    "tensors that are not named": packed(b'{"n":60000000,"entries":{}}' + b" " * 60_000_000),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_zstd_bombs_in_the_index(kind: str, forged: Forged, tmp_path: Path) -> None:
    forged.index_frame = BOMBS[kind]
    (tmp_path / "a").write_bytes(forged.build())
    with pytest.raises(FormatError, match=r"claims|more values|damaged"):
        Reader(tmp_path / "a")


@pytest.mark.parametrize("part", ["paramcompress.exact4", "index"])
def test_nothing_hides_behind_a_frame(part: str, forged: Forged, tmp_path: Path) -> None:
    if part == "index":
        forged.index_frame = forged.frame() + b"hidden"
    else:
        forged.parts[part] += b"hidden"
    (tmp_path / "a").write_bytes(forged.build())
    assert outcome(lambda: paramcompress.load_file(tmp_path / "a")) == "FormatError"


# ------------------------------------------------------------------------------------------- names and places


def expands_to(forged: Forged, folder: Path) -> set[str]:
    """Files that `expand` adds to the folder and to the one above."""
    (folder / "a.squeezed.safetensors").write_bytes(forged.build())
    before = {*files_in(folder), *files_in(folder.parent)}
    outcome(lambda: paramcompress.expand(folder / "a.squeezed.safetensors", force=True))
    return {*files_in(folder), *files_in(folder.parent)} - before


@pytest.mark.parametrize("name", ["../x.safetensors", "/tmp/x", "a/b", "..", "", "a\0b", "C:x", "a\nb", 5, None])
@pytest.mark.parametrize("place", ["index", "shard"])
def test_a_sharded_tree_leads_nowhere_else(place: str, name: Any, forged: Forged, tmp_path: Path) -> None:
    root = ["safetensors", ["dict"], ["dict", *(one for key in "wvbt" for one in (key, ["t", key]))]]
    names = {"index": "model.safetensors.index.json", "shard": "a.safetensors"}
    forged.index |= {"kind": "sharded", "tree": ["sharded", names["index"], ["dict"], names["shard"], root]}
    assert expands_to(forged, tmp_path) == {"a.expanded"}, "the control: an honest tree is written"
    paramcompress.open_file(tmp_path / "a.squeezed.safetensors").close()
    names[place] = name
    forged.index["tree"] = ["sharded", names["index"], ["dict"], names["shard"], root]
    for path in (tmp_path / "a.expanded").iterdir():
        path.unlink()
    (tmp_path / "a.expanded").rmdir()
    assert expands_to(forged, tmp_path) == set()


def test_two_shards_of_one_name_do_not_overwrite_each_other(forged: Forged, tmp_path: Path) -> None:
    one = ["safetensors", ["dict"], ["dict", "w", ["t", 0], "t", ["t", 0]]]
    other = ["safetensors", ["dict"], ["dict", "v", ["t", 0], "b", ["t", 0]]]
    for names in (("a", "a"), ("a", "A"), ("a", "index.json")):
        forged.index |= {"kind": "sharded", "tree": ["sharded", "index.json", ["dict"], names[0], one, names[1], other]}
        assert expands_to(forged, tmp_path) == set()


@pytest.mark.parametrize("source", ["x.sh", "x.desktop", "x.p\0t", "x.pt\n", "x", "", "..", ".bashrc"])
def test_the_source_name_chooses_no_other_kind_of_file(source: str, forged: Forged, tmp_path: Path) -> None:
    forged.index["about"]["source"] = source
    assert expands_to(forged, tmp_path) == {"a.expanded.pt"}


# ------------------------------------------------------------------------------------------- found by mutation


ABOUT: dict[str, Callable[[dict[str, Any]], Any]] = {
    "source that is a number": lambda about: about.update(source=5),
    "notes that are a number": lambda about: about.update(notes=5),
    "notes of numbers": lambda about: about.update(notes=[5]),
    "layer notes in a list": lambda about: about.update(layer_notes=[]),
    "layer notes of numbers": lambda about: about.update(layer_notes={"w": 5}),
    "weights without end": lambda about: about.update(n_weights=10**400),
    "weights that are true": lambda about: about.update(n_weights=True),
    "negative bytes": lambda about: about.update(bytes_before=-1),
    "settings with infinity": lambda about: about["settings"].update(seed=math.inf),
    "settings with NaN": lambda about: about["settings"].update(seed=math.nan),
}


@pytest.mark.parametrize("kind", ABOUT)
def test_regression_about_of_wrong_kinds(kind: str, forged: Forged, tmp_path: Path) -> None:
    ABOUT[kind](forged.index["about"])
    (tmp_path / "a").write_bytes(forged.build())
    for command in (["inspect", "--json"], ["inspect", "-v"], ["expand", "-o", str(tmp_path / "b.pt")]):
        assert asked(command[0], tmp_path / "a", *command[1:])[0] == 3


@pytest.mark.parametrize("value", [0, [], 5.5, True])
def test_regression_same_as_of_a_tensor_with_a_home(value: Any, forged: Forged, tmp_path: Path) -> None:
    """Was KeyError or TypeError in get_tensor: only homes of ties were looked at."""
    put(forged, "same_as", value)
    (tmp_path / "a").write_bytes(forged.build())
    assert outcome(lambda: paramcompress.load_file(tmp_path / "a")) == "FormatError"


def test_regression_tied_to_nothing(forged: Forged, tmp_path: Path) -> None:
    """Was KeyError in load_file: only of tensors without bytes of their own was it asked what they are tied to."""
    put(forged, "tied", True)
    (tmp_path / "a").write_bytes(forged.build())
    assert outcome(lambda: paramcompress.load_file(tmp_path / "a")) == "FormatError"


@pytest.mark.parametrize("value", [[], {}, 5, None, "pickle"])
def test_regression_kind_that_is_none(value: Any, forged: Forged, tmp_path: Path) -> None:
    """Was TypeError in expand, where a list was looked up in a dict."""
    forged.index["kind"] = value
    (tmp_path / "a").write_bytes(forged.build())
    assert outcome(lambda: paramcompress.expand(tmp_path / "a", tmp_path / "b")) == "FormatError"


def test_regression_inspect_of_a_dtype_that_torch_has_not(forged: Forged, tmp_path: Path) -> None:
    """Was ValueError, exit 70: only tensors that are decoded were asked."""
    put(forged, "dtype", "float7")
    (tmp_path / "a").write_bytes(forged.build())
    code, said = asked("inspect", tmp_path / "a")
    assert code == 3
    assert "torch has no dtype 'float7'" in said


@pytest.mark.parametrize("value", [math.nan, math.inf, -0.5, 10**400])
@pytest.mark.parametrize("name", ["rel_error", "density"])
def test_regression_figures_that_json_cannot_say(name: str, value: float, forged: Forged, tmp_path: Path) -> None:
    """Was ValueError, exit 70, from `inspect --json`."""
    put(forged, name, value)
    (tmp_path / "a").write_bytes(forged.build())
    assert asked("inspect", tmp_path / "a", "--json")[0] == 3


@pytest.mark.parametrize("metadata", [5, None, True, [1]])
def test_regression_metadata_that_is_no_object(metadata: Any, tmp_path: Path) -> None:
    """Was TypeError in squeeze, which asks first whether a file is squeezed already."""
    text = json.dumps({"__metadata__": metadata}).encode()
    (tmp_path / "a.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    assert not is_squeezed(tmp_path / "a.safetensors")
    assert asked("squeeze", tmp_path / "a.safetensors")[0] == 3


TREES: dict[str, Any] = {
    "attributes that hide items": ["torch", ["attributes", ["odict", "w", ["t", 0]], ["dict", "items", 5]]],
    "a list of safetensors": ["safetensors", ["dict"], ["list", ["t", "w"]]],
    "safetensors of a number": ["safetensors", ["dict"], ["dict", "w", 5]],
    "metadata of numbers": ["safetensors", ["dict", "a", 5], ["dict", "w", ["t", 0]]],
    "the rest of an index that JSON has not": [
        *("sharded", "i.json", ["dict", "a", ["complex", 1, 2]], "a"),
        ["safetensors", ["dict"], ["dict", "w", ["t", 0]]],
    ],
    "a mapping with a key that has no hash": ["torch", ["dict", ["list"], ["t", "w"]]],
}


@pytest.mark.parametrize("kind", TREES)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ""])
def test_regression_trees(kind: str, suffix: str, forged: Forged, tmp_path: Path) -> None:
    """Were TypeError and AttributeError in write_checkpoint."""
    of_nothing(forged, [2])
    put(forged, "name", "w")
    forged.index["entries"]["crc"] = f"{zlib.crc32(bytes(8)):08x}"
    forged.index |= {"tree": TREES[kind], "kind": TREES[kind][0]}
    (tmp_path / "a").write_bytes(forged.build())
    paramcompress.verify(tmp_path / "a")
    outcome(lambda: paramcompress.expand(tmp_path / "a", tmp_path / f"out{suffix}"))


def test_regression_cosine_bases_are_not_kept_for_ever() -> None:
    """Was a cache without limit: each of ten thousand small tensors could leave 512 kB there."""
    assert codec._cosine_integers.cache_info().maxsize == 16


@pytest.mark.parametrize("command", [["report"], ["inspect", "--layer", "w0"]])
def test_regression_bases_of_kernels_that_take_none(command: list[str], forged: Forged, tmp_path: Path) -> None:
    """Where bytes go is told before anything is decoded: a basis was made for kernels of any size, of terabytes."""
    of_nothing(forged, [2, 1, 2000, 2000])
    forged.parts = {container.POOL: bytes([codec.TRANSFORMS.index("mirror")]) + NOTHING[1:]}
    (tmp_path / "a").write_bytes(forged.build())
    code, said = asked(command[0], tmp_path / "a", *command[1:])
    assert code == 3
    assert "mirror dictionary for a layer without kernels" in said


def test_axes_of_length_1_make_no_other_basis() -> None:
    """A file may name as many such kernels as it likes, each of which would take time and room of its own."""
    assert mirror.sectors((1, 3, 5)) is mirror.sectors((3, 1, 5, 1))


def test_regression_kernels_with_more_axes_than_64_bits_hold() -> None:
    """Was a basis of zeros: 128 ** 10 is 0 modulo 2 ** 64."""
    assert Layout.of((4, 4, *[1] * 7, 9)).takes_transform
    assert not Layout.of((4, 4, *[1] * 8, 9)).takes_transform


def test_the_process_may_still_open_files(forged: Forged, tmp_path: Path) -> None:
    """A refused file is closed."""
    (tmp_path / "a").write_bytes(of_nothing(forged, [1 << 40]).build())
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0
    for _ in range(20):
        assert outcome(lambda: paramcompress.inspect(tmp_path / "a")) == "FormatError"
    assert not before or len(list(Path("/proc/self/fd").iterdir())) <= before < soft
