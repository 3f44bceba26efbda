"""Time to encode and decode against size, with one worker and with two, on generated layers of 1024 x 1024.

    python benchmarks/scaling.py                       # 1 MB to 2 GB: an hour or two
    python benchmarks/scaling.py --largest 64MB        # less
    python benchmarks/scaling.py --plot scaling.png    # draw the record that is there

Every layer is another one: rank 8 and noise, neighbours alike, rows and columns of many scales. Encoding is from file
to file, verification included; decoding is from file to memory. Each row checks that every tensor came back within the
limit. Medians of three up to RUNS_BYTES, one run above. The slope is that of log time over log size from SLOPE_BYTES
on: 1 is linear.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from memory import rows
from origin import origin
from safetensors import safe_open

import paramcompress
from paramcompress.units import format_size, parse_size

WIDTH = 1024
LAYER_BYTES = 4 * WIDTH * WIDTH
SMALLEST_BYTES = LAYER_BYTES // 4
RUNS_BYTES = 64 << 20
SLOPE_BYTES = 4 << 20
MAX_REL_ERROR = 0.03
WORKERS = (1, 2)
RESULT = Path(__file__).parent / "results" / "scaling.json"


def make_checkpoint(path: Path, n_bytes: int, seed: int) -> None:
    """Write layers of that many bytes in all, one after the other; the only layer may be flatter than 1024 rows."""
    n_layers = max(n_bytes // LAYER_BYTES, 1)
    shape = (min(n_bytes // (4 * WIDTH), WIDTH), WIDTH)
    size = 4 * shape[0] * shape[1]
    header = {
        f"layers.{at}.weight": {"dtype": "F32", "shape": shape, "data_offsets": [at * size, (at + 1) * size]}
        for at in range(n_layers)
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    generator = np.random.default_rng(seed)
    with path.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for _ in range(n_layers):
            for part in rows(shape, generator):
                out.write(np.ascontiguousarray(part, "<f4").data)


def worst_error(path: Path, back: dict[str, torch.Tensor]) -> float:
    """Largest relative error of a tensor; every one has to be there."""
    with safe_open(path, "pt") as file:
        names = list(file.keys())
        assert sorted(names) == sorted(back)
        worst = 0.0
        for name in names:
            weight = file.get_tensor(name)
            worst = max(worst, float((back[name].double() - weight.double()).norm() / weight.double().norm()))
    return worst


def measure(path: Path, effort: str, workers: int, seed: int) -> dict[str, Any]:
    """Median seconds of one checkpoint."""
    out = path.with_name("squeezed.safetensors")
    n_bytes = path.stat().st_size
    times = []
    for _ in range(3 if n_bytes < 1.1 * RUNS_BYTES else 1):
        start = time.perf_counter()
        paramcompress.squeeze(
            path, out, max_rel_error=MAX_REL_ERROR, effort=effort, workers=workers, seed=seed, force=True
        )
        middle = time.perf_counter()
        back = paramcompress.load_file(out, workers=workers)
        times.append((middle - start, time.perf_counter() - middle))
        error = worst_error(path, back)
        assert error <= MAX_REL_ERROR, f"relative error {error}"
        del back
    encode_s, decode_s = (statistics.median(one[at] for one in times) for at in (0, 1))
    return {
        "workers": workers,
        "bytes": out.stat().st_size,
        "runs": len(times),
        "worst_rel_error": round(error, 6),
        "encode_s": round(encode_s, 4),
        "decode_s": round(decode_s, 4),
    }


def slope(results: list[dict[str, Any]], workers: int, key: str) -> float | None:
    """Of log time over log size, by least squares; None with fewer than two sizes."""
    found = [(one["input_bytes"], one[key]) for one in results if one["workers"] == workers]
    found = [(size, seconds) for size, seconds in found if size >= SLOPE_BYTES]
    if len(found) < 2:
        return None
    sizes, seconds = np.log(np.array(found)).T
    return round(float(np.polyfit(sizes, seconds, 1)[0]), 3)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure size after size; the record is written after each."""
    record: dict[str, Any] = {
        "name": "scaling",
        "command": f"python benchmarks/scaling.py --largest {args.largest} --effort {args.effort}",
        **origin(),
        "threads": list(WORKERS),
        "seed": args.seed,
        "max_rel_error": MAX_REL_ERROR,
        "effort": args.effort,
        "slopes": {},
        "results": [],
    }
    results = record["results"]
    largest = 1.1 * parse_size(args.largest)  # 2 GB means 2 GiB here, the power of two beside it
    n_bytes = SMALLEST_BYTES
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path = Path(folder) / "layers.safetensors"
        make_checkpoint(path, SMALLEST_BYTES, args.seed)
        for workers in WORKERS:
            measure(path, args.effort, workers, args.seed)  # warms up
        while n_bytes <= largest:
            make_checkpoint(path, n_bytes, args.seed)
            for workers in WORKERS:
                results.append({"input_bytes": n_bytes, **measure(path, args.effort, workers, args.seed)})
                print(*(f"{key} {value}" for key, value in results[-1].items()), sep="  ", flush=True)
            record["slopes"] = {
                f"{key}, {workers} workers": slope(results, workers, key)
                for workers in WORKERS
                for key in ("encode_s", "decode_s")
            }
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(record, indent=1) + "\n")
            n_bytes *= 2
    return record


def plot(record: dict[str, Any], out: Path) -> None:
    """Seconds against size, both logarithmic, beside a line of slope 1."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.6), layout="constrained")
    axes = figure.add_subplot()
    for key, colour in (("encode_s", "tab:blue"), ("decode_s", "tab:orange")):
        for workers, style in zip(WORKERS, ("o-", "s--"), strict=True):
            found = [one for one in record["results"] if one["workers"] == workers]
            sizes, seconds = [one["input_bytes"] for one in found], [one[key] for one in found]
            words = f"{key.removesuffix('_s')}, {workers} worker{'s' * (workers > 1)}"
            axes.plot(sizes, seconds, style, color=colour, markersize=4, linewidth=1.4, label=words)
            if workers == 1:
                linear = [seconds[-1] * size / sizes[-1] for size in sizes]
                label = "proportional to size" if key == "encode_s" else None
                axes.plot(sizes, linear, ":", color="#888888", linewidth=1, label=label, zorder=0)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ticks = sorted({one["input_bytes"] for one in record["results"]})[::2]
    axes.set_xticks(ticks, [format_size(tick) for tick in ticks])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g} s")
    axes.set_xlabel("bytes of float32 weights")
    axes.set_title(f"Time against size, effort {record['effort']}", loc="left", fontweight="bold")
    axes.grid(which="major", linewidth=0.4, alpha=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(out, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--largest", default="2GB", help="sizes double from 1 MB up to this")
    parser.add_argument("--effort", default="default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where the temporary folder goes; needs 1.3 times the largest size")
    parser.add_argument("--out", type=Path, default=RESULT, help="record to write")
    parser.add_argument("--plot", type=Path, help="draw the record that is there to a .png or .svg file")
    args = parser.parse_args()
    if args.plot:
        plot(json.loads(args.out.read_text()), args.plot)
    else:
        record = run(args)
        print(json.dumps(record["slopes"], indent=1))


if __name__ == "__main__":
    main()
