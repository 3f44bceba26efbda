"""Bytes, error and speed of this tool, of NNCodec and of what people do today, on real checkpoints, in one file.

    python benchmarks/compare.py CHECKPOINT… --bench BENCH --peer-python PEER/bin/python    # measures what is missing
    python benchmarks/compare.py --table                                                    # Markdown of what there is
    python benchmarks/compare.py --plot ratios.png

BENCH holds prepare.py, which turns a checkpoint into float32 tensors, and nncodec_peer.py, which runs NNCodec 2.1.3
under --peer-python (an environment of its own). Errors are relative *squared* errors: 0.01 is a max_rel_error of 0.1.

At each error the peer runs first; the error it left in every single tensor becomes the limit of that tensor here, with
one part in a million of slack for its float32 arithmetic. The limits are kept in the results, so that this tool can be
measured again (--again) without the peer. Without peer and limits the limit is the error itself in every matrix, and
vectors are exact.

Every timed run checks what comes back. Times are medians of three runs: for this tool from file to file, its
verification included, in memory for all others. Interrupted runs go on where they stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from baselines import Codec, Weights, cast, low_rank_sparse, rounding, zipnn
from origin import commit, cpu_model
from safetensors.torch import load_file

import paramcompress

OURS, PEER, SPARSE = "paramcompress", "NNCodec", "fp16 low rank + sparse"
SLACK = 1e-6
"""Of the relative error, for the peer's float32 arithmetic."""
RUNS = 3
SPEED_BYTES = 2_000_000
"""From this size on speeds count, and two workers are tried."""
SEED = 0
RESULT = Path(__file__).parent / "results" / "compare.json"
Row = dict[str, Any]


# ---- measuring


def medians(run: Callable[[], tuple[float, float]]) -> tuple[float, float]:
    """Seconds to encode and to decode."""
    times = [run() for _ in range(RUNS)]
    encode_s, decode_s = (statistics.median(one[at] for one in times) for at in (0, 1))
    return round(encode_s, 5), round(decode_s, 5)


def squared(weight: torch.Tensor) -> float:
    return float(weight.double().square().sum())


def errors_of(weights: Weights, back: Weights) -> dict[str, float]:
    """Squared error / squared norm of each tensor."""
    return {
        name: squared(back[name].double() - weight.double()) / (squared(weight) or 1.0)
        for name, weight in weights.items()
    }


def error_fields(weights: Weights, errors: dict[str, float]) -> Row:
    """Errors as they stand in a result: of all weights together, and of the matrices."""
    norms = {name: squared(weight) for name, weight in weights.items()}
    matrices = [errors[name] for name, weight in weights.items() if weight.ndim >= 2] or [0.0]
    values = {
        "rel_squared_error": sum(errors[name] * norms[name] for name in errors) / (sum(norms.values()) or 1.0),
        "median_matrix_error": statistics.median(matrices),
        "worst_matrix_error": max(matrices),
    }
    return {name: float(f"{value:.6g}") if math.isfinite(value) else None for name, value in values.items()}


def measure_baseline(codec: Codec, weights: Weights, *, timed: bool = True) -> Row:
    first = codec.encode(weights)

    def run() -> tuple[float, float]:
        start = time.perf_counter()
        data = codec.encode(weights)
        middle = time.perf_counter()
        back = codec.decode(data, weights)
        end = time.perf_counter()
        check_baseline(codec, weights, back, data == first)
        return middle - start, end - middle

    times: tuple[float | None, float | None] = medians(run) if timed else (None, None)
    back = codec.decode(first, weights)
    check_baseline(codec, weights, back, True)
    row = {"bytes": len(first), **error_fields(weights, errors_of(weights, back))}
    return row | {"encode_s": times[0], "decode_s": times[1]}


def check_baseline(codec: Codec, weights: Weights, back: Weights, same_bytes: bool) -> None:
    """The round trip: all tensors in their shapes; exact where it is lossless, and otherwise the same bytes again."""
    assert same_bytes, f"{codec.name}: other bytes the second time"
    assert {k: w.shape for k, w in back.items()} == {k: w.shape for k, w in weights.items()}, codec.name
    if codec.lossless:
        assert all(torch.equal(back[name].view(torch.int32), weights[name].view(torch.int32)) for name in weights)


