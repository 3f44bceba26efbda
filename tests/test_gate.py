"""The gate on real squeezed files: what passes, what breaks the budget, and which exit code wins."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import gaussian

import paramcompress
from paramcompress.errors import ConfigError
from paramcompress.verdicts import Checked, Finding, Verdict

FILE = "net.squeezed.safetensors"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """net.pt and three squeezed files of it: net (error 0.03), tight (0.01) and loose (0.2)."""
    folder = tmp_path_factory.mktemp("models")
    rng = np.random.default_rng(1)
    state = {"conv.weight": gaussian(rng, 16, 8, 3, 3), "fc.weight": gaussian(rng, 10, 200), "fc.bias": torch.zeros(10)}
    torch.save(state, folder / "net.pt")
    for name, error in (("net", 0.03), ("tight", 0.01), ("loose", 0.2)):
        paramcompress.squeeze(folder / "net.pt", folder / f"{name}.squeezed.safetensors", max_rel_error=error)
    return folder


@pytest.fixture
def folder(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with the model, its squeezed file, and nothing else; the current folder."""
    for name in ("net.pt", FILE):
        shutil.copy(models / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check(entry: str, *more: str, update: bool = False) -> Verdict:
    """The verdict on entries with these lines; the first gets the usual path unless it names one."""
    path = "" if "path =" in entry else f'path = "{FILE}"\n'
    text = "\n".join(f"[[check]]\n{one}" for one in (path + entry, *more))
    Path("paramcompress.toml").write_text(text)
    return paramcompress.check(update_baseline=update)


def only(verdict: Verdict) -> Finding:
    (finding,) = (finding for one in verdict.files for finding in one.findings)
    return finding


def size_of(name: str = FILE) -> int:
    return Path(name).stat().st_size


# ---- limits


def test_within_the_budget(folder: Path) -> None:
    verdict = check(f'max_size = {size_of()}\nmax_rel_error = 0.03\noriginal = "net.pt"')
    (one,) = verdict.files
    assert (verdict.exit_code, one.status, one.findings) == (0, "pass", ())
    assert (one.n_bytes, one.measured, one.line) == (size_of(), True, 1)
    assert one.rel_error == paramcompress.verify(FILE, "net.pt").layers[0].rel_error or one.worst_layer == "fc.weight"
    assert verdict.baseline is None


def test_too_large_names_the_largest_layer_and_the_remedy(folder: Path) -> None:
    limit = size_of() - 1
    verdict = check(f"max_size = {limit}")
    finding = only(verdict)
    assert (verdict.exit_code, finding.key, finding.layers) == (1, "max_size", ("fc.weight",))
    assert finding.what.startswith(f"{FILE}: ")
    assert f"{limit:,} B" in finding.what
    assert f"--target-size {limit}" in finding.hint


def test_an_error_over_the_limit_names_the_layers_the_worst_first(folder: Path) -> None:
    finding = only(check("max_rel_error = 0.001"))
    layers = sorted(paramcompress.inspect(FILE).layers, key=lambda layer: -layer.rel_error)
    assert finding.layers == (layers[0].name, layers[1].name)
    assert f"layer {layers[0].name} has a relative error of" in finding.what
    assert "fc.bias" not in finding.what


def test_limits_of_single_layers(folder: Path) -> None:
    """An exact name beats a pattern; either frees its layer from the limit of the file, or holds it to a lower one."""
    assert check('max_rel_error = 0.001\nlayers = {"*" = {max_rel_error = 0.04}}').exit_code == 0
    finding = only(check('layers = {"fc.weight" = {max_rel_error = 0.001}, "*" = {max_rel_error = 0.04}}'))
    assert (finding.key, finding.layers) == ('layers."fc.weight".max_rel_error', ("fc.weight",))
    finding = only(check('max_rel_error = 0.05\nlayers = {"conv*" = {max_size = "10B"}}'))
    assert (finding.key, finding.layers) == ('layers."conv*".max_size', ("conv.weight",))


def test_a_limit_that_holds_for_no_layer_fails(folder: Path) -> None:
    """A layer was renamed: the limit that guarded it must not fall silent."""
    finding = only(check('layers = {"fc1.weight" = {max_rel_error = 0.05}}'))
    assert (finding.level, finding.exit_code) == ("fail", 1)
    assert "no layer matches 'fc1.weight'" in finding.what
    assert finding.hint.startswith("did you mean fc.weight?")


def test_warnings_pass_and_are_not_said_of_what_fails(folder: Path) -> None:
    verdict = check("warn = {max_size = 10}")
    assert (verdict.exit_code, verdict.files[0].status, only(verdict).key) == (0, "warn", "warn.max_size")
    verdict = check("max_size = 20\nwarn = {max_size = 10, max_rel_error = 0.001}")
    assert [finding.key for finding in verdict.files[0].findings] == ["max_size", "warn.max_rel_error"]
    assert verdict.exit_code == 1


def test_the_error_is_measured_and_not_believed(folder: Path, models: Path) -> None:
    """The file states at most three digits, rounded up; the measured error is smaller, and says so."""
    stated = check("max_rel_error = 0.05").files[0]
    measured = check('max_rel_error = 0.05\noriginal = "net.pt"').files[0]
    assert stated.rel_error is not None
    assert measured.rel_error is not None
    assert 0 < measured.rel_error < stated.rel_error
    assert (stated.measured, measured.measured) == (False, True)


def test_a_renamed_layer_is_looked_for_among_the_new_ones(folder: Path) -> None:
    entry = 'layers = {"fc.weight" = {max_rel_error = 0.05}}'
    state = torch.load("net.pt")
    paramcompress.squeeze({**state, "fd.weight": state["fc.weight"]}, FILE, force=True)
    check(entry, update=True)
    state["head.weight"] = state.pop("fc.weight")
    paramcompress.squeeze({**state, "fd.weight": state["head.weight"]}, FILE, force=True)
    assert only(check(entry)).hint.startswith("did you mean head.weight?")


@pytest.mark.parametrize(
    ("entry", "option"),
    [
        ("max_rel_error = 0.001", "--max-rel-error 0.001"),
        ('layers = {"*" = {max_rel_error = 0.002}}', "--set '*:max_rel_error=0.002'"),
    ],
)
def test_the_remedy_for_an_error_is_the_option_that_mends_it(folder: Path, entry: str, option: str) -> None:
    assert f"squeeze with {option}, or raise" in only(check(entry)).hint


# ---- files


def test_files_of_a_glob(folder: Path, models: Path) -> None:
    shutil.copy(models / "loose.squeezed.safetensors", folder)
    shutil.copy(folder / "net.pt", folder / "loose.pt")
    verdict = check('path = "*.squeezed.safetensors"\noriginal = "{name}.pt"\nname = "all"\nmax_rel_error = 0.05')
    assert [(one.path, one.status) for one in verdict.files] == [("loose.squeezed.safetensors", "fail"), (FILE, "pass")]
    assert verdict.files[1].name == f"all: {FILE}"


def test_a_name_that_looks_like_a_glob_is_a_name(folder: Path) -> None:
    shutil.copy(FILE, "a[1].safetensors")
    assert check('path = "a[1].safetensors"').exit_code == 0


def test_paths_are_relative_to_the_configuration(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check('original = "net.pt"')
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    assert paramcompress.check(folder).exit_code == 0
    assert paramcompress.check(folder / "paramcompress.toml").exit_code == 0


@pytest.mark.parametrize(
    ("entry", "what", "hint"),
    [
        ('path = "nett.squeezed.safetensors"', "nett.squeezed.safetensors does not exist", f"did you mean {FILE}?"),
        ('path = "none/*.safetensors"', "no file matches none/*.safetensors", "build the file first"),
        ('original = "nett.pt"', f"{FILE}: its original nett.pt does not exist", "mend original"),
        (f'path = "{"x" * 5000}"', "does not exist", "build the file first"),
    ],
)
def test_what_is_missing_fails(folder: Path, entry: str, what: str, hint: str) -> None:
    verdict = check(entry)
    assert verdict.exit_code == 1
    assert what in only(verdict).what
    assert hint in only(verdict).hint


def damage(name: str) -> None:
    data = bytearray(Path(FILE).read_bytes())
    data[len(data) // 2] ^= 1
    Path(name).write_bytes(data)


def test_what_cannot_be_read_is_3_and_what_breaks_its_promise_is_4(folder: Path) -> None:
    finding = only(check('path = "net.pt"'))
    assert (finding.exit_code, finding.key) == (3, "path")
    assert "not a safetensors file" in finding.what
    Path("cut.safetensors").write_bytes(Path(FILE).read_bytes()[:-5])
    assert only(check('path = "cut.safetensors"')).exit_code == 3
    other = {"conv.weight": torch.ones(16, 8, 3, 3), "fc.weight": torch.ones(10, 200), "fc.bias": torch.zeros(10)}
    torch.save(other, "other.pt")
    finding = only(check('original = "other.pt"'))
    assert (finding.exit_code, finding.layers) == (4, ("conv.weight",))
    assert finding.hint == "if other.pt has changed, squeeze it again"
    damage("flipped.safetensors")
    finding = only(check('path = "flipped.safetensors"\noriginal = "net.pt"'))
    assert (finding.exit_code, finding.hint) == (4, "fetch or squeeze the file again")


def test_the_worst_of_several_wins(folder: Path) -> None:
    torch.save({"w": torch.ones(3)}, "other.pt")
    missing, unreadable = 'path = "absent"', 'path = "net.pt"'
    broken = f'path = "{FILE}"\noriginal = "other.pt"'
    assert check("", missing).exit_code == 1
    assert check("", missing, unreadable).exit_code == 3
    verdict = check("", missing, unreadable, broken)
    assert verdict.exit_code == 4
    assert [one.status for one in verdict.files] == ["pass", "fail", "fail", "fail"]


@pytest.mark.parametrize(("codes", "worst"), [((0,), 0), ((1, 2), 2), ((3, 1), 3), ((1, 4, 3), 4), ((1, 70), 1)])
def test_the_order_of_exit_codes(codes: tuple[int, ...], worst: int) -> None:
    files = tuple(Checked("n", "p", None, (Finding("fail", code, "path", "", ""),)) for code in codes)
    assert Verdict("c", files).exit_code == worst


# ---- baseline

GROWTH = "max_increase = {percent = 5, bytes = 100}"


def test_growth_against_the_baseline(folder: Path, models: Path) -> None:
    assert check(GROWTH, update=True).baseline_written
    committed = Path("paramcompress-baseline.json").read_text()
    assert json.loads(committed)["files"][FILE]["bytes"] == size_of()
    assert check(GROWTH).exit_code == 0
    before = size_of()
    shutil.copy(models / "tight.squeezed.safetensors", FILE)
    verdict = check(GROWTH)
    finding = only(verdict)
    assert (verdict.exit_code, finding.key, finding.layers) == (1, "max_increase", ("fc.weight",))
    assert f"{before:,} B -> {size_of():,} B" in finding.what
    assert "--update-baseline" in finding.hint
    assert [change.name for change in verdict.files[0].changes] == ["fc.weight", "conv.weight"]
    assert check("max_increase = {percent = 5, bytes = '1MB'}").exit_code == 0
    assert Path("paramcompress-baseline.json").read_text() == committed
    check(GROWTH, update=True)
    assert check(GROWTH).exit_code == 0


def test_growth_of_one_layer(folder: Path, models: Path) -> None:
    entry = 'layers = {"conv*" = {max_increase = {percent = 5}}}'
    check(entry, update=True)
    shutil.copy(models / "tight.squeezed.safetensors", FILE)
    finding = only(check(entry))
    assert (finding.key, finding.layers) == ('layers."conv*".max_increase', ("conv.weight",))


def test_the_layer_that_grew_is_blamed_for_a_size(folder: Path, models: Path) -> None:
    check("", update=True)
    shutil.copy(models / "tight.squeezed.safetensors", FILE)
    assert "layer fc.weight grew most, by " in only(check(f"max_size = {size_of() - 1}")).what


def test_no_baseline_yet(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"compares with the baseline paramcompress-baseline\.json") as caught:
        check(GROWTH)
    assert "--update-baseline" in (caught.value.hint or "")
    assert check("max_size = '1MB'").exit_code == 0  # nothing is compared, so none is needed


def test_a_file_that_the_baseline_lacks_is_warned_of(folder: Path, models: Path) -> None:
    check("", update=True)
    shutil.copy(models / "tight.squeezed.safetensors", folder)
    verdict = check('path = "tight*"\n' + GROWTH)
    assert (verdict.exit_code, only(verdict).level) == (0, "warn")
    assert "not in the baseline" in only(verdict).what
    assert verdict.notes == (f"{FILE} is in the baseline and no check finds it; --update-baseline takes it out",)


def test_the_baseline_is_left_alone_when_a_file_could_not_be_measured(folder: Path) -> None:
    verdict = check("", 'path = "absent"', update=True)
    assert (verdict.exit_code, verdict.baseline_written) == (1, False)
    assert "was not written" in verdict.notes[0]
    assert not Path("paramcompress-baseline.json").exists()


def test_a_damaged_baseline_can_be_replaced(folder: Path) -> None:
    Path("paramcompress-baseline.json").write_text("<<<<<<<")
    with pytest.raises(ConfigError, match="not valid JSON"):
        check(GROWTH)
    assert check(GROWTH, update=True).exit_code == 0
    assert check(GROWTH).exit_code == 0


def test_an_update_overwrites_no_other_json(folder: Path) -> None:
    Path("package.json").write_text('{"name": "app"}')
    Path("paramcompress.toml").write_text(f'baseline = "package.json"\n[[check]]\npath = "{FILE}"')
    with pytest.raises(ConfigError, match=r"package\.json: is there and is no baseline") as caught:
        paramcompress.check(update_baseline=True)
    assert "baseline" in (caught.value.hint or "")
    assert Path("package.json").read_text() == '{"name": "app"}'


def test_a_folder_is_no_file(folder: Path) -> None:
    (folder / "models").mkdir()
    finding = only(check('path = "models"'))
    assert (finding.exit_code, finding.what) == (1, "models is a folder")
    assert 'path = "models/*.squeezed.safetensors"' in finding.hint


def test_updating_twice_changes_nothing(folder: Path) -> None:
    check('original = "net.pt"', update=True)
    first = Path("paramcompress-baseline.json").read_bytes()
    check('original = "net.pt"', update=True)
    assert Path("paramcompress-baseline.json").read_bytes() == first


def test_progress_runs_over_all_files(folder: Path, models: Path) -> None:
    shutil.copy(models / "tight.squeezed.safetensors", folder)
    Path("paramcompress.toml").write_text('[[check]]\npath = "*.squeezed.safetensors"')
    seen: list[tuple[int, int]] = []
    paramcompress.check(progress=lambda _layer, done, total: seen.append((done, total)))
    total = size_of() + size_of("tight.squeezed.safetensors")
    assert seen == sorted(seen)
    assert seen[-1] == (total, total)
