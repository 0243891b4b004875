"""Bundles for GPUs on a GPU: they see and write what PyTorch does, drafts change nothing, and float32 is refused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxruntime_genai")

from trrg_export.cli import main
from trrg_export.pytorch_run import run_pytorch
from trrg_export.reference import Reference
from trrg_sdk import Reporter
from trrg_sdk.backends import Backend, open_backend, open_decoder, open_graphs
from trrg_sdk.backends.base import Decoder
from trrg_sdk.bundle import Bundle
from trrg_sdk.decoding.choice import NEAR_TIE
from trrg_sdk.decoding.greedy import Drafts, Pass, generate
from trrg_sdk.errors import DeviceError
from trrg_train.models.checkpoint import Checkpoint, load_checkpoint
from trrg_train.models.tokenizer import EOS_ID

pytestmark = pytest.mark.gpu
HALF = ("fp16", "int4-fp16")


@pytest.fixture(scope="module")
def cuda() -> Backend:
    """Where ONNX Runtime is the one for GPUs a GPU that does not work is a failure."""
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("ONNX Runtime is the one for CPUs here")
    return open_backend(device="cuda")


@pytest.fixture(scope="module")
def bundles(cuda: Backend, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    folder = tmp_path_factory.mktemp("half")
    for name in HALF:
        assert main([str(tiny_checkpoint), "--out", str(folder / name), f"--{name}", "--label-agreement", "0"]) == 0
    return {name: Bundle.load(folder / name) for name in HALF}


@pytest.fixture(scope="module")
def told(cuda: Backend, tiny_checkpoint: Path) -> tuple[Checkpoint, Reference]:
    loaded = load_checkpoint(tiny_checkpoint)
    return loaded, run_pytorch(loaded, loaded.parity_pixels())


class Scripted:
    """Proposes what it was told, however wrong."""

    def __init__(self, text: Sequence[int], *, wrong: int, length: int) -> None:
        self._text, self._wrong, self._length = text, wrong, length

    def propose(self, written: Sequence[int], *, most: int) -> list[int]:
        """The text's own next tokens, but for each so many that is wrong."""
        start = len(written)
        guesses = self._text[start : start + min(self._length, most)]
        return [token ^ 1 if (start + at) % self._wrong == 0 else token for at, token in enumerate(guesses)]

    def learn(self, made: Pass) -> None:
        """Nothing."""


@pytest.mark.parametrize("precision", HALF)
def test_a_gpu_sees_and_writes_what_pytorch_does(
    bundles: dict[str, Bundle], told: tuple[Checkpoint, Reference], precision: str
) -> None:
    checkpoint, reference = told
    reporter = Reporter(bundles[precision], device="cuda")
    assert reporter.device == "cuda"
    engine = reporter._engine
    override = engine.clues.override(None)
    for index, pixels in enumerate(checkpoint.parity_pixels()):
        seen = engine.perceive(pixels, override=override)
        np.testing.assert_allclose(seen.prompt, reference.prompts[index], atol=0.05)
        if precision == "fp16":
            expected = [token for token in reference.ids[index] if token != EOS_ID]
            assert list(engine.write(seen.prompt).ids) == expected


@pytest.mark.parametrize("precision", HALF)
def test_logits_are_those_of_the_processor(
    bundles: dict[str, Bundle], cuda: Backend, told: tuple[Checkpoint, Reference], precision: str
) -> None:
    bundle, (_, reference) = bundles[precision], told
    table, ids = np.asarray(bundle.token_embedding()), list(reference.ids[0])
    here, there = (open_decoder(backend, bundle) for backend in (open_backend(device="cpu"), cuda))
    for one in (here, there):
        one.prefill(reference.prompts[0])
    for width in (1, 2, 1, 5, 5, 17, 20):
        embeds = table[np.resize(ids, width)]
        mine, theirs = there.read(embeds).copy(), here.read(embeds).copy()
        np.testing.assert_allclose(mine, theirs, atol=0.03 * np.abs(theirs).max())
        for one in (here, there):
            one.truncate(one.length - width // 2)
    with ThreadPoolExecutor(1) as pool:  # a thread that captured nothing
        for one in (here, there):
            one.truncate(len(reference.prompts[0]))
        mine = pool.submit(lambda: there.read(table[ids[:5]]).copy()).result()
    np.testing.assert_allclose(mine, here.read(table[ids[:5]]), atol=0.03 * np.abs(mine).max())


@pytest.mark.parametrize("precision", HALF)
@pytest.mark.parametrize(("wrong", "length"), [(10**9, 4), (2, 3), (3, 16), (1, 8)])
def test_drafts_change_no_token(
    bundles: dict[str, Bundle],
    cuda: Backend,
    told: tuple[Checkpoint, Reference],
    precision: str,
    wrong: int,
    length: int,
) -> None:
    bundle, (checkpoint, reference) = bundles[precision], told
    decoder, limit = open_decoder(cuda, bundle), checkpoint.meta.max_new_tokens
    for plain, drafted in _both(decoder, bundle, reference, NEAR_TIE[precision], (wrong, length, limit)):
        assert plain == drafted


def _both(
    decoder: Decoder, bundle: Bundle, reference: Reference, near_tie: float, plan: tuple[int, int, int]
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    table, (wrong, length, limit) = bundle.token_embedding(), plan
    for prompt in reference.prompts:
        plain = generate(decoder, prompt, table, eos=EOS_ID, max_new_tokens=limit)
        drafts = Drafts(Scripted(plain.ids, wrong=wrong, length=length), near_tie)
        drafted = generate(decoder, prompt, table, eos=EOS_ID, max_new_tokens=limit, drafts=drafts)
        yield plain.ids, drafted.ids


def test_float32_encoders_agree_with_the_processor_and_its_decoder_is_refused(
    cuda: Backend, fp32_bundle: Path, told: tuple[Checkpoint, Reference]
) -> None:
    bundle, pixels = Bundle.load(fp32_bundle), told[0].parity_pixels()[:2]
    here, there = (
        open_graphs(backend, bundle, ["vision"])["vision"].run({"pixels": pixels})
        for backend in (open_backend(device="cpu"), cuda)
    )
    for name, values in here.items():
        np.testing.assert_allclose(there[name], values, atol=1e-4 * np.abs(values).max())
    with pytest.raises(DeviceError, match="expected a decoder that computes in float16"):
        Reporter(bundle, device="cuda")
    assert Reporter(bundle, device="auto").device == "cpu"
    with pytest.raises(DeviceError, match="cannot be opened on cuda"):  # by ONNX Runtime itself, were it not refused
        cuda.decoder(bundle.path("decoder"), bundle.manifest.decoder)
