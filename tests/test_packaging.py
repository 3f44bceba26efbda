"""What is built holds what it should and runs where nothing else of this checkout is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OFFLINE = ("hatchling", "Connection", "Could not find a version", "No matching distribution", "resolve")


def pip(*args: str | Path, python: str | Path = sys.executable, **variables: str) -> subprocess.CompletedProcess[str]:
    """This environment's pip, at work for `python`: that one needs none of its own, which would take five seconds."""
    command = [sys.executable, "-m", "pip", "--python", str(python), *map(str, args)]
    command += ["--disable-pip-version-check", "--quiet"]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env={**os.environ, **variables})


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Wheel and sdist, built from a copy of the checkout as it would be released; skipped where the backend is not
    to be had."""
    folder = tmp_path_factory.mktemp("built")
    leave = shutil.ignore_patterns(".git", "__pycache__", ".*_cache", "*.squeezed.safetensors", ".venv", ".hypothesis")
    shutil.copytree(ROOT, folder / "checkout", ignore=leave)
    backend = pip("install", "--target", folder / "backend", "hatchling>=1.27")
    if backend.returncode:
        assert any(word in backend.stderr for word in OFFLINE), backend.stderr
        pytest.skip("the build backend cannot be had here")
    script = "import sys, hatchling.build as build; print(getattr(build, 'build_' + sys.argv[1])(sys.argv[2]))"
    found = {}
    for kind in ("sdist", "wheel"):
        done = subprocess.run(
            [sys.executable, "-c", script, kind, str(folder)],
            cwd=folder / "checkout",
            env={**os.environ, "PYTHONPATH": str(folder / "backend")},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        found[kind] = folder / done.stdout.split()[-1]
    return found


def sources() -> set[str]:
    """Files of the package, by their path in the checkout."""
    return {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "paramcompress").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_wheel_holds_the_package_and_nothing_else(built: dict[str, Path]) -> None:
    with zipfile.ZipFile(built["wheel"]) as wheel:
        names = set(wheel.namelist())
    about = {name for name in names if ".dist-info/" in name}
    assert names - about == sources()
    kinds = {name.partition(".dist-info/")[2] for name in about}
    assert kinds == {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"}
    assert "-py3-none-any" in built["wheel"].name


def test_the_sdist_holds_what_tests_and_documents_need(built: dict[str, Path]) -> None:
    with tarfile.open(built["sdist"]) as sdist:
        names = {member.name.partition("/")[2] for member in sdist.getmembers()}
        assert all(member.isfile() for member in sdist.getmembers())
    folders = ("tests", "docs", "benchmarks", "sample_models")
    wanted = {path.relative_to(ROOT).as_posix() for folder in folders for path in (ROOT / folder).rglob("*.*")}
    wanted = {
        name for name in wanted if "__pycache__" not in name and "_cache/" not in name and ".squeezed." not in name
    }
    assert names >= sources() | wanted | {
        "pyproject.toml",
        "README.md",
        "CHANGELOG.md",
        "LICENSE",
        "constraints.txt",
        ".ci/run",
    }
    assert not {name for name in names if name.endswith((".pyc", ".nbi", ".nbc"))}


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_what_was_built_installs_and_runs_alone(kind: str, built: dict[str, Path], tmp_path: Path) -> None:
    """In an environment of its own, the dependencies lent from this one, versions as constraints.txt has them. With
    PARAMCOMPRESS_TEST_INSTALL=1 everything is fetched as a user's pip would."""
    whole = os.environ.get("PARAMCOMPRESS_TEST_INSTALL") == "1"
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    constrained = {"PIP_CONSTRAINT": str(ROOT / "constraints.txt")}
    options = [] if whole else ["--no-deps", *(["--no-build-isolation"] if kind == "sdist" else [])]
    variables = dict(constrained)
    if kind == "sdist" and not whole:
        variables["PYTHONPATH"] = str(built["wheel"].parent / "backend")
    done = pip("install", *options, built[kind], python=python, **variables)
    assert done.returncode == 0, done.stderr
    if not whole:
        site = subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, text=True
        )
        # a path beside the own packages, whose own .pth files are not read: the checkout does not come in by it
        Path(site.stdout.strip(), "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    command = tmp_path / "env" / "bin" / "paramcompress"
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    env["NUMBA_DISABLE_JIT"] = "1"  # loops of a file of 500 bytes are not worth compiling
    golden = str(ROOT / "tests" / "golden" / "patch.safetensors")
    for args in (["expand", golden, "-o", "model.pt"], ["squeeze", "model.pt", "--effort", "fast"]):
        done = subprocess.run([command, *args], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600)
        assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "model.squeezed.safetensors").stat().st_size < (tmp_path / "model.pt").stat().st_size
    where = [python, "-c", "import paramcompress, pathlib; print(pathlib.Path(paramcompress.__file__).parent)"]
    found = subprocess.run(where, cwd=tmp_path, env=env, capture_output=True, text=True).stdout.strip()
    assert found.startswith(str(tmp_path / "env"))
    names = {path.relative_to(Path(found).parent).as_posix() for path in Path(found).rglob("*") if path.is_file()}
    assert {name for name in names if "__pycache__" not in name} == sources()