def measure_peer(args: argparse.Namespace, plain: Path, error: float, weights: Weights) -> Row:
    """The peer checks nothing itself: the errors it reports were measured on what it decoded."""
    runs: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "peer.json"
        script = args.bench / "nncodec_peer.py"
        for _ in range(RUNS):
            command = [args.peer_python, script, plain, str(error), out]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            runs.append(json.loads(out.read_text()))
    found = runs[0]
    errors = found["error"]
    assert errors.keys() == weights.keys()
    return {
        "bytes": found["bytes"],
        **error_fields(weights, errors),
        **{key: round(statistics.median(run[key] for run in runs), 5) for key in ("encode_s", "decode_s")},
        # rounding moves a limit by less than a tenth of the slack
        "limits": [float(f"{math.sqrt(errors[name]) * (1 + SLACK):.8g}") for name in sorted(weights)],
    }


def measure_ours(plain: Path, weights: Weights, limits: dict[str, float], effort: str, workers: int) -> Row:
    options: Row = {
        "layers": {name: {"max_rel_error": limit} for name, limit in limits.items()},
        "effort": effort,
        "workers": workers,
        "seed": SEED,
    }
    worst = 0.0
    errors: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "ours.safetensors"

        def run() -> tuple[float, float]:
            nonlocal worst, errors
            start = time.perf_counter()
            paramcompress.squeeze(plain, out, force=True, **options)
            middle = time.perf_counter()
            back = paramcompress.load_file(out, workers=workers)
            end = time.perf_counter()
            errors = errors_of(weights, back)
            for name, error in errors.items():
                over = math.sqrt(error) / limits[name] if limits[name] else math.inf if error else 0.0
                worst = max(worst, over)
            assert worst <= 1, f"a tensor has {worst} times the error it may have"
            return middle - start, end - middle

        encode_s, decode_s = medians(run)
        row = {"bytes": out.stat().st_size, **error_fields(weights, errors), "worst_of_limit": round(worst, 7)}
    return row | {"encode_s": encode_s, "decode_s": decode_s}


def bytes_by_layer(plain: Path, limits: dict[str, float], effort: str) -> tuple[int, dict[str, int]]:
    """Of the file and of each tensor in it."""
    layers = {name: {"max_rel_error": limit} for name, limit in limits.items()}
    report = paramcompress.squeeze(plain, plain.with_name("dry"), layers=layers, effort=effort, seed=SEED, dry_run=True)
    return report.bytes_after, {layer.name: layer.bytes_after for layer in report.layers}


# ---- the record


