"""The command line with the conductor replaced: what is parsed, what is called, what is said, how it ends."""

from __future__ import annotations

import fcntl
import inspect
import io
import json
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import termios
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from typer.testing import CliRunner, Result

import paramcompress
from paramcompress import errors
from paramcompress.cli import COMMANDS, app
from paramcompress.records import Calibration, Difference, LayerReport, Report, Sweep, SweepPoint
from paramcompress.verdicts import Checked, Finding, Verdict

NAMES = [command.__name__ for command in COMMANDS]
LAYER = LayerReport("fc[red].weight", (4, 8), "float32", "factored", "none", 0, 0.5, 3.0, 128, 12, 0.03, 0.1)
REPORT = Report("m.pt", "m.squeezed.safetensors", "max_rel_error 0.03", 32, 128, 100, (LAYER,))
SWEEP = Sweep("m.pt", 32, 128, (SweepPoint(0.03, 100, 25.0, 0.03, (LAYER,)),))
BROKEN = Finding("fail", 1, "max_size", "f: 100 B is over max_size 90 B", "squeeze it", ("fc",))
VERDICT = Verdict("paramcompress.toml", (Checked("net", "f", 1, (BROKEN,), n_bytes=100, rel_error=0.0),))
PASSED = Verdict("paramcompress.toml", (Checked("net", "f", 1, n_bytes=100, rel_error=0.0),))
RESULTS = {
    "expand": Path("m.pt"),
    "sweep": SWEEP,
    "check": PASSED,
    "diff": Difference("a", "b", 1, 1, ()),
    "make": None,
    "save_moments": Calibration(Path("m.stats.safetensors"), 8, ("fc",)),
}

Call = tuple[str, tuple[object, ...], dict[str, object]]


class Conductor(types.ModuleType):
    """Stands in for the conductors: notes each call, does no work, fails on request."""

    def __init__(self) -> None:
        super().__init__("paramcompress.pipeline")
        self.calls: list[Call] = []
        self.failure: BaseException | None = None
        for name in (*NAMES, "make", "save_moments"):
            setattr(self, name, self._stand_in(name))

    def _stand_in(self, name: str) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            self.calls.append((name, args, kwargs))
            if self.failure:
                raise self.failure
            return RESULTS.get(name, REPORT)

        return call

    @staticmethod
    def default_output(source: Path) -> Path:
        return source.with_suffix(".squeezed.safetensors")

    def default_stats(self, source: Path) -> Path:
        return source.with_suffix(".stats.safetensors")


@pytest.fixture
def conductor(monkeypatch: pytest.MonkeyPatch) -> Conductor:
    stand_in = Conductor()
    for room in ("pipeline", "sweeps", "gate", "differences", "reporting"):
        monkeypatch.setitem(sys.modules, f"paramcompress.{room}", stand_in)
        monkeypatch.setattr(paramcompress, room, stand_in, raising=False)
    return stand_in


def run(*args: str) -> Result:
    return CliRunner(env={"COLUMNS": "80"}).invoke(app, args)


SQUEEZE: dict[str, object] = {"dry_run": False, "verify": True, "force": False, "progress": None}
EXPAND: dict[str, object] = {"force": False, "progress": None}
M, OUT, FILE = Path("m.pt"), Path("m.squeezed.safetensors"), Path("f.safetensors")

