"""Where the time of a squeeze goes: nanoseconds for each weight in each stage, for one checkpoint or more.

    python benchmarks/stages.py CHECKPOINT… --max-rel-error 0.1 --efforts fast,default

Functions of the package are wrapped by stop-watches. What one of them spends in another belongs to the other. Each call
counts with its shortest time of RUNS runs, since other work on the machine only ever adds; the sum of these is less
than any whole run takes. One worker, torch on one thread.
"""

from __future__ import annotations

import argparse
import collections
import functools
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from origin import origin

from paramcompress import checkpoint, codec, container, job, layer, metrics, pipeline
from paramcompress.fit import factors, ranks, search, transforms

RUNS = 15
RESULT = Path(__file__).parent / "results" / "stages.json"
STAGES: dict[str, list[tuple[Any, str]]] = {
    "read and survey": [(checkpoint.Checkpoint, "load"), (metrics, "survey")],
    "fit bases to kernels": [(transforms.Transform, "fitted")],
    "choose transform": [(factors, "_choose"), (factors, "estimated_bits")],
    "choose rank": [
        (ranks, "_largest_gain"),
        (ranks, "truncated_svd"),
        (ranks, "_best_rank"),
        (ranks, "quantise_factors"),
    ],
    "change basis": [(transforms.Transform, "coordinates")],
    "settle classes and step on a sample": [(search, "search_step"), (search, "_settle")],
    "quantise": [(search.Search, "run"), (search, "points_of_error")],
    "code": [(codec, "encode_factored")],
    "reconstruct": [(codec.Factors, "reconstruct"), (codec, "to_tensor")],
    "measure and hash": [(metrics, "deviation"), (metrics, "deviation_of_parts"), (layer, "crc_of"), (layer, "_seen")],
    "decode": [(codec, "decode_factored"), (layer, "decode")],
    "steer a tensor through all this": [
        (layer, "encode"),
        (layer, "fit"),
        (layer, "_encode_factored"),
        (layer, "_factored_piece"),
    ],
    "write": [(container.Writer, "add"), (container.Writer, "finish"), (container.Writer, "publish")],
    "open, plan, index, report": [
        (pipeline, "_open"),
        (job.Job, "write"),
        (job.Job, "read_back"),
        (pipeline, "squeeze"),
    ],
}


class StopWatch:
    """Times of the calls of one run, in order, by stage; what a call spends in another timed one is taken off."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, float]] = []
        self._inner: list[float] = []

    def wrap(self, stage: str, owner: Any, name: str) -> None:
        function = owner.__dict__[name]
        of_class = isinstance(function, classmethod)
        run = function.__func__ if of_class else function

        @functools.wraps(run)
        def timed(*args: Any, **keywords: Any) -> Any:
            self._inner.append(0.0)
            start = time.perf_counter()
            try:
                return run(*args, **keywords)
            finally:
                took = time.perf_counter() - start
                self.calls.append((stage, took - self._inner.pop()))
                if self._inner:
                    self._inner[-1] += took

        setattr(owner, name, classmethod(timed) if of_class else timed)


def budget(watch: StopWatch, source: Path, effort: str, max_rel_error: float, out: Path) -> dict[str, Any]:
    """Nanoseconds a weight, by stage, and what a whole run takes at best."""
    least: list[tuple[str, float]] = []
    whole = []
    for _ in range(RUNS + 1):
        watch.calls.clear()
        start = time.perf_counter()
        report = pipeline.squeeze(source, out, max_rel_error=max_rel_error, effort=effort, force=True)
        whole.append(time.perf_counter() - start)
        if [stage for stage, _ in least] != [stage for stage, _ in watch.calls]:  # the first run compiles
            least = list(watch.calls)
        least = [(stage, min(a, b)) for (stage, a), (_, b) in zip(least, watch.calls, strict=True)]
    sums: dict[str, float] = collections.defaultdict(float)
    for stage, seconds in least:
        sums[stage] += seconds
    return {
        "checkpoint": source.name,
        "effort": effort,
        "weights": report.n_weights,
        "tensors": len(report.layers),
        "stages": {stage: round(1e9 * sums[stage] / report.n_weights, 1) for stage in STAGES},
        "sum": round(1e9 * sum(sums.values()) / report.n_weights, 1),
        "best_run": round(1e9 * min(whole) / report.n_weights, 1),
    }


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: a column for each result."""
    lines = ["| ns a weight | " + " | ".join(f"{one['checkpoint']}, {one['effort']}" for one in results) + " |"]
    lines.append("| :-- |" + " --: |" * len(results))
    for stage in STAGES:
        lines.append(f"| {stage} | " + " | ".join(f"{one['stages'][stage]:.1f}" for one in results) + " |")
    lines.append("| **sum** | " + " | ".join(f"**{one['sum']:.0f}**" for one in results) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="*", type=Path)
    parser.add_argument("--max-rel-error", type=float, default=0.1)
    parser.add_argument("--efforts", default="fast,default")
    parser.add_argument("--table", action="store_true", help="Markdown of the record that is there")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    if args.table:
        print(table(json.loads(args.out.read_text(encoding="utf-8"))["results"]))
        return
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for effort in args.efforts.split(","):  # compiles: numba could not see through a stop-watch
            pipeline.squeeze(
                args.checkpoints[0], Path(folder) / effort, max_rel_error=args.max_rel_error, effort=effort
            )
    watch = StopWatch()
    for stage, functions in STAGES.items():
        for owner, name in functions:
            watch.wrap(stage, owner, name)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for source in args.checkpoints:
            for effort in args.efforts.split(","):
                results.append(budget(watch, source, effort, args.max_rel_error, Path(folder) / "out.safetensors"))
                print(results[-1], flush=True)
    options = f"--max-rel-error {args.max_rel_error} --efforts {args.efforts}"
    record = {
        "name": "stages",
        "command": f"python benchmarks/stages.py CHECKPOINT… {options}",
        **origin(),
        "runs": RUNS,
        "results": results,
    }
    args.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