class Record:
    """The results in their file, a row a line, written after each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.head: Row = {"name": "compare", "notes": []}
        self.rows: list[Row] = []
        if path.exists():
            self.head = json.loads(path.read_text(encoding="utf-8"))
            self.rows = self.head.pop("results")

    def find(self, **wanted: Any) -> Row | None:
        return next((row for row in self.rows if all(row.get(key) == value for key, value in wanted.items())), None)

    def drop(self, **wanted: Any) -> None:
        self.rows = [row for row in self.rows if any(row.get(key) != value for key, value in wanted.items())]

    def add(self, key: Row, input_bytes: int, found: Row) -> Row:
        row = {**key, "input_bytes": input_bytes, **found, "commit": commit()}
        self.drop(**key)
        self.rows.append(row)
        self.rows.sort(key=lambda one: (one["checkpoint"], one["target"] or 0.0, one["codec"] == OURS, one["codec"]))
        self.save()
        shown = " ".join(f"{name} {row[name]}" for name in ("encode_s", "decode_s") if row[name] is not None)
        print(*(str(value) for value in key.values()), f"{row['bytes']:,} of {input_bytes:,} bytes", shown, flush=True)
        return row

    def note(self, text: str) -> None:
        print("note:", text, flush=True)
        if text not in self.head["notes"]:
            self.head["notes"].append(text)

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = ",\n".join(f"  {json.dumps(row, allow_nan=False)}" for row in self.rows)
        head = json.dumps(self.head, indent=1, allow_nan=False, ensure_ascii=False).removesuffix("\n}")
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(f'{head},\n "results": [\n{lines}\n ]\n}}\n', encoding="utf-8")
        temporary.replace(self.path)


def head_of(args: argparse.Namespace, record: Record) -> Row:
    """What there is to say of the run and of those that it goes on with."""
    packages = ["paramcompress", "torch", "numpy", "numba", "zstandard"]
    versions = {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}}
    if zipnn() is not None:
        versions["zipnn"] = metadata.version("zipnn")
    if args.peer_python:
        code = "from importlib.metadata import version; print(version('nncodec'))"
        done = subprocess.run([args.peer_python, "-c", code], capture_output=True, text=True, check=True)
        versions["nncodec"] = done.stdout.strip()
    versions = record.head.get("versions", {}) | versions
    errors = ",".join(map(str, sorted({*args.errors, *(row["target"] for row in record.rows if row["target"])})))
    efforts = ",".join(efforts_in([*record.rows, *({"setting": effort} for effort in args.efforts)]))
    peer = " --peer-python PEER/bin/python" if "nncodec" in versions else ""
    return {
        "command": f"python benchmarks/compare.py CHECKPOINT… --bench BENCH{peer}"
        f" --errors {errors} --efforts {efforts}",
        "commit": commit(),
        "versions": versions,
        "machine": {"cpu": cpu_model(), "cores": os.cpu_count(), "system": platform.system()},
        "threads": 1,
        "seed": SEED,
    }


def compare(args: argparse.Namespace) -> None:
    record = Record(args.out)
    record.head |= head_of(args, record)
    names = [checkpoint.name for checkpoint in args.checkpoints]
    if args.again:
        settings = {*args.efforts, *(f"bytes of {effort}" for effort in args.efforts)}
        record.rows = [
            row
            for row in record.rows
            if row["checkpoint"] not in names or row["setting"] not in settings or row["codec"] == PEER
        ]
    record.head["notes"] = [note for note in record.head["notes"] if not any(name in note for name in names)]
    warm = {"w": torch.randn(300, 300) + torch.randn(300, 1) @ torch.randn(1, 300)}
    with tempfile.TemporaryDirectory() as folder:
        for effort in args.efforts:
            paramcompress.squeeze(warm, Path(folder) / f"{effort}.safetensors", effort=effort)
            paramcompress.load_file(Path(folder) / f"{effort}.safetensors")
        for checkpoint in args.checkpoints:
            plain = Path(folder) / "plain.safetensors"
            command = [sys.executable, args.bench / "prepare.py", checkpoint, plain]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            compare_one(args, record, checkpoint.name, plain)
    record.save()


def compare_one(args: argparse.Namespace, record: Record, name: str, plain: Path) -> None:
    """All rows of one checkpoint that are not there yet."""
    weights = load_file(plain)
    input_bytes = sum(weight.numel() * weight.element_size() for weight in weights.values())

    def measured(codec: str, setting: str, target: float | None, run: Callable[[], Row], **more: Any) -> None:
        key = {"checkpoint": name, "codec": codec, "setting": setting, "target": target, "workers": 1} | more
        if record.find(**key) is None:
            record.add(key, input_bytes, run())

    codecs = [cast(torch.float16), cast(torch.bfloat16), rounding(8), rounding(4), zipnn()]
    for codec in codecs:
        if codec is None:
            if record.find(checkpoint=name, codec="ZipNN") is None:
                record.note(f"ZipNN is not installed, so not run on {name}")
        else:
            measured(codec.name, codec.setting, None, lambda codec=codec: measure_baseline(codec, weights))
    for error in args.errors:
        if args.peer_python:
            try:
                measured(PEER, "default", error, lambda error=error: measure_peer(args, plain, error, weights))
            except subprocess.CalledProcessError as failure:
                record.note(f"{PEER} fails on {name} at {error}: exit code {failure.returncode}")
        peer = record.find(checkpoint=name, codec=PEER, target=error)
        if peer is None:
            record.note(f"{PEER} was not run on {name} at {error}: limits are that error")
            limits = {key: math.sqrt(error) if weight.ndim >= 2 else 0.0 for key, weight in weights.items()}
        else:
            limits = dict(zip(sorted(weights), peer["limits"], strict=True))
        source = "target" if peer is None else PEER
        if peer is not None:
            record.drop(checkpoint=name, target=error, limits_from="target")
        for effort in args.efforts:
            for workers in (1, 2) if input_bytes > SPEED_BYTES else (1,):
                measured(
                    OURS,
                    effort,
                    error,
                    lambda limits=limits, effort=effort, workers=workers: measure_ours(
                        plain, weights, limits, effort, workers
                    ),
                    workers=workers,
                    limits_from=source,
                )
        effort = "default" if "default" in args.efforts else args.efforts[0]

        def sparse(limits: dict[str, float] = limits, effort: str = effort) -> Row:
            n_bytes, shares = bytes_by_layer(plain, limits, effort)
            return measure_baseline(low_rank_sparse(n_bytes, shares, ""), weights, timed=False)

        measured(SPARSE, f"bytes of {effort}", error, sparse, limits_from=source)


# ---- showing


def mean(values: Iterable[float]) -> float:
    """Geometric mean; 0 if any is."""
    found = list(values)
    return math.exp(sum(map(math.log, found)) / len(found)) if all(found) else 0.0


def cases(rows: Sequence[Row], effort: str, workers: int = 1) -> list[tuple[Row, Row]]:
    """Ours and the peer's for each checkpoint and error that has both."""
    peers = {(row["checkpoint"], row["target"]): row for row in rows if row["codec"] == PEER}
    return [
        (row, peers[row["checkpoint"], row["target"]])
        for row in rows
        if row["codec"] == OURS and (row["setting"], row["workers"], row["limits_from"]) == (effort, workers, PEER)
    ]


