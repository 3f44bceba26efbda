"""Anonymous memory that squeezing and expanding a large sharded checkpoint add to what importing torch and numba takes.

    python benchmarks/memory.py                     # 1 GB, largest tensor 64 MB
    python benchmarks/memory.py --megabytes 256     # the same with fewer tensors

Makes the checkpoint in a temporary folder, a few rows at a time. Runs each command in a process of its own and reads
RssAnon from /proc/PID/status while it runs (mapped files do not count: the system takes their pages back when it needs
them). The compiled loops are in numba's cache before anything is measured. Checks every tensor that comes back, writes
benchmarks/results/memory.json, and fails if more than MOST_TIMES_LARGEST times the largest tensor was added.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from numpy.typing import NDArray
from origin import origin

WIDTH = 4000
LARGEST_BYTES = 4 * WIDTH * WIDTH
"""64 MB of float32."""
BLOCK = {"mlp.weight": (WIDTH, WIDTH), "attention.weight": (WIDTH // 4, WIDTH), "norm.weight": (WIDTH,)}
BLOCK_BYTES = sum(4 * int(np.prod(shape)) for shape in BLOCK.values())
BLOCKS_PER_SHARD = 2
MOST_TIMES_LARGEST = 4
MAX_REL_ERROR = 0.03
ROWS_AT_ONCE = 250
EVERY_S = 0.005
RESULT = Path(__file__).parent / "results" / "memory.json"


def rows(shape: tuple[int, ...], generator: np.random.Generator) -> Iterator[NDArray[np.float32]]:
    """Weights of `shape`, some rows at a time: rank 8 and noise, neighbours alike, rows and columns of many scales."""
    n_columns = shape[-1]
    if len(shape) == 1:
        yield (1 + 0.1 * generator.standard_normal(n_columns, np.float32)).astype(np.float32)
        return
    directions = generator.standard_normal((8, n_columns), np.float32)
    column_scale = 0.02 * np.exp(0.5 * generator.standard_normal(n_columns, np.float32))
    for first in range(0, shape[0], ROWS_AT_ONCE):
        n_rows = min(ROWS_AT_ONCE, shape[0] - first)
        noise = generator.standard_normal((n_rows, n_columns), np.float32)
        noise[:, 1:] += 0.5 * noise[:, :-1]
        row_scale = np.exp(0.5 * generator.standard_normal((n_rows, 1), np.float32))
        yield row_scale * column_scale * (noise + 0.3 * generator.standard_normal((n_rows, 8), np.float32) @ directions)


def make_checkpoint(folder: Path, n_blocks: int, seed: int) -> int:
    """Write a sharded checkpoint as Hugging Face lays it out; returns the bytes of its tensors."""
    generator = np.random.default_rng(seed)
    folder.mkdir()
    shards = [range(first, min(first + BLOCKS_PER_SHARD, n_blocks)) for first in range(0, n_blocks, BLOCKS_PER_SHARD)]
    weight_map = {}
    n_bytes = 0
    for number, blocks in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        shapes = {f"layers.{block}.{name}": shape for block in blocks for name, shape in BLOCK.items()}
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        at = 0
        for name, shape in shapes.items():
            end = at + 4 * int(np.prod(shape))
            header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, end]}
            at = end
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (folder / file).open("wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            for shape in shapes.values():
                for part in rows(shape, generator):
                    out.write(np.ascontiguousarray(part, "<f4").data)
        weight_map |= dict.fromkeys(shapes, file)
        n_bytes += at
    index = {"metadata": {"total_size": n_bytes}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    return n_bytes


def rss_anon_bytes(pid: int) -> int:
    """RssAnon of a process now; 0 where it has ended."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return 1024 * int(line.split()[1])
    except OSError:
        pass
    return 0


def peak_of(arguments: list[str]) -> tuple[int, float]:
    """Largest RssAnon seen while python runs with these arguments, and the seconds it took."""
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        peak = max(peak, rss_anon_bytes(process.pid))
        time.sleep(EVERY_S)
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)}: exit code {process.returncode}")
    return peak, time.monotonic() - started


def worst_error(original: Path, expanded: Path) -> float:
    """Largest relative error of a tensor; every one has to be there."""
    worst = 0.0
    for file in sorted(original.glob("*.safetensors")):
        with safetensors.safe_open(file, "pt") as before, safetensors.safe_open(expanded / file.name, "pt") as after:
            assert sorted(before.keys()) == sorted(after.keys())
            for name in before.keys():  # noqa: SIM118
                weight = before.get_tensor(name)
                worst = max(worst, float(torch.dist(after.get_tensor(name), weight) / weight.norm()))
    return worst


def measure(folder: Path, n_blocks: int, seed: int, workers: int) -> list[dict[str, Any]]:
    """One result for each command."""
    original, squeezed, expanded = folder / "model", folder / "model.squeezed.safetensors", folder / "expanded"
    n_bytes = make_checkpoint(original, n_blocks, seed)
    command = ["-m", "paramcompress"]
    torch.save({"w": torch.randn(300, 300) + torch.randn(300, 1) @ torch.randn(1, 300)}, folder / "small.pt")
    peak_of([*command, "squeeze", str(folder / "small.pt"), "-q"])
    baseline = max(peak_of(["-c", "import torch, numba, time; time.sleep(0.2)"])[0] for _ in range(3))
    results = []
    for name, arguments in (
        ("squeeze", [str(original), "-o", str(squeezed), "--max-rel-error", str(MAX_REL_ERROR)]),
        ("expand", [str(squeezed), "-o", str(expanded)]),
    ):
        peak, elapsed_s = peak_of([*command, name, *arguments, "-q", "--workers", str(workers)])
        results.append(
            {
                "command": name,
                "bytes": n_bytes,
                "largest_tensor_bytes": LARGEST_BYTES,
                "baseline_anon_bytes": baseline,
                "peak_anon_bytes": peak,
                "added_anon_bytes": peak - baseline,
                "times_largest_tensor": round((peak - baseline) / LARGEST_BYTES, 2),
                "elapsed_s": round(elapsed_s, 1),
            }
        )
    error = worst_error(original, expanded)
    assert error <= MAX_REL_ERROR, f"relative error {error}"
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1000, help="size of the checkpoint")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where the temporary folder goes; needs 2.5 times the space")
    parser.add_argument("--out", type=Path, default=RESULT, help="record to write")
    given = parser.parse_args()
    n_blocks = max(1, round(given.megabytes * 1e6 / BLOCK_BYTES))
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        results = measure(Path(folder), n_blocks, given.seed, given.workers)
    record = {
        "name": "memory",
        "command": f"python benchmarks/memory.py --megabytes {given.megabytes} --workers {given.workers}",
        **origin(),
        "threads": given.workers,
        "seed": given.seed,
        "results": results,
    }
    text = json.dumps(record, indent=2)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(text + "\n")
    print(text)
    if any(one["times_largest_tensor"] > MOST_TIMES_LARGEST for one in results):
        sys.exit(f"more than {MOST_TIMES_LARGEST} times the largest tensor")


if __name__ == "__main__":
    main()
