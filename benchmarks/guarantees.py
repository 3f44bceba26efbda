"""The figures of docs/guarantees.md: damage found, hostile files survived, kills without harm, bounds kept, bits equal.

    python benchmarks/guarantees.py                              # everything: about 70 minutes on one core
    python benchmarks/guarantees.py --mutations 20000 --kills 20 --tensors 500    # the same in two minutes
    python benchmarks/guarantees.py --only mutations --resume    # go on where an earlier run was stopped

Mutated files are read in pieces, each in a process of its own: a crash of a compiled loop ends that process and is
counted with the number of the file, which makes the file again. A piece ends with a trace where one file takes more
processor time than SLOWEST_S, may not map more than ROOM_BYTES beyond what reading the honest files took, and counts
a violation where its resident memory grows by more than the allowance of its kind.

Writes benchmarks/results/guarantees.json after each part and piece; fails if any promise is broken.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import faulthandler
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from origin import origin

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests"
RESULT = Path(__file__).parent / "results" / "guarantees.json"
sys.path.insert(0, str(TESTS))

PARTS = ("flips", "mutations", "stats", "kills", "tensors", "bits")
SHARES = {"squeezed": 0.5, "safetensors": 0.35, "sharded": 0.1, "torch": 0.05}
"""Of the mutated files; torch itself takes 5 ms for one."""
PIECE = 50_000
SLOWEST_S, WAITING_S = 30, 600
"""Processor time that a file may take, and time: other work on the machine may take the processor."""
ROOM_BYTES = 4 << 30
MIB = 1 << 20
ALLOWED_BYTES = {
    "squeezed": 16 * MIB,
    "safetensors": 16 * MIB,
    "sharded": 16 * MIB,
    "torch": 192 * MIB,
    "stats": 16 * MIB,
}
"""What reading may add to resident memory: what the honest files need twice, which is a few kilobytes, and what the
allocator keeps; torch files may claim 64 MiB in views whatever their size."""
TENSORS_AT_ONCE = 20
SAMPLE = ROOT / "sample_models" / "conv_digits.pt"


# ------------------------------------------------------------------------------------------- flips


def flips() -> dict[str, Any]:
    """Turn every bit of every golden file, one at a time, and verify."""
    from helpers import bit_flips, overwrite
    from reading import outcome

    import paramcompress

    found = {}
    with scratch() as folder:
        for path in sorted((TESTS / "golden").glob("*.safetensors")):
            damaged = folder / path.name
            shutil.copy(path, damaged)
            assert outcome(lambda damaged=damaged: paramcompress.verify(damaged)) == "", "the honest file is refused"
            missed = 0
            for _, content in bit_flips(path.read_bytes()):
                overwrite(damaged, content)
                missed += not outcome(lambda damaged=damaged: paramcompress.verify(damaged))
            found[path.stem] = {"bits": 8 * path.stat().st_size, "missed": missed}
    return {
        "files": found,
        "bits": sum(one["bits"] for one in found.values()),
        "violations": sum(one["missed"] for one in found.values()),
    }


# ------------------------------------------------------------------------------------------- mutations


def mutations(n_files: int, known: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Read that many mutated files, piece by piece; yields all pieces so far, `known` ones among them."""
    pieces = [one for one in known if not one["violations"]]
    done = {(one["kind"], one["first"], one["n"]) for one in pieces}
    for kind, share in SHARES.items():
        wanted = round(n_files * share)
        for first in range(0, wanted, PIECE):
            n = min(PIECE, wanted - first)
            if (kind, first, n) not in done:
                pieces.append(run_piece(kind, first, n))
                yield pieces


def run_piece(kind: str, first: int, n: int) -> dict[str, Any]:
    """`piece` in a process of its own; what killed it counts as a violation, at the file it was reading."""
    with scratch() as folder:
        at = folder / "at"
        command = [sys.executable, __file__, "--piece", kind, str(first), str(n), str(folder)]
        started = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True)
        lines = done.stdout.splitlines()
        if done.returncode == 0 and lines:
            return {**json.loads(lines[-1]), "seconds": round(time.monotonic() - started, 1)}
        number = int(at.read_text() or first) if at.exists() else first
        how = f"ended with {done.returncode} at file {number}: {done.stderr[:1500]}"
        return {"kind": kind, "first": first, "n": n, "outcomes": {}, "violations": [how]}