def ratio(pair: tuple[Row, Row]) -> float:
    return float(pair[0]["bytes"] / pair[1]["bytes"])


def shown(value: float) -> str:
    return f"**{value:.3f}, loses**" if value > 1 else f"{value:.3f}"


def efforts_in(rows: Sequence[Row]) -> list[str]:
    return [effort for effort in ("fast", "default", "max") if any(row["setting"] == effort for row in rows)]


def line(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def by_checkpoint(rows: Sequence[Row], effort: str) -> list[str]:
    """Bytes on each checkpoint, ours beside the peer's."""
    pairs = {(ours["checkpoint"], ours["target"]): (ours, peer) for ours, peer in cases(rows, effort)}
    targets = sorted({target for _, target in pairs})
    names = sorted({name for name, _ in pairs}, key=str.lower)
    heads = [f"{words} at {target:g}" for target in targets for words in (PEER, f"ours, {effort}", f"ours / {PEER}")]
    table = [line("checkpoint", "float32 bytes", *heads), line(":--", "--:", *["--:"] * len(heads))]
    for name in names:
        cells: list[str] = []
        for target in targets:
            pair = pairs.get((name, target))
            cells += [f"{pair[1]['bytes']:,}", f"{pair[0]['bytes']:,}", shown(ratio(pair))] if pair else ["-"] * 3
        size = next(ours["input_bytes"] for (one, _), (ours, _) in pairs.items() if one == name)
        table.append(line(name, f"{size:,}", *cells))
    means = [mean(ratio(pair) for (_, at), pair in pairs.items() if at == target) for target in targets]
    return [*table, line("geometric mean", "", *(cell for value in means for cell in ("", "", shown(value))))]


def by_effort(rows: Sequence[Row]) -> list[str]:
    """Bytes and speed of each effort over all cases."""
    columns = ["effort", "workers", f"bytes / {PEER}, geometric mean", "worst case", "cases lost"]
    columns += ["worst error / limit", f"encoding, times {PEER}'s speed", "decoding"]
    table = [line(*columns), line(":--", *["--:"] * (len(columns) - 1))]
    for effort in efforts_in(rows):
        for workers in (1, 2):
            pairs = cases(rows, effort, workers)
            if not pairs:
                continue
            ratios = [ratio(pair) for pair in pairs]
            large = [pair for pair in pairs if pair[0]["input_bytes"] > SPEED_BYTES]
            speeds = [
                f"{mean(peer[key] / ours[key] for ours, peer in large):.1f}x" if large else "-"
                for key in ("encode_s", "decode_s")
            ]
            n_lost = sum(one > 1 for one in ratios)
            # two workers write the same bytes, on the large checkpoints only
            bytes_ = (
                [shown(mean(ratios)), shown(max(ratios)), f"{n_lost} of {len(ratios)}"]
                if workers == 1
                else ["same"] * 3
            )
            worst = max(ours["worst_of_limit"] for ours, _ in pairs)
            table.append(line(effort, workers, *bytes_, f"{worst:.6f}", *speeds))
    return table


def by_codec(rows: Sequence[Row]) -> list[str]:
    """How small and how wrong everything is, over the checkpoints."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row["workers"] == 1:
            target = "" if row["target"] is None else f", at {row['target']:g}"
            groups.setdefault((row["codec"], row["setting"] + target), []).append(row)
    columns = ["codec", "setting", "times smaller than float32", "relative squared error of the median matrix"]
    table = [line(*columns), line(":--", ":--", "--:", "--:")]

    def smaller(group: list[Row]) -> float:
        return mean(row["input_bytes"] / row["bytes"] for row in group)

    for (codec, setting), group in sorted(groups.items(), key=lambda item: smaller(item[1])):
        errors = [row["median_matrix_error"] for row in group]
        error = "not finite" if None in errors else f"{mean(errors):.2g}"
        table.append(line(codec, setting, f"{smaller(group):.2f}x", error))
    return table


def table(path: Path) -> str:
    """Markdown of a record; geometric means throughout."""
    record = Record(path)
    rows, head = record.rows, record.head
    found = efforts_in(rows)
    parts = []
    if any(cases(rows, effort) for effort in found):
        parts = [by_checkpoint(rows, "default" if "default" in found else found[0]), by_effort(rows)]
    parts.append(by_codec(rows))
    versions = ", ".join(f"{name} {version}" for name, version in head["versions"].items())
    commits = sorted({row["commit"] for row in rows if row["codec"] == OURS})
    end = [
        f"Speeds over checkpoints of more than {SPEED_BYTES // 10**6} MB. `{head['command']}`"
        f" on {head['machine']['cpu']}, commit {', '.join(commits)}; {versions}.",
        *(f"Note: {note}." for note in head["notes"]),
    ]
    return "\n\n".join(["\n".join(part) for part in parts] + end)


def plot(path: Path, out: Path) -> None:
    """Ours / peer for each checkpoint and error, a dot each; left of the line we write less."""
    from matplotlib.figure import Figure

    rows = Record(path).rows
    found = efforts_in(rows)
    effort = "default" if "default" in found else found[0]
    pairs = cases(rows, effort)
    if not pairs:
        sys.exit(f"{path} holds no case that both {OURS} and {PEER} have done")
    names = sorted({ours["checkpoint"] for ours, _ in pairs}, key=str.lower, reverse=True)
    targets = sorted({ours["target"] for ours, _ in pairs})
    figure = Figure(figsize=(8, 1.6 + 0.32 * len(names)), layout="constrained")
    axes = figure.add_subplot()
    axes.axvline(1, color="#555555", linewidth=1)
    axes.annotate(
        f" {PEER}", (1, 1), (0, -10), xycoords=("data", "axes fraction"), textcoords="offset points", fontsize=8
    )
    for target, marker in zip(targets, "osD^v" * len(targets), strict=False):
        at = {ours["checkpoint"]: ratio((ours, peer)) for ours, peer in pairs if ours["target"] == target}
        label = f"relative squared error {target:g}: mean {mean(at.values()):.3f}"
        axes.plot(at.values(), [names.index(name) for name in at], marker, label=label)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_xlabel(f"bytes / {PEER}'s bytes at equal error in every tensor")
    axes.set_title(f"{OURS}, effort {effort}, against {PEER}", loc="left", fontweight="bold")
    axes.grid(axis="y", linewidth=0.4, alpha=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower left", frameon=False, fontsize=9, ncols=len(targets))
    figure.savefig(out, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="*", type=Path)
    parser.add_argument("--bench", type=Path, help="folder of prepare.py and nncodec_peer.py")
    parser.add_argument("--peer-python", help="python that has nncodec; without it the peer is left out")
    parser.add_argument("--errors", default="0.01,0.05", help="relative squared errors")
    parser.add_argument("--efforts", default="fast,default,max")
    parser.add_argument("--again", action="store_true", help="measure this tool again, at the limits that are there")
    parser.add_argument("--out", type=Path, default=RESULT, help="record to go on with")
    parser.add_argument("--table", action="store_true", help="print the record as Markdown")
    parser.add_argument("--plot", type=Path, help="draw the record to a .png or .svg file")
    args = parser.parse_args()
    args.errors = [float(word) for word in args.errors.split(",")]
    args.efforts = args.efforts.split(",")
    if args.checkpoints:
        if args.bench is None:
            parser.error("--bench is needed to measure")
        compare(args)
    elif not (args.table or args.plot):
        parser.error("give checkpoints to measure, or --table, or --plot")
    if args.table:
        print(table(args.out))
    if args.plot:
        plot(args.out, args.plot)


if __name__ == "__main__":
    main()
