"""A backend for tests: deterministic arithmetic in numpy instead of trained graphs, and a text that is given.

It reads the manifest that lies above a graph's file and answers with its names, dtypes and shapes, so that
everything around the graphs can be tested without a runtime. It never looks like a model: the scores
follow from the embeddings by the calibration alone, and the decoder writes the script it was given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trrg_sdk.backends.base import check_kept, check_threads
from trrg_sdk.errors import BundleError, DeviceError, UsageError
from trrg_sdk.manifest import MANIFEST_FILE, DecoderSpec, GraphSpec, Manifest, TensorSpec, parse_manifest

NAME = "fake"


def unavailable_reason() -> str | None:
    """Return ``None``: it works everywhere."""
    return None


def open_backend(*, device: str = "auto", threads: int | None = None, script: Sequence[int] = ()) -> FakeBackend:
    """Open the fake.

    Args:
        device: ``"auto"`` or ``"cpu"``.
        threads: Taken for the sake of the same signature; numpy decides for itself.
        script: The token ids that every decoder writes before the end token.

    Raises:
        UsageError: ``threads`` is below 1.
        DeviceError: Another device was asked for.
    """
    check_threads(threads)
    if device not in ("auto", "cpu"):
        raise DeviceError(f"device {device}: the fake backend has only cpu.")
    return FakeBackend(script=script)


class FakeBackend:
    """Opens fake graphs.

    Attributes:
        name: ``"fake"``.
        device: ``"cpu"``.
        target: ``"fake-cpu"``, which no manifest has.
    """

    def __init__(self, *, script: Sequence[int] = ()) -> None:
        """Keep the text that every decoder writes.

        Args:
            script: Token ids without the end token.
        """
        self.name = NAME
        self.device = "cpu"
        self.target = "fake-cpu"
        self._script = tuple(script)

    def file(self, name: str, manifest: Manifest) -> str:
        """Say which file of a bundle it opens for a graph."""
        return manifest.graph(name, target=self.target).file

    def graph(self, path: Path, *, spec: GraphSpec | None = None) -> FakeGraph:
        """Open the fake of the graph that the manifest keeps in this file.

        Args:
            path: The graph's file; it is not read.
            spec: Has no say.

        Raises:
            BundleError: No manifest lies above the file, or it knows no such graph.
        """
        manifest, name = _find(path)
        return FakeGraph(manifest, name)

    def decoder(self, path: Path, spec: DecoderSpec) -> FakeDecoder:
        """Open a decoder that writes the script.

        Raises:
            BundleError: No manifest lies above the file, or it knows no such graph.
        """
        manifest, name = _find(path)
        tokenizer = manifest.tokenizer
        return FakeDecoder(manifest.graphs[name], spec, tokenizer.vocab_size, (*self._script, tokenizer.eos_token_id))


class FakeGraph:
    """The vision encoder, the clue encoder or the fusion as plain arithmetic."""

    def __init__(self, manifest: Manifest, name: str) -> None:
        """Take names and shapes from the manifest."""
        self._name = name
        self._spec = manifest.graphs[name]
        self._patch_grid = manifest.patch_grid
        self.inputs = self._spec.inputs
        self.outputs = self._spec.outputs

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the graph once; see :class:`trrg_sdk.backends.base.Graph`.

        Raises:
            UsageError: An input is missing, unknown or of the wrong dtype or number of axes.
        """
        _check_inputs(self._name, self._spec, inputs)
        run = {"vision": self._vision, "clue_encoder": self._clue_encoder, "fusion": self._fusion}[self._name]
        return run(dict(inputs))

    def _width(self, output: str) -> int:
        return int(next(spec.axes[-1] for spec in self.outputs if spec.name == output))

    def _vision(self, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Spread each patch's mean over fixed directions."""
        rows, columns = self._patch_grid
        pixels = inputs["pixels"][:, 0]  # (B, H, W)
        blocks = [np.array_split(row, columns, axis=2) for row in np.array_split(pixels, rows, axis=1)]
        means = np.stack([block.mean(axis=(1, 2)) for row in blocks for block in row], axis=1)  # (B, N)
        joint = _directions(means, self._width("patch_joint"))
        return {
            "patches": _directions(means, self._width("patches")),
            "patch_joint": joint,
            "global_joint": _unit(joint.mean(axis=1)),
        }

    def _clue_encoder(self, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Turn the ids of a prompt, padding left out, into a direction."""
        ids = inputs["input_ids"] * inputs["attention_mask"]
        place = np.arange(1, ids.shape[1] + 1)
        return {"clue_joint": _directions((ids * place).sum(axis=1) / 97.0, self._width("clue_joint"))}

    def _fusion(self, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Calibrate the margin between both prompts; a forced score replaces it."""
        margin = (inputs["clue_positive"] - inputs["clue_negative"]).T  # (De, C)
        scale, offset = inputs["clue_scale"], inputs["clue_offset"]
        logits = inputs["global_joint"] @ margin * scale + offset  # (B, C)
        heat = (inputs["patch_joint"] @ margin * scale + offset).swapaxes(1, 2)  # (B, C, N)
        forced = inputs["clue_override"]
        inside = np.clip(forced, 1e-6, 1 - 1e-6)
        logits = np.where(forced < 0, logits, np.log(inside / (1 - inside)))
        tokens = np.concatenate([inputs["patches"].mean(axis=2), logits], axis=1)  # (B, N + C)
        return {
            "prompt_embeds": _directions(tokens, self._width("prompt_embeds")),
            "clue_logits": logits.astype(np.float32),
            "clue_heat": (1 / (1 + np.exp(-heat))).astype(np.float32),
        }


class FakeDecoder:
    """Writes a script, whatever it reads; counts positions like a real one.

    Attributes:
        all_rows: True; a test may change it.
    """

    def __init__(self, graph: GraphSpec, spec: DecoderSpec, vocab_size: int, script: tuple[int, ...]) -> None:
        """Keep the script, which ends with the end token."""
        self.inputs: tuple[TensorSpec, ...] = graph.inputs
        self.outputs: tuple[TensorSpec, ...] = graph.outputs
        self.all_rows = True
        self._spec = spec
        self._vocab_size = vocab_size
        self._script = script
        self._prompt = 0
        self.reset()

    @property
    def length(self) -> int:
        """How many positions were read and not forgotten."""
        return self._length

    @property
    def free(self) -> int:
        """How many more positions fit."""
        return self._spec.max_length - self._length

    def reset(self) -> None:
        """Forget everything that was read."""
        self._length = 0

    def prefill(self, embeds: NDArray[np.floating], *, rows: int = 1) -> NDArray[np.float32]:
        """Forget everything, then read a prompt; see :class:`trrg_sdk.backends.base.Decoder`.

        Raises:
            UsageError: The shape is wrong, or the prompt is longer than ``max_length``.
        """
        self.reset()
        self._prompt = len(embeds) - rows + 1
        return self.read(embeds)[-rows:]

    def step(self, embed: NDArray[np.floating]) -> NDArray[np.float32]:
        """Append one position; see :class:`trrg_sdk.backends.base.Decoder`.

        Raises:
            UsageError: The shape is wrong, or no position is free.
        """
        if len(embed) != 1:
            raise UsageError(f"fake decoder: expected one position, got {len(embed)}.")
        return np.asarray(self.read(embed)[-1])

    def truncate(self, length: int) -> None:
        """Forget the last positions; see :class:`trrg_sdk.backends.base.Decoder`.

        Raises:
            UsageError: It is negative or more than were read.
        """
        check_kept("fake decoder", length, self._length)
        self._length = length

    def read(self, embeds: NDArray[np.floating]) -> NDArray[np.float32]:
        """Append several positions; see :class:`trrg_sdk.backends.base.Decoder`.

        Raises:
            UsageError: The shape is wrong, or fewer positions are free.
        """
        width = self._spec.hidden_size
        if embeds.ndim != 2 or embeds.shape[1] != width or not 0 < len(embeds) <= self.free:
            raise UsageError(f"fake decoder: expected (1 to {self.free}, {width}), got {embeds.shape}.")
        self._length += len(embeds)
        written = self._length - self._prompt - np.arange(len(embeds))[::-1]  # tokens before each row's next one
        rows = np.zeros((len(embeds), self._vocab_size), np.float32)
        following = np.asarray(self._script)[np.clip(written, 0, len(self._script) - 1)]
        rows[np.arange(len(embeds)), following] = 8.0
        return rows if self.all_rows else rows[-1:]


def _find(path: Path) -> tuple[Manifest, str]:
    """Find the manifest above a graph's file, and the graph's name."""
    for folder in path.parents:
        if (folder / MANIFEST_FILE).is_file():
            manifest = parse_manifest((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
            for name, graph in manifest.graphs.items():
                if folder / graph.file == path:
                    return manifest, name
            break
    raise BundleError(f"{path.name}: expected a graph of a bundle, got a file that no manifest names.")


def _check_inputs(name: str, spec: GraphSpec, inputs: Mapping[str, NDArray[Any]]) -> None:
    """Refuse what a real runtime refuses."""
    expected = {tensor.name: (tensor.dtype, len(tensor.axes)) for tensor in spec.inputs}
    got = {key: (str(array.dtype), array.ndim) for key, array in inputs.items()}
    if expected != got:
        raise UsageError(f"{name}: expected inputs (dtype, number of axes) {expected}, got {got}.")


def _directions(values: NDArray[Any], width: int) -> NDArray[np.float32]:
    """Map each number to a unit vector: (...,) to float32 (..., width); equal numbers give equal vectors."""
    angles = np.arange(1, width + 1) * math.pi / (width + 1)
    return _unit(np.cos(values[..., None] * 2.0 + angles))


def _unit(vectors: NDArray[Any]) -> NDArray[np.float32]:
    """Scale vectors along the last axis to length 1."""
    return np.asarray(vectors / (np.linalg.norm(vectors, axis=-1, keepdims=True) + 1e-9), np.float32)