CALLS: list[tuple[str, Call]] = [
    ("squeeze m.pt", ("squeeze", (M, OUT), SQUEEZE)),
    ("squeeze m.pt -o x", ("squeeze", (M, Path("x")), SQUEEZE)),
    ("squeeze m.pt --target-size 3MB", ("squeeze", (M, OUT), {**SQUEEZE, "target_size": 3_000_000})),
    ("squeeze m.pt --bits-per-weight 3.5", ("squeeze", (M, OUT), {**SQUEEZE, "bits_per_weight": 3.5})),
    ("squeeze m.pt --max-rel-error 0", ("squeeze", (M, OUT), {**SQUEEZE, "max_rel_error": 0.0})),
    (
        "squeeze m.pt --set fc*:rank=4,density=.1 --set a:0:exact=true",
        ("squeeze", (M, OUT), {**SQUEEZE, "layers": {"fc*": {"rank": 4, "density": 0.1}, "a:0": {"exact": True}}}),
    ),
    (
        "squeeze m.pt --include conv* --include fc --exclude re:bn",
        ("squeeze", (M, OUT), {**SQUEEZE, "include": ("conv*", "fc"), "exclude": ("re:bn",)}),
    ),
    (
        "squeeze m.pt --effort max --workers 2 --device cuda:0 --seed 7",
        ("squeeze", (M, OUT), {**SQUEEZE, "effort": "max", "workers": 2, "device": "cuda:0", "seed": 7}),
    ),
    (
        "squeeze m.pt --dry-run --no-verify --force -q -v --json",
        ("squeeze", (M, OUT), {**SQUEEZE, "dry_run": True, "verify": False, "force": True}),
    ),
    ("expand f.safetensors", ("expand", (FILE, None), EXPAND)),
    (
        "expand f.safetensors -o x --dtype float16 --workers 2 --force",
        ("expand", (FILE, Path("x")), {**EXPAND, "dtype": "float16", "workers": 2, "force": True}),
    ),
    ("inspect f.safetensors", ("inspect", (FILE,), {})),
    ("verify f.safetensors", ("verify", (FILE, None), {"progress": None})),
    ("verify f.safetensors m.pt --workers 2", ("verify", (FILE, M), {"progress": None, "workers": 2})),
    ("diff a b", ("diff", (Path("a"), Path("b")), {"progress": None})),
    ("check", ("check", (None,), {"update_baseline": False, "progress": None})),
    (
        "check c.toml --update-baseline --workers 2",
        ("check", (Path("c.toml"),), {"update_baseline": True, "workers": 2, "progress": None}),
    ),
    ("sweep m.pt", ("sweep", (M,), {"progress": None})),
    (
        "sweep m.pt --levels 0.01,0.1 --exclude fc* --effort fast --workers 2",
        ("sweep", (M,), {"progress": None, "levels": (0.01, 0.1), "exclude": ["fc*"], "effort": "fast", "workers": 2}),
    ),
]


@pytest.mark.parametrize(("line", "call"), CALLS, ids=[line for line, _ in CALLS])
def test_arguments_become_one_call(conductor: Conductor, line: str, call: Call) -> None:
    result = run(*line.split())
    assert result.exit_code == 0, result.output
    assert conductor.calls == [call]
    assert result.stderr == ""


def test_calls_fit_the_real_conductor() -> None:
    for _, (name, args, kwargs) in CALLS:
        inspect.signature(getattr(paramcompress, name)).bind(*args, **kwargs)


def test_config_file_and_command_line(conductor: Conductor, tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text('target_size = "3MB"\nworkers = 2\n[layers]\n"fc*" = {rank = 4}\n')
    run("squeeze", "m.pt", "--config", str(path), "--max-rel-error", "0.1", "--set", "fc*:density=0.5")
    layers = {"fc*": {"rank": 4, "density": 0.5}}
    assert conductor.calls[0][2] == {**SQUEEZE, "max_rel_error": 0.1, "workers": 2, "layers": layers}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("squeeze", "Missing argument 'MODEL'"),
        ("squeeze m.pt --effort huge", "huge"),
        ("squeeze m.pt --workers 0", "--workers"),
        ("squeeze m.pt --max-rel-eror 1", "--max-rel-error"),
        ("sqeeze m.pt", "No such command 'sqeeze'. Did you mean"),
        ("squeeze m.pt --target-size 3MB --max-rel-error 1", "error: target_size and max_rel_error are both targets"),
        ("squeeze m.pt --max-rel-error 3", "error: max_rel_error: found 3.0, expected a number from 0 to 1"),
        ("squeeze m.pt --target-size lots", "hint: write a number and one of B, kB"),
        ("squeeze m.pt --set fc:rnk=1", "hint: did you mean 'rank'?"),
        ("squeeze m.pt --config absent.toml", "error: absent.toml: cannot be read"),
        ("squeeze m.pt --report r.pdf", "error: report r.pdf: no report format"),
        ("check --format yaml", "yaml"),
    ],
)
def test_wrong_usage_ends_before_any_work(conductor: Conductor, line: str, said: str) -> None:
    result = run(*line.split())
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stdout == ""
    assert conductor.calls == []


