"""Reads a prompt with a decoder on whatever processor runs this, one that is emulated in ``test_int8_decoder.py``.

    python tests/export/read_prompt.py FOLDER       decoder.onnx, spec.json, prompt.npy, cpuinfo; it gets rows.npz

``runtime`` are the logits of the runtime's decoder, ``plain`` those of a session that was not asked for exact sums.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from trrg_sdk import processors
from trrg_sdk.backends.onnxruntime import OrtBackend
from trrg_sdk.backends.ort_decoder import OrtDecoder
from trrg_sdk.manifest import DecoderSpec

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    processors._CPUINFO = folder / "cpuinfo"  # an emulator shows that of the machine below it
    path = folder / "decoder.onnx"
    spec = DecoderSpec(**json.loads((folder / "spec.json").read_text()))
    backend = OrtBackend("cpu", 1)
    decoders = {
        "runtime": backend.decoder(path, spec),
        "plain": OrtDecoder(backend.session(path, 1), path.name, spec),
    }
    prompt = np.load(folder / "prompt.npy")
    np.savez(folder / "rows.npz", **{name: decoder.prefill(prompt)[0] for name, decoder in decoders.items()})
