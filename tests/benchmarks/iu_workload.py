"""What ``iu_decoder.py`` left in its folder, ready to be decoded: real report text for benchmarks.

    workload = load_workload(Path("runs/iu"))
    decoder = workload.decoder("int8", device="cpu", threads=2)
    for study in workload.distinct():                         # one study for each condition
        generate(decoder, study.prompt, workload.table, eos=EOS_ID, max_new_tokens=workload.limit)

A person's text is replayed with :class:`Replay`, a decoder that costs what the real one costs and writes that text.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from openvino_decoder import OpenVinoDecoder
from tokenizers import Tokenizer

from trrg_sdk.backends import onnxruntime
from trrg_sdk.backends.base import Decoder
from trrg_sdk.decoding.store import ReportStore, build_store
from trrg_sdk.manifest import DecoderSpec, TensorSpec

PRECISIONS = {"cpu": ("fp32", "int8", "int4"), "cuda": ("fp16", "int4-fp16")}


UNTRIED = 0.3
"""Lead that a pass must have in a precision whose noise was never measured: bf16 where passes do not agree."""


@dataclass(frozen=True)
class Study:
    """A val study.

    Attributes:
        prompt: float32 (P, Dl).
        text: Tokens of what a person wrote, without the end token.
    """

    prompt: NDArray[np.float32]
    text: tuple[int, ...]


@dataclass(frozen=True)
class Workload:
    """A folder of ``iu_decoder.py``.

    Attributes:
        folder: It.
        spec: Sizes of the decoder.
        table: float32 (V, Dl), token embeddings.
        tokenizer: Of the decoder.
        store: Made of the train reports.
        studies: Of val.
        eos: The end token.
        limit: The most tokens of a report.
    """

    folder: Path
    spec: DecoderSpec
    table: NDArray[np.float32]
    tokenizer: Tokenizer
    store: ReportStore
    studies: tuple[Study, ...]
    eos: int
    limit: int

    def distinct(self) -> list[Study]:
        """One study for each prompt: greedy decoding writes the same about the others."""
        return list({study.prompt.tobytes(): study for study in reversed(self.studies)}.values())[::-1]

    def file(self, precision: str) -> Path:
        """The decoder for ONNX Runtime; ``"explicit"`` is the fp32 graph of standard operators."""
        return self.folder / f"decoder_{precision}.onnx"

    def decoder(self, precision: str, *, device: str, threads: int) -> Decoder:
        """Open our decoder on ONNX Runtime in one of ``PRECISIONS``."""
        return onnxruntime.open_backend(device=device, threads=threads).decoder(self.file(precision), self.spec)


def load_workload(folder: Path, *, least: int = 1) -> Workload:
    """Load a folder that ``iu_decoder.py`` has completed.

    Args:
        folder: It.
        least: In how many train reports a run of tokens stands that the report store knows.
    """
    sizes = json.loads((folder / "decoder.json").read_text())
    limit, eos = sizes.pop("max_new_tokens"), sizes.pop("eos_token_id")
    table = np.load(folder / "token_embedding.npy")
    train = np.load(folder / "reports.npz")
    arrays, _ = build_store([one.tolist() for one in np.split(train["tokens"], train["ends"][:-1])], least=least)
    return Workload(
        folder=folder,
        spec=DecoderSpec(**sizes),
        table=table,
        tokenizer=Tokenizer.from_file(str(folder / "tokenizer.json")),
        store=ReportStore(arrays, vocabulary=len(table)),
        studies=tuple(_studies(np.load(folder / "studies.npz"))),
        eos=eos,
        limit=limit,
    )


def _studies(arrays: Any) -> list[Study]:
    prompts = np.split(arrays["prompts"], arrays["prompt_ends"][:-1])
    texts = np.split(arrays["texts"], arrays["text_ends"][:-1])
    return [Study(prompt, tuple(text.tolist())) for prompt, text in zip(prompts, texts, strict=True)]


class Replay:
    """A decoder whose likeliest token is always the next one of a given text; every pass is really made."""

    def __init__(self, decoder: Decoder, eos: int) -> None:
        """Wrap a decoder.

        Args:
            decoder: That costs what is measured.
            eos: Follows the text.
        """
        self._decoder = decoder
        self._eos = eos
        self._prompt = 0
        self._text: tuple[int, ...] = ()
        self.all_rows = decoder.all_rows

    def about_to_write(self, text: tuple[int, ...]) -> None:
        """Say what follows the next prompt."""
        self._text = text

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Those of the decoder."""
        return self._decoder.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Those of the decoder."""
        return self._decoder.outputs

    @property
    def length(self) -> int:
        """Positions read."""
        return self._decoder.length

    @property
    def free(self) -> int:
        """Positions that fit."""
        return self._decoder.free

    def reset(self) -> None:
        """Forget everything."""
        self._decoder.reset()

    def truncate(self, length: int) -> None:
        """Forget the last positions."""
        self._decoder.truncate(length)

    def prefill(self, embeds: NDArray[np.floating], *, rows: int = 1) -> NDArray[np.float32]:
        """Read a prompt; the text begins after it, or before the draft that is read with it."""
        logits = self._decoder.prefill(embeds, rows=rows)
        self._prompt = self._decoder.length - rows + 1
        return self._forced(logits)

    def step(self, embed: NDArray[np.floating]) -> NDArray[np.float32]:
        """Append one position."""
        return self._forced(self._decoder.step(embed)[None])[0]

    def read(self, embeds: NDArray[np.floating]) -> NDArray[np.float32]:
        """Append several positions."""
        return self._forced(self._decoder.read(embeds))

    def _forced(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        after = self._decoder.length - self._prompt - len(rows) + 1  # tokens of the text before the first row's
        for place, row in enumerate(rows, start=after):
            row[self._text[place] if place < len(self._text) else self._eos] = 60.0  # above all others, and modest
        return rows


def decoders(workload: Workload, device: str, threads: int) -> list[tuple[str, str, Callable[[], Decoder]]]:
    """Name, precision and how to open each."""
    explicit = workload.file("explicit")
    ours: list[tuple[str, str, Callable[[], Decoder]]] = [
        (f"ONNX Runtime {name}", name, lambda name=name: workload.decoder(name, device=device, threads=threads))
        for name in PRECISIONS[device]
    ]
    if device != "cpu":
        return ours
    theirs: list[tuple[str, str, Callable[[], Decoder]]] = [
        (
            f"OpenVINO {name}",
            name,
            lambda name=name: OpenVinoDecoder(explicit, workload.spec, precision=name, threads=threads),
        )
        for name in ("fp32", "bf16")
    ]
    return [*ours, *theirs]