def piece(kind: str, first: int, n: int, folder: Path) -> dict[str, Any]:
    """Read mutated files number `first` and on; names of the package's errors, and everything that was not one."""
    import numpy as np
    import reading

    warnings.simplefilter("ignore")
    seeds = reading.seeds(folder)[kind]
    for path, _, read in seeds:  # everything that is loaded or compiled later is loaded and compiled now
        for number in range(20):
            with contextlib.suppress(Exception):
                path.write_bytes(seeds[number % len(seeds)][1](np.random.default_rng((first, number))))
                read(path)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + ROOM_BYTES, resource.RLIM_INFINITY))
    outcomes: collections.Counter[str] = collections.Counter()
    wrong = []
    least_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    at = os.open(folder / "at", os.O_WRONLY | os.O_CREAT)
    faulthandler.register(signal.SIGVTALRM, chain=True)  # shows where it is, and then ends the process
    slowest = 0.0
    for number in range(first, first + n):
        path, mutate, read = seeds[number % len(seeds)]
        path.write_bytes(mutate(np.random.default_rng((1, number))))
        os.pwrite(at, f"{number:<12}".encode(), 0)
        signal.setitimer(signal.ITIMER_VIRTUAL, SLOWEST_S)
        faulthandler.dump_traceback_later(WAITING_S, exit=True)
        started = time.process_time()
        try:
            outcomes[reading.outcome(lambda read=read, path=path: read(path)) or "read"] += 1
        except Exception as error:
            wrong.append(f"file {number}: {error!r}"[:300])
        slowest = max(slowest, time.process_time() - started)
        grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - least_kib
        if 1024 * grown_kib > ALLOWED_BYTES[kind]:
            wrong.append(f"file {number}: memory grew by {grown_kib} KiB")
            least_kib += grown_kib
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    faulthandler.cancel_dump_traceback_later()
    return {
        "kind": kind,
        "first": first,
        "n": n,
        "outcomes": dict(outcomes),
        "violations": wrong,
        "slowest_s": round(slowest, 2),
        "grown_kib": grown_kib,
    }


def summed(pieces: list[dict[str, Any]]) -> dict[str, Any]:
    """All pieces together, by kind of file."""
    kinds: dict[str, Any] = {}
    for one in pieces:
        kind = kinds.setdefault(
            one["kind"], {"files": 0, "outcomes": collections.Counter(), "seconds": 0.0, "slowest_s": 0}
        )
        kind["files"] += one["n"]
        kind["outcomes"].update(one["outcomes"])
        kind["seconds"] = round(kind["seconds"] + one.get("seconds", 0), 1)
        kind["slowest_s"] = max(kind["slowest_s"], one.get("slowest_s", 0))
    wrong = [f"{one['kind']}: {what}" for one in pieces for what in one["violations"]]
    return {"files": sum(one["n"] for one in pieces), "kinds": kinds, "violations": len(wrong), "which": wrong[:20]}


# ------------------------------------------------------------------------------------------- kills


def kills(n_kills: int) -> dict[str, Any]:
    """Kill the installed command at random moments of its run; the file is the old one or the new one, and a second run
    leaves no litter."""
    command = shutil.which("paramcompress", path=str(Path(sys.executable).parent))
    assert command is not None, "needs the package to be installed"
    chance = random.Random(1)
    wrong, where = [], collections.Counter()
    with scratch() as folder:
        shutil.copy(SAMPLE, folder / "model.pt")
        jobs = {}
        for name, args in {
            "small.safetensors": [
                "squeeze",
                "model.pt",
                "-q",
                "--effort",
                "fast",
                "-o",
                "small.safetensors",
                "--force",
            ],
            "again.pt": ["expand", "small.safetensors", "-q", "-o", "again.pt", "--force"],
        }.items():
            started = time.monotonic()
            for _ in range(2):  # the second knows how long it takes
                started = time.monotonic()
                subprocess.run([command, *args], cwd=folder, check=True)
            jobs[name] = ([command, *args], time.monotonic() - started, (folder / name).read_bytes())
        old = b"precious"
        for number in range(n_kills):
            name = "again.pt" if number % 3 == 2 else "small.safetensors"
            args, seconds, new = jobs[name]
            (folder / "small.safetensors").write_bytes(jobs["small.safetensors"][2])
            (folder / name).write_bytes(old)
            process = subprocess.Popen(args, cwd=folder, stderr=subprocess.DEVNULL)
            # half of the moments in the last third, in which files are written: before, it imports
            time.sleep(seconds * (chance.uniform(0, 1.1) if number % 2 else chance.uniform(0.66, 1.05)))
            process.kill()
            process.wait()
            content = (folder / name).read_bytes() if (folder / name).exists() else b"gone"
            where["old" if content == old else "new" if content == new else "other"] += 1
            if content not in (old, new):
                wrong.append(f"kill {number}: {name} has {len(content)} bytes")
            litter = {one.name for one in folder.iterdir()} - {"model.pt", *jobs}
            where["litter"] += len(litter)
            if litter:
                subprocess.run(args, cwd=folder, check=True)
                left = {one.name for one in folder.iterdir()} - {"model.pt", *jobs}
                if left:
                    wrong.append(f"kill {number}: left {sorted(left)} after a second run")
                    for one in left:
                        (folder / one).unlink()
    return {"kills": n_kills, "found": dict(where), "violations": len(wrong), "which": wrong[:20]}


