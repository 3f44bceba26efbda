"""Malicious pickles: refused before anything of them runs, in every coat that a torch file can have.

Each of them makes a file CANARY where it runs. The control shows that it would.
"""

from __future__ import annotations

import collections
import contextlib
import io
import json
import os
import pickle
import pickletools
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from forging import torch_zip, unzip
from typer.testing import CliRunner

from paramcompress.checkpoint import from_tensors, open_checkpoint
from paramcompress.cli import app
from paramcompress.errors import CheckpointError

CANARY = "CANARY"


@pytest.fixture(autouse=True)
def nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield
    assert not list(tmp_path.rglob(f"{CANARY}*"))


def text(value: str) -> bytes:
    """The operation that pushes a text."""
    data = value.encode()
    return b"X" + len(data).to_bytes(4, "little") + data


CALL = text(CANARY) + b"\x85"
"""The arguments of os.mkdir."""
PROGRAMS: dict[str, bytes] = {
    "GLOBAL and REDUCE": b"cos\nmkdir\n" + CALL + b"R",
    "by its other name": b"cposix\nmkdir\n" + CALL + b"R",
    "STACK_GLOBAL": text("os") + text("mkdir") + b"\x93" + CALL + b"R",
    "STACK_GLOBAL of a dotted name": text("pathlib") + text("os.mkdir") + b"\x93" + CALL + b"R",
    "INST": b"(" + text(CANARY) + b"ios\nmkdir\n",
    "OBJ": b"(cos\nmkdir\n" + text(CANARY) + b"o",
    "NEWOBJ": b"csubprocess\nPopen\n" + text(f"mkdir {CANARY}") + b"\x85\x81",
    "NEWOBJ_EX": b"csubprocess\nPopen\n" + text(f"mkdir {CANARY}") + b"\x85}" + text("shell") + b"\x88s\x92",
    "BUILD": b"ccollections\nOrderedDict\n)R}" + text("__setstate__") + b"cos\nmkdir\nsb" + text(CANARY) + b"b",
    "BUILD of slots": b"ccollections\nOrderedDict\n)RN}" + text("__class__") + b"cos\nmkdir\ns\x86b",
    "BUILD of a harmless class": b"cargparse\nNamespace\n)R}" + text("x") + b"cos\nmkdir\n" + CALL + b"Rsb",
    "a persistent id": b"cos\nmkdir\n" + CALL + b"RQ",
    "a persistent id that is no storage": text("module") + b"cos\nmkdir\n" + text("0") + b"\x87Q",
    "a persistent id as text": b"Pos.mkdir\n",
    "an extension": b"\x82\x01" + CALL + b"R",
    "eval": b"cbuiltins\neval\n" + text(f"__import__('os').mkdir('{CANARY}')") + b"\x85R",
    "exec": b"c__builtin__\nexec\n" + text(f"open('{CANARY}','w')") + b"\x85R",
    "getattr": b"cbuiltins\ngetattr\ncos\nsystem\n" + text("__call__") + b"\x86R" + text(f"mkdir {CANARY}") + b"\x85R",
    "apply": b"coperator\nmethodcaller\n" + text("mkdir") + text(CANARY) + b"\x86Rcbuiltins\n__import__\n"
    + text("os") + b"\x85R\x85R",
    "map": b"cbuiltins\nlist\ncbuiltins\nmap\ncos\nmkdir\n]" + text(CANARY) + b"a\x86R\x85R",
    "a set of results": b"cbuiltins\nset\n]cos\nmkdir\n" + CALL + b"Ra\x85R",
    "runpy": b"crunpy\nrun_path\n" + text("script.py") + b"\x85R",
    "a file that is opened": b"cio\nopen\n" + text(CANARY) + text("w") + b"\x86R",
    "a path that is made": b"cpathlib\nPath.mkdir\ncpathlib\nPosixPath\n" + CALL + b"R\x85R",
    "numpy's loader": b"cnumpy\nload\n" + text("pickled.npy") + b"N\x88\x87R",
    "torch.load": b"ctorch\nload\n" + text("inner.pt") + b"\x85R",
    "torch.storage._load_from_bytes": b"ctorch.storage\n_load_from_bytes\n" + b"C\x04\x80\x02N.\x85R",
    "torch.hub": b"ctorch.hub\nload\n" + text("a") + text("b") + b"\x86R",
    "torch.jit.load": b"ctorch.jit\nload\n" + text("inner.pt") + b"\x85R",
    "torch's rebuild of another type": b"ctorch._tensor\n_rebuild_from_type_v2\n(cos\nmkdir\nctorch\nTensor\n"
    + CALL + b"}tR",
    "hooks": b"ctorch._utils\n_rebuild_parameter\n(NN" + b"ccollections\nOrderedDict\n)Rcos\nmkdir\n" + CALL + b"RtR",
    "code behind the end": b"}." + b"cos\nmkdir\n" + CALL + b"R",
    "a defaultdict's factory": b"ccollections\ndefaultdict\ncos\ngetcwd\n\x85R" + text("x") + b"cos\nmkdir\n"
    + CALL + b"Rs",
    "a numpy object array": b"cnumpy._core.multiarray\nscalar\ncnumpy\ndtype\n" + text("O8")
    + b"\x85RC\x04\x80\x02N.\x86R",
    "datetime's tzinfo": b"cdatetime\ndatetime\nC\x0a" + bytes(10) + b"cos\nmkdir\n" + CALL + b"R\x86R",
}  # fmt: skip