ERRORS: list[tuple[errors.ParamCompressError, int]] = [
    (errors.CheckpointError("m.pt", "is no checkpoint", hint="look again"), 3),
    (errors.FormatError("m.pt", "is damaged", tensor="fc"), 3),
    (errors.UnsupportedFormatError("m.pt", "format", 9, [1]), 3),
    (errors.OutputError("m.pt", "the disk is full"), 3),
    (errors.BudgetError("too small", smallest_bytes=7), 1),
    (errors.VerificationError("m.pt", "fc", "0.1", "0.03"), 4),
    (errors.ConfigError("no such pattern"), 2),
    (errors.CalibrationError("no such input"), 2),
    (errors.PredictionError("no such layer"), 2),
    (errors.SingularKernelError(9, 0.0, 1e-6), 2),
]


@pytest.mark.parametrize("flags", [[], ["--json"]], ids=["text", "json"])
@pytest.mark.parametrize(("error", "code"), ERRORS, ids=[type(error).__name__ for error, _ in ERRORS])
def test_each_error_has_its_words_and_code(
    conductor: Conductor, error: errors.ParamCompressError, code: int, flags: list[str]
) -> None:
    conductor.failure = error
    result = run("squeeze", "m.pt", *flags)
    assert result.exit_code == code
    assert result.stdout == ""
    hint = f"hint: {error.hint}\n" if error.hint else ""
    assert result.stderr == f"error: {error}\n{hint}"


def test_every_error_class_is_public_and_tried_here() -> None:
    family = {
        cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, errors.ParamCompressError)
    }
    assert {cls.__name__ for cls in family} <= set(paramcompress.__all__)
    assert {type(error) for error, _ in ERRORS} == family - {errors.ParamCompressError, errors.EncodeError}


def test_error_text_is_one_line_without_tricks(conductor: Conductor) -> None:
    conductor.failure = errors.CheckpointError("m.pt", "[red]odd[/] " + "x" * 200, tensor="a\x1b[2J\nb")
    assert run("squeeze", "m.pt").stderr == f"error: {conductor.failure}\n"
    conductor.failure = errors.ConfigError("a\x1b[2J\nb")
    assert run("squeeze", "m.pt").stderr == "error: a\\x1b[2J\\nb\n"


def test_debug_shows_where_an_expected_error_came_from(conductor: Conductor, monkeypatch: pytest.MonkeyPatch) -> None:
    conductor.failure = errors.BudgetError("too small")
    monkeypatch.setenv("PARAMCOMPRESS_DEBUG", "1")
    result = run("squeeze", "m.pt")
    assert result.exit_code == 1
    assert result.stderr.startswith("Traceback")
    assert result.stderr.endswith("error: too small\n")


@pytest.mark.parametrize("failure", [KeyError("odd"), EOFError(), errors.EncodeError("fc", (2, 2), "odd")])
def test_a_bug_looks_like_one(conductor: Conductor, failure: Exception) -> None:
    conductor.failure = failure
    result = run("squeeze", "m.pt")
    assert result.exit_code == 70
    assert result.stderr.startswith("Traceback")
    assert "error: " in result.stderr.splitlines()[-1]


def test_interrupted(conductor: Conductor) -> None:
    conductor.failure = KeyboardInterrupt()
    result = run("squeeze", "m.pt")
    assert (result.exit_code, result.stderr) == (130, "error: interrupted\n")


@pytest.mark.parametrize("line", ["squeeze m.pt", "inspect f", "verify f"])
def test_output_as_table_json_and_silence(conductor: Conductor, line: str) -> None:
    table = run(*line.split()).stdout
    assert "fc[red].weight" in table
    assert "128 B -> 100 B, 1.3x smaller" in table
    assert json.loads(run(*line.split(), "--json").stdout) == json.loads(json.dumps(REPORT.to_json()))
    assert run(*line.split(), "-q").stdout == ""


def test_expand_says_where(conductor: Conductor) -> None:
    assert run("expand", "f").stdout == "wrote m.pt\n"
    assert run("expand", "f", "-v").stdout.startswith("wrote m.pt in 0.")
    assert json.loads(run("expand", "f", "--json").stdout) == {"schema": 1, "source": "f", "output": "m.pt"}
    assert run("expand", "f", "-q").stdout == ""


