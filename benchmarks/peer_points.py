"""NNCodec at fixed quantisation parameters: bytes of the whole stream, and the weights that come back.

Runs in an environment of the peer's own (`pip install nncodec==2.1.3`), called by calibrated.py.
Usage:  python peer_points.py WEIGHTS.safetensors QP,QP,... OUT_FOLDER

WEIGHTS holds float32 tensors. Vectors get the codec's own fine setting. Writes QP.safetensors and prints {qp: bytes}.
"""

import contextlib
import io
import json
import sys
import tempfile
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np

# the peer imports torchvision for its ImageNet examples only
for module in ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.models"):
    sys.modules[module] = MagicMock()
from nncodec import nn as nnc  # noqa: E402
from safetensors.numpy import load_file, save_file  # noqa: E402


def main() -> None:
    weights, out = load_file(sys.argv[1]), Path(sys.argv[3])
    sizes = {}
    for qp in map(int, sys.argv[2].split(",")):
        with contextlib.redirect_stdout(io.StringIO()):
            args = {"qp": qp, "verbose": False, "results": tempfile.gettempdir()}
            stream = nnc.encode({name: value.copy() for name, value in weights.items()}, args)
            decoded = nnc.decode(stream, {"verbose": False})
        back = {
            name: np.ascontiguousarray(np.asarray(decoded[name], dtype=np.float32).reshape(value.shape))
            for name, value in weights.items()
        }
        save_file(back, out / f"{qp}.safetensors")
        sizes[qp] = len(stream)
    print(json.dumps(sizes))


main()