def zipped(program: bytes) -> bytes:
    """As torch writes it since 1.6."""
    return torch_zip(b"\x80\x02}" + text("x") + program + b"s.", members())


def members() -> dict[str, bytes]:
    buffer = io.BytesIO()
    torch.save({"w": torch.ones(3)}, buffer)
    return unzip(buffer.getvalue())[1]


def protocol_4(program: bytes) -> bytes:
    frame = b"}" + text("x") + program + b"s."
    return torch_zip(b"\x80\x04\x95" + len(frame).to_bytes(8, "little") + frame, members())


def legacy_parts() -> list[bytes]:
    """The pickles of a file as torch wrote it before 1.6, and what follows them."""
    buffer = io.BytesIO()
    torch.save({"w": torch.ones(3)}, buffer, _use_new_zipfile_serialization=False)
    data = buffer.getvalue()
    file, parts, at = io.BytesIO(data), [], 0
    for _ in range(5):
        for _ in pickletools.genops(file):
            pass
        parts.append(data[at : file.tell()])
        at = file.tell()
    return [*parts, data[at:]]


def legacy(program: bytes, at: int = 3) -> bytes:
    parts = legacy_parts()
    parts[at] = b"\x80\x02}" + text("x") + program + b"s."
    return b"".join(parts)


def plain(program: bytes) -> bytes:
    return b"\x80\x02" + program + b"."


def nested(program: bytes) -> bytes:
    """A second pickle in the archive, which other readers may take for the one that counts."""
    return torch_zip(b"\x80\x02}.", members() | {"data.pkl/data.pkl": plain(program), "x/data.pkl": plain(program)})


def tar(program: bytes) -> bytes:
    """As torch wrote it before 0.1.10."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("sys_info", "storages", "tensors", "pickle"):
            info = tarfile.TarInfo(name)
            info.size = len(plain(program))
            archive.addfile(info, io.BytesIO(plain(program)))
    return buffer.getvalue()


def tar_in_disguise(program: bytes) -> bytes:
    """The same with a first member that is called what a later file begins with: torch tries tar first."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("x" * 30))
    head = bytearray(buffer.getvalue()[:512])
    head[:30] = legacy_parts()[0] + b"N.N.N.]." + bytes(30 - len(legacy_parts()[0]) - 8)
    head[257:265] = bytes(8)  # without the word that tells newer archives
    head[148:156] = b" " * 8
    head[148:156] = f"{sum(head):06o}\0 ".encode()
    return bytes(head) + tar(program)


COATS: dict[str, Callable[[bytes], bytes]] = {
    "zip": zipped,
    "protocol 4": protocol_4,
    "legacy": legacy,
    "legacy, its magic number": lambda program: legacy(program, 0),
    "legacy, its system": lambda program: legacy(program, 2),
    "legacy, its keys": lambda program: legacy(program, 4),
    "plain": plain,
    "nested": nested,
    "tar": tar,
    "tar in disguise": tar_in_disguise,
}


@pytest.mark.parametrize("coat", COATS)
@pytest.mark.parametrize("program", PROGRAMS)
def test_nothing_of_it_runs(program: str, coat: str) -> None:
    Path("script.py").write_text(f"import os; os.mkdir('{CANARY}')")
    Path("inner.pt").write_bytes(plain(PROGRAMS["GLOBAL and REDUCE"]))
    Path("model.pt").write_bytes(COATS[coat](PROGRAMS[program]))
    with contextlib.suppress(CheckpointError), open_checkpoint("model.pt") as checkpoint:
        # what a harmless class is made of may be read as data: then nothing of it is left to run
        assert "mkdir" not in json.dumps(checkpoint.tree)
    assert not Path(CANARY).exists()