def test_dry_run_says_so(conductor: Conductor) -> None:
    assert "dry run: nothing was written" in run("squeeze", "m.pt", "--dry-run").stdout


def test_report_file(conductor: Conductor, tmp_path: Path) -> None:
    path = tmp_path / "r.md"
    assert run("squeeze", "m.pt", "--report", str(path)).exit_code == 0
    assert "fc[red].weight" in path.read_text()
    again = run("squeeze", "m.pt", "--report", str(path))
    assert again.exit_code == 3
    assert "exists already" in again.stderr
    assert len(conductor.calls) == 1
    assert run("squeeze", "m.pt", "--report", str(path), "--force").exit_code == 0


@pytest.mark.parametrize(
    ("line", "out"), [("report a.sq", "a.squeezed.safetensors"), ("report a.sq -o r.html --sweep c.csv", "r.html")]
)
def test_report_of_a_file(conductor: Conductor, line: str, out: str) -> None:
    result = run(*line.split())
    sweep = Path("c.csv") if "--sweep" in line else None
    assert conductor.calls == [("make", (Path("a.sq"), Path(out)), {"sweep": sweep, "force": False})]
    assert result.stdout == f"wrote {out}\n"
    assert json.loads(run(*line.split(), "--json").stdout) == {"schema": 1, "source": "a.sq", "output": out}


# ---- check


@pytest.fixture
def broken(conductor: Conductor, monkeypatch: pytest.MonkeyPatch) -> Conductor:
    """A check that fails, outside of any continuous integration."""
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY", "GITHUB_WORKSPACE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(RESULTS, "check", VERDICT)
    return conductor