# ------------------------------------------------------------------------------------------- tensors, bits


def tensors(n_tensors: int) -> dict[str, Any]:
    """Squeeze and expand generated tensors: tests/generated.py says what has to hold."""
    from generated import violations

    warnings.simplefilter("ignore")
    wrong = []
    with scratch() as folder:
        for first in range(0, n_tensors, TENSORS_AT_ONCE):
            wrong += violations(range(first, min(first + TENSORS_AT_ONCE, n_tensors)), folder)
    return {"tensors": n_tensors, "violations": len(wrong), "which": wrong[:20]}


def bits() -> dict[str, Any]:
    """Expand the golden files and a sample model under every setting that this machine can play."""
    from bits import ENVIRONMENTS

    import paramcompress

    with scratch() as folder:
        paramcompress.squeeze(SAMPLE, folder / "sample.safetensors")
        files = [*map(str, sorted((TESTS / "golden").glob("*.safetensors"))), str(folder / "sample.safetensors")]
        found = {}
        for name, variables in ENVIRONMENTS.items():
            args = [sys.executable, str(TESTS / "bits.py"), "2" if "4" in name else "1", *files]
            env = {**os.environ, **variables}
            found[name] = subprocess.run(args, env=env, capture_output=True, text=True, check=True).stdout.splitlines()
        expected = found["1 threads"]
    wrong = [name for name, hashes in found.items() if hashes != expected]
    return {
        "files": len(expected),
        "settings": list(found),
        "sha256": hashlib.sha256("".join(expected[:-1]).encode()).hexdigest(),
        "violations": len(wrong),
        "which": wrong,
    }


# ------------------------------------------------------------------------------------------- the record


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder in memory where there is one."""
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shm if os.access(shm, os.W_OK) else None) as folder:
        yield Path(folder)


def about() -> dict[str, Any]:
    """Where and with what this runs."""
    return {"command": "python benchmarks/guarantees.py", **origin()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mutations", type=int, default=1_000_000, metavar="N")
    parser.add_argument("--stats", type=int, default=5_000, metavar="N", help="mutated files of second moments")
    parser.add_argument("--kills", type=int, default=200, metavar="N")
    parser.add_argument("--tensors", type=int, default=20_000, metavar="N")
    parser.add_argument("--only", choices=PARTS, action="append", help="this part; repeatable")
    parser.add_argument("--resume", action="store_true", help="keep the pieces of mutated files that the result has")
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--piece", nargs=4, metavar=("KIND", "FIRST", "N", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.piece:
        kind, first, n, folder = options.piece
        print(json.dumps(piece(kind, int(first), int(n), Path(folder))))
        return 0
    record: dict[str, Any] = json.loads(options.result.read_text()) if options.result.exists() else {}
    parts = record.setdefault("results", {})
    for name in options.only or PARTS:
        started = time.monotonic()
        if name == "mutations":
            known = record.get("pieces", []) if options.resume else []
            for pieces in mutations(options.mutations, known):
                record["pieces"] = pieces
                parts[name] = summed(pieces)
                save(options.result, record)
            parts[name]["seconds"] = round(sum(one.get("seconds", 0) for one in record["pieces"]))
        else:
            work = {
                "flips": flips,
                "bits": bits,
                "stats": lambda: summed([run_piece("stats", 0, options.stats)]),
                "kills": lambda: kills(options.kills),
                "tensors": lambda: tensors(options.tensors),
            }
            parts[name] = work[name]()
            parts[name]["seconds"] = round(time.monotonic() - started)
        parts[name] |= about()
        save(options.result, record)
        print(f"{name}: {json.dumps({k: v for k, v in parts[name].items() if k not in about()})}", flush=True)
    return int(any(part["violations"] for part in parts.values()))


def save(path: Path, record: dict[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