def test_the_control_they_would_run() -> None:
    """A reader that trusts them makes the canary: so they are not merely broken."""
    ran = []
    for name, program in PROGRAMS.items():
        Path("script.py").write_text(f"import os; os.mkdir('{CANARY}')")
        Path("program.pkl").write_bytes(b"\x80\x04" + program + b".")
        script = "import pickle, sys; pickle.load(open('program.pkl', 'rb'))"
        if name in ("GLOBAL and REDUCE", "STACK_GLOBAL", "INST", "OBJ", "eval", "runpy", "NEWOBJ_EX"):
            subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60)
            if Path(CANARY).exists():
                Path(CANARY).rmdir()
                ran.append(name)
    assert len(ran) >= 6, ran


@pytest.mark.parametrize("command", ["squeeze", "verify", "inspect", "expand", "report"])
def test_commands_refuse_them(command: str) -> None:
    Path("model.pt").write_bytes(zipped(PROGRAMS["GLOBAL and REDUCE"]))
    done = CliRunner().invoke(app, [command, "model.pt"])
    assert (done.exit_code, done.stdout) == (3, "")


def test_shards_are_read_as_safely() -> None:
    Path("model").mkdir()
    Path("model", "a.bin").write_bytes(zipped(PROGRAMS["GLOBAL and REDUCE"]))
    Path("model", "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"x": "a.bin"}}))
    with pytest.raises(CheckpointError, match="mkdir"):
        open_checkpoint("model")


class Reduces:
    """An object whose pickle is a call."""

    def __reduce__(self) -> Any:
        return os.mkdir, (CANARY,)


def test_objects_in_memory_are_not_called_either() -> None:
    """A dict of tensors that somebody else has made: its objects are taken apart, not run."""
    with pytest.raises(CheckpointError):
        from_tensors({"w": torch.ones(2), "x": Reduces()})


# ------------------------------------------------------------------------------------------- torch's own weak spots

MEMORY = {
    "Tensor(n)": b"ctorch\nTensor\nM\x10\x27\x85R",
    "FloatTensor(n)": b"ctorch\nFloatTensor\nM\x10\x27\x85R",
    "Tensor by NEWOBJ": b"ctorch\nTensor\nM\x10\x27\x85\x81",
    "Tensor by its place in the memo": b"ctorch\nTensor\nq\x050h\x05M\x10\x27\x85R",
    "a sparse one": b"ctorch.sparse\nFloatTensor\nM\x10\x27\x85R",
    "through a builder": b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch\nTensor\nctorch\nTensor\nM\x10\x27\x85}tR",
    "a storage": b"ctorch._utils\n_rebuild_tensor\n(ctorch.storage\nTypedStorage\nM\x10\x27\x85R"
    b"K\x00M\x10\x27\x85K\x01\x85tR",
}


@pytest.mark.parametrize("coat", ["zip", "legacy"])
@pytest.mark.parametrize("program", MEMORY)
def test_regression_memory_of_this_process_does_not_get_into_a_tensor(program: str, coat: str) -> None:
    """torch's weights-only loader allows Tensor(n): n numbers of whatever was in memory before."""
    Path("model.pt").write_bytes(COATS[coat](MEMORY[program]))
    with pytest.raises(CheckpointError):
        open_checkpoint("model.pt")


def test_regression_a_legacy_storage_without_its_bytes_is_refused() -> None:
    """torch fills the storages that the last pickle lists, and leaves the others as they were in memory."""
    parts = legacy_parts()
    assert open_legacy(parts).load("w").tolist() == [1, 1, 1], "the control"
    parts[4] = b"\x80\x02]."
    with pytest.raises(CheckpointError, match="is not in the file"):
        open_legacy(parts)


def open_legacy(parts: list[bytes]) -> Any:
    Path("model.pt").write_bytes(b"".join(parts))
    return open_checkpoint("model.pt")


@pytest.mark.parametrize("name", ["items", "keys", "values", "__class__", "popitem"])
def test_regression_attributes_do_not_hide_the_methods_of_a_dict(name: str) -> None:
    """Was TypeError: an OrderedDict takes any attribute from a pickle, also one that is called items."""
    program = b"ccollections\nOrderedDict\n)R" + text("w") + b"K\x05s}" + text(name) + b"K\x05sb"
    Path("model.pt").write_bytes(zipped(program))
    with pytest.raises(CheckpointError, match="holds no tensor"):
        open_checkpoint("model.pt")
    hidden = collections.OrderedDict(w=torch.ones(2))
    vars(hidden)[name] = 5
    with from_tensors(hidden) as checkpoint:
        assert [info.name for info in checkpoint.tensors] == ["w"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.uint16, torch.bool, torch.complex128])