def test_a_check_ends_with_its_verdict(broken: Conductor, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run("check")
    assert (result.exit_code, result.stderr) == (1, "")
    assert "fail: f: 100 B is over max_size 90 B" in result.stdout
    assert run("check", "-q").stdout == "fail: f: 100 B is over max_size 90 B\n"
    monkeypatch.setitem(RESULTS, "check", PASSED)
    assert (run("check").exit_code, run("check", "-q").stdout) == (0, "")


@pytest.mark.parametrize(
    ("form", "begins"),
    [
        ("json", "{"),
        ("markdown", "<!-- paramcompress check -->"),
        ("junit", "<?xml"),
        ("github", "check"),
        ("text", "check"),
    ],
)
def test_forms_of_a_check(broken: Conductor, tmp_path: Path, form: str, begins: str) -> None:
    result = run("check", "--format", form)
    assert result.exit_code == 1
    assert result.stdout.startswith(begins)
    assert ("::error " in result.stdout) is (form == "github")
    out = tmp_path / "out"
    kept = run("check", "--format", form, "-o", str(out))
    assert "fail: f: 100 B is over max_size 90 B" in kept.stdout
    assert out.read_text().startswith("::error " if form == "github" else begins)
    assert run("check", "--format", form, "-o", str(out)).exit_code == 3
    assert run("check", "--json").stdout == run("check", "--format", "json").stdout


def test_under_github_actions(broken: Conductor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Annotations and summary come by themselves; a document on stdout stays one."""
    summary = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    result = run("check")
    error = "::error file=paramcompress.toml,line=1,title=net%3A max_size::f: 100 B is over max_size 90 B%0Asqueeze it"
    assert error in result.stdout.splitlines()
    assert summary.read_text().startswith("<!-- paramcompress check -->\n### :x: Model budget")
    result = run("check", "--format", "json")
    assert json.loads(result.stdout)["exit_code"] == 1
    assert result.stderr == f"{error}\n"
    assert summary.read_text().count("Model budget") == 2
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "no" / "where"))
    result = run("check")
    assert result.exit_code == 3
    assert "the step summary cannot be written" in result.stderr


def test_names_are_no_workflow_commands(broken: Conductor, monkeypatch: pytest.MonkeyPatch) -> None:
    """GitHub's runner obeys every line that begins with ::, so it is told not to listen while names are printed."""
    hostile = Checked("::add-mask::a", "::error::b", 1, (BROKEN,), n_bytes=1, rel_error=0.0)
    monkeypatch.setitem(RESULTS, "check", Verdict("c.toml", (hostile,)))
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    lines = run("check").stdout.splitlines()
    token = lines[0].removeprefix("::stop-commands::")
    assert len(token) == 32
    obeyed = [line for line in lines[lines.index(f"::{token}::") + 1 :] if line.startswith("::")]
    assert any(line.startswith("::add-mask::a") for line in lines)
    assert [line.split("::")[1].split()[0] for line in obeyed] == ["error"]
    assert token not in run("check").stdout


def test_the_annotation_of_a_budget_names_the_file_that_was_found(
    broken: Conductor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_WORKSPACE", str(tmp_path.parent))
    broken.failure = errors.ConfigError("x")
    assert run("check").stderr.splitlines()[0] == "::error::x"
    Path("paramcompress.toml").write_text("[[check")
    place = f"::error file={tmp_path.name}/paramcompress.toml::x"
    assert run("check").stderr.splitlines()[0] == place
    assert run("check", str(tmp_path)).stderr.splitlines()[0] == place


def test_a_budget_that_makes_no_sense_is_annotated_too(broken: Conductor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    broken.failure = errors.ConfigError("c.toml: unknown key 'x'", hint="known keys: y")
    result = run("check", "c.toml")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        "::error file=c.toml::c.toml: unknown key 'x'%0Aknown keys: y",
        "error: c.toml: unknown key 'x'",
        "hint: known keys: y",
    ]


@pytest.mark.parametrize("name", NAMES)
def test_help_has_an_example_that_parses(
    conductor: Conductor, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "net.py").write_text("from torch import nn\nbuild, batches = nn.Identity, list\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    lines = run(name, "--help").stdout.splitlines()
    program, *args = shlex.split(lines[lines.index("  Example:") + 1])
    assert (program, args[0]) == ("paramcompress", name)
    assert run(*args).exit_code == 0
    assert max(map(len, lines)) <= 80


def test_version() -> None:
    assert run("--version").stdout == f"paramcompress {paramcompress.__version__}\n"


def test_public_names() -> None:
    assert dir(paramcompress) == sorted(paramcompress.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'squish'"):
        paramcompress.squish  # noqa: B018


# From here on in processes of their own: what is loaded, and what a terminal or a pipe sees.

FAKE = """
import sys, types
import paramcompress
from paramcompress.records import Calibration, LayerReport, Report
layer = LayerReport("層 [red]x[/]", (4, 8), "float32", "factored", "none", 0, 0.5, 3.0, 128, 12, 0.03, 0.1)
def work(*args, progress=None, **kwargs):
    if progress:
        progress("fc", 64_000_000, 128_000_000)
        import time; time.sleep(0.3)
    return Report("m.pt", "m.sq", "max_rel_error 0.03", 32, 128, 100, (layer,))
fake = types.ModuleType("paramcompress.pipeline")
fake.squeeze = fake.inspect = work
fake.default_output = lambda source: source
sys.modules[fake.__name__] = fake
from paramcompress.cli import main
main()
"""


def start(code: str, *args: str, **kwargs: Any) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": str(Path(paramcompress.__file__).parents[1]), **kwargs.pop("env", {})}
    return subprocess.Popen([sys.executable, "-c", code, *args], env=env, text=True, **kwargs)


@pytest.mark.parametrize("args", [["--help"], ["--version"], ["squeeze", "--help"]])
def test_help_and_version_load_nothing_heavy(args: list[str]) -> None:
    code = (
        "import atexit, sys\n"
        "heavy = {'torch', 'numba', 'numpy', 'rich', 'safetensors', 'pydantic', 'paramcompress.pipeline'}\n"
        "atexit.register(lambda: print('loaded:', heavy & set(sys.modules)))\n"
        "from paramcompress.cli import main\n"
        "main()"
    )
    with start(code, *args, stdout=subprocess.PIPE) as process:
        out, _ = process.communicate()
    assert process.returncode == 0
    assert out.splitlines()[-1] == "loaded: set()"


def test_the_end_of_the_process_searches_no_garbage() -> None:
    """It took up to a second after torch and numba had been loaded."""
    code = (
        "import atexit, gc\n"
        "atexit.register(lambda: print('kept:', gc.get_freeze_count() > 0))\n"
        "from paramcompress.cli import main\n"
        "main()"
    )
    with start(code, "--version", stdout=subprocess.PIPE) as process:
        out, _ = process.communicate()
    assert out.splitlines()[-1] == "kept: True"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_output_that_goes_to_a_full_disk(as_json: list[str]) -> None:
    """One line and exit code 3, and no second complaint when Python flushes at its end."""
    golden = str(Path(__file__).parent / "golden" / "patch.safetensors")
    with Path("/dev/full").open("w") as full:
        code = "from paramcompress.cli import main; main()"
        with start(code, "inspect", golden, *as_json, stdout=full, stderr=subprocess.PIPE) as process:
            _, said = process.communicate()
    assert (process.returncode, said) == (3, "error: standard output: No space left on device\n")


def read_all(descriptor: int) -> str:
    data = io.BytesIO()
    try:
        while block := os.read(descriptor, 65536):
            data.write(block)
    except OSError:  # Linux: the other end of a pseudo-terminal was closed
        pass
    os.close(descriptor)
    return data.getvalue().decode()


@pytest.mark.parametrize(("flags", "shown"), [((), True), (("--json",), True), (("-q",), False)])
def test_progress_bar_on_a_terminal(flags: tuple[str, ...], shown: bool) -> None:
    ours, theirs = pty.openpty()
    env = {"TERM": "xterm", "COLUMNS": "60"}
    with start(FAKE, "squeeze", "m.pt", *flags, stdout=subprocess.DEVNULL, stderr=theirs, env=env) as process:
        os.close(theirs)
        seen = read_all(ours)
    assert process.returncode == 0
    assert ("squeezing" in seen and "64.0/128.0 MB" in seen) is shown
    assert shown or seen == ""


@pytest.mark.parametrize("width", [60, 80])
def test_tables_fit_the_terminal_that_is_there(width: int) -> None:
    """A real one: its size comes from the device, not from a variable."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    env = {"TERM": "xterm", "COLUMNS": "", "LINES": ""}
    with start(FAKE, "inspect", "m.sq", stdout=theirs, stderr=theirs, stdin=theirs, env=env) as process:
        os.close(theirs)
        seen = read_all(ours)
    assert process.returncode == 0
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in seen.replace("\r\n", "\n").splitlines()]
    assert max(map(cell_len, lines)) <= width
    assert ("shape" in lines[0]) is (width == 80)
    assert any("[red]x[/]" in line for line in lines)


@pytest.mark.parametrize(("variables", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)])
def test_colours_of_a_terminal(variables: dict[str, str], coloured: bool) -> None:
    ours, theirs = pty.openpty()
    env = {"TERM": "xterm", "COLUMNS": "80", **variables}
    with start(FAKE, "squeeze", "m.pt", "--effort", "fast", stdout=theirs, stderr=theirs, env=env) as process:
        os.close(theirs)
        seen = read_all(ours)
    assert process.returncode == 0
    assert bool(re.search(r"\x1b\[[0-9;]*3[0-9]", seen)) is coloured


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("paramcompress ", set(NAMES)),
        ("paramcompress check --format ", {"text", "json", "markdown", "github", "junit"}),
    ],
)
def test_shell_completion(words: str, offered: set[str]) -> None:
    """What bash asks for when somebody presses Tab."""
    variables = {
        "_PARAMCOMPRESS_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }
    code = "import sys; sys.argv[0] = 'paramcompress'; from paramcompress.cli import main; main()"
    with start(code, stdout=subprocess.PIPE, env=variables) as process:
        out, _ = process.communicate()
    assert set(out.split()) == offered


def test_piped_output_is_plain() -> None:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with start(FAKE, "squeeze", "m.pt", env={"COLUMNS": "", "PYTHONIOENCODING": "ascii"}, **pipes) as process:
        out, err = process.communicate()
    assert process.returncode == 0
    assert err == ""
    assert "\x1b" not in out
    assert r"\u5c64 [red]x[/]" in out
    assert "-" * 60 in out


@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_a_reader_that_left_is_no_error(flags: tuple[str, ...]) -> None:
    theirs, ours = os.pipe()
    os.close(theirs)
    with start(FAKE, "inspect", "m.sq", *flags, stdout=ours, stderr=subprocess.PIPE) as process:
        os.close(ours)
        _, err = process.communicate()
    assert (process.returncode, err) == (141, "")