def test_regression_a_storage_that_ends_early_is_refused(dtype: torch.dtype) -> None:
    """torch maps the file into memory and does not ask how long a member is: what follows it, the rest of the zip
    archive, came out as weights. Its checksum is right."""
    buffer = io.BytesIO()
    torch.save({"w": torch.ones(30).to(dtype), "v": torch.ones(4).to(dtype)}, buffer)
    data, rest = unzip(buffer.getvalue())
    Path("model.pt").write_bytes(torch_zip(data, rest))
    with open_checkpoint("model.pt") as checkpoint:
        assert torch.equal(checkpoint.load("w"), torch.ones(30).to(dtype)), "the control"
    for n_bytes in (0, 1, 30 * dtype.itemsize - 1):
        Path("model.pt").write_bytes(torch_zip(data, rest | {"data/0": rest["data/0"][:n_bytes]}))
        with pytest.raises(CheckpointError, match="its storage 'data/0' ends early"):
            open_checkpoint("model.pt")


def test_a_storage_whose_length_is_no_number_is_refused() -> None:
    """A tensor of one integer may stand for a length in torch, and what it holds is not known here."""
    program = text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu")
    storage = b"(" + program + b"N" + b"tQ"
    Path("model.pt").write_bytes(torch_zip(b"\x80\x02}" + text("x") + storage + b"s.", members()))
    with pytest.raises(CheckpointError, match="without its length"):
        open_checkpoint("model.pt")


def test_many_views_of_little_memory_are_refused() -> None:
    """Each of them may be honest; all together they would fill a disk."""
    torch.save({str(i): torch.ones(1).expand(1 << 23) for i in range(200)}, "model.pt")
    with pytest.raises(CheckpointError, match="far more than the file holds"):
        open_checkpoint("model.pt")


def test_bytes_that_begin_like_python_2_are_read() -> None:
    """Keys of storages as Python 2 wrote them: texts of one byte a character."""
    parts = legacy_parts()
    key = pickle.loads(parts[4])[0]  # this test wrote it
    old, new = b"X" + len(key).to_bytes(4, "little") + key.encode(), b"U" + bytes([len(key)]) + key.encode()
    parts[3], parts[4] = parts[3].replace(old, new), parts[4].replace(old, new)
    assert open_legacy(parts).load("w").tolist() == [1, 1, 1]


# ------------------------------------------------------------------------------------------- folders


def test_symbolic_links_to_shards_are_followed_to_files_only() -> None:
    """Hugging Face's cache is made of links; what they lead to has to be a file, and a whole one of the right kind."""
    Path("model").mkdir()
    torch.save({"x": torch.ones(2)}, "blob")
    index = Path("model", "pytorch_model.bin.index.json")
    index.write_text(json.dumps({"weight_map": {"x": "a.bin"}}))
    shard = Path("model", "a.bin")
    shard.symlink_to(Path("blob").resolve())
    with open_checkpoint("model") as checkpoint:
        assert checkpoint.load("x").tolist() == [1, 1]
    for target in ("/dev/zero", "/dev/stdin", ".", "a.bin", "/nowhere"):
        shard.unlink()
        shard.symlink_to(target)
        with pytest.raises(CheckpointError):
            open_checkpoint("model")
    shard.unlink()
    os.mkfifo(shard)
    with pytest.raises(CheckpointError, match="missing"):
        open_checkpoint("model")


@pytest.mark.parametrize(
    "name", ["../x.bin", "/etc/passwd", "a\0b", "..", "a/../../x", "C:\\x", "a\nb", 7, None, ["a"]]
)
def test_an_index_leads_nowhere_else(name: Any) -> None:
    Path("model").mkdir()
    Path("model", "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
    with pytest.raises(CheckpointError, match="plain file name"):
        open_checkpoint("model")


def test_archives_within_archives_are_not_unpacked() -> None:
    inner = zipped(PROGRAMS["GLOBAL and REDUCE"])
    with zipfile.ZipFile("outer.pt", "w") as archive:
        archive.writestr("archive/inner.pt", inner)
    with pytest.raises(CheckpointError, match=r"zip archive that torch\.save did not write"):
        open_checkpoint("outer.pt")
    Path("model.pt").write_bytes(inner + Path("outer.pt").read_bytes())
    with pytest.raises(CheckpointError):
        open_checkpoint("model.pt")
