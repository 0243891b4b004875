"""What an export holds in memory, over the size of the checkpoint, and what keeps that low."""

from __future__ import annotations

import gc
import subprocess
import sys
import tracemalloc
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

onnx = pytest.importorskip("onnx")
pytest.importorskip("torch")
pytest.importorskip("onnxruntime_genai")

from onnx import ModelProto, TensorProto, helper, numpy_helper

from tests.export import tiny
from trrg_export.hollow import Contents, is_hollow, without_weights
from trrg_export.memory import apart, release
from trrg_export.onnx_file import add_outputs, read_hollow, save, tensor_specs
from trrg_export.parity import LIMITS, Exported, compare
from trrg_export.precision.half import to_half
from trrg_export.precision.int8 import quantize_weights
from trrg_export.precision.sections import NODES, Sections, cut
from trrg_export.precision.static import to_static
from trrg_export.pytorch_run import run_pytorch
from trrg_export.to_onnx import checkpoint_plans, write_trace
from trrg_sdk.backends.onnxruntime import OrtBackend
from trrg_sdk.backends.ort_session import OrtGraph, open_session
from trrg_sdk.bundle import Bundle
from trrg_sdk.manifest import GraphSpec
from trrg_train.models.checkpoint import load_checkpoint

pytestmark = pytest.mark.torch

LARGE = {
    "hidden_size": 512,
    "num_hidden_layers": 18,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 2560,
}
"""82 million weights, 330 MB."""
ENCODER = {"hidden_size": 768, "num_hidden_layers": 8, "num_attention_heads": 12, "intermediate_size": 3072}
"""57 million weights, 230 MB."""
MOST = 1.5
WIDTH = 256
PRODUCTS = 64
EXPORT = """
import sys
from pathlib import Path
from trrg_export.cli import main
code = main(sys.argv[1:])
print(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")))
sys.exit(code)
"""


def _exported(checkpoint: Path, precision: str) -> tuple[int, int]:
    """Export; the size of the weights and the largest resident set, in bytes."""
    out = checkpoint.with_name(f"{checkpoint.name}-{precision}")
    options = [str(checkpoint), "--out", str(out), f"--{precision}", "--label-agreement", "0"]
    options += ["--clue-flips", "1", "--studies", "1"]
    command = [sys.executable, "-c", EXPORT, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    peak = int(done.stdout.split("VmHWM:")[1].split()[0]) * 1024
    return (checkpoint / "model.safetensors").stat().st_size, peak


RUN = """
import sys
from pathlib import Path
import numpy as np
from trrg_export.comparing_backend import comparing_backend
from trrg_export.memory import return_large
def read(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024
return_large()
backend = comparing_backend(sys.argv[1])
before = read("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
graph = backend.graph(Path(sys.argv[2]))
ones = np.ones((1, 2048), graph.inputs[0].dtype)
assert np.allclose(graph.run({"x0": ones})[graph.outputs[0].name], ones)
print(read("VmHWM") - before)
"""
COUNTED = """
import sys
from pathlib import Path
from trrg_export.memory import return_large
from trrg_export.summary import summarize
def read(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024
return_large()
import onnxruntime
before = read("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
summarize({"graph": Path(sys.argv[1])}, {})
print(read("VmHWM") - before)
"""
FREED = """
from pathlib import Path
import numpy as np
from trrg_export.memory import return_large
def resident():
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if "VmRSS" in line)
return_large()
np.ones(30 * 2**18, np.float32)  # the C library learns from what is freed what it need not give back
held = [np.ones(2**20, np.float32) for _ in range(50)]  # 4 MiB each
before = resident()
del held[:-1]
print((before - resident()) // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="Linux tells the peak of a process there")
def test_an_export_holds_a_small_multiple_of_the_checkpoint(tmp_path: Path) -> None:
    """A tiny checkpoint costs the same but for its weights: libraries, traces, sessions."""
    nothing, without = _exported(tiny.write_checkpoint(tmp_path / "tiny"), "int4")
    large = {
        "int4": tiny.write_checkpoint(tmp_path / "decoder", llm={**tiny.LLM, **LARGE}),
        "fp16": tiny.write_checkpoint(tmp_path / "encoder", clue_encoder={**tiny.CLUE_ENCODER, **ENCODER}),
    }
    for precision, checkpoint in large.items():
        weights, peak = _exported(checkpoint, precision)
        assert weights > 200e6
        assert (peak - without) / (weights - nothing) <= MOST, precision


def test_a_graph_is_written_one_weight_at_a_time(tmp_path: Path) -> None:
    model = _chain()
    whole = model.ByteSize()
    assert _traced(lambda: save(model, tmp_path / "graph.onnx")) < whole / 8
    written = onnx.load(str(tmp_path / "graph.onnx"))
    assert (tmp_path / "graph.onnx").stat().st_size == whole
    assert written.SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)


def test_external_weights_go_inside_one_at_a_time(tmp_path: Path) -> None:
    model = _chain()
    outside = _outside(tmp_path)
    assert outside.ByteSize() < model.ByteSize() / 8
    assert _traced(lambda: save(outside, tmp_path / "graph.onnx", tmp_path)) < model.ByteSize() / 8
    assert onnx.load(str(tmp_path / "graph.onnx"), load_external_data=False) == model


def test_contents_read_what_lies_outside_when_it_is_asked_for(tmp_path: Path) -> None:
    model, outside = _chain(), _outside(tmp_path)
    contents = Contents(outside, tmp_path)
    (tmp_path / "source.data").rename(tmp_path / "away.data")
    assert list(contents) == [tensor.name for tensor in model.graph.initializer]
    assert "w0" in contents
    assert "w" not in contents
    with pytest.raises(onnx.checker.ValidationError, match=r"source\.data"):
        contents["w0"]
    (tmp_path / "away.data").rename(tmp_path / "source.data")
    assert contents["w1"] == model.graph.initializer[1]
    assert np.array_equal(contents.array("w1"), numpy_helper.to_array(model.graph.initializer[1]))
    assert _traced(lambda: [contents.array(name).sum() for name in contents]) < model.ByteSize() / 8


@pytest.mark.parametrize("external", [False, True])
def test_a_graph_is_kept_without_its_weights(tmp_path: Path, external: bool) -> None:
    model, path = _chain(), tmp_path / "graph.onnx"
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, -1], np.int64), "shape"))
    model.graph.initializer.append(numpy_helper.from_array(np.ones((64, 64), np.int8), "bytes"))
    model.metadata_props.add(key="made", value="by a test")
    wanted, size = without_weights(model, (TensorProto.FLOAT, TensorProto.INT8)), model.ByteSize()
    onnx.save_model(model, str(path), save_as_external_data=external, location="graph.data", size_threshold=0)
    read = read_hollow(path)
    assert read.ByteSize() < size / 8
    assert read.SerializeToString(deterministic=True) == wanted.SerializeToString(deterministic=True)
    assert [tensor.name for tensor in read.graph.initializer if not is_hollow(tensor)] == ["shape"]


def test_a_graph_without_its_weights_is_not_read_whole(tmp_path: Path) -> None:
    model = _chain()
    save(model, tmp_path / "graph.onnx")
    assert _traced(lambda: read_hollow(tmp_path / "graph.onnx")) < model.ByteSize() / 8
    assert _traced(lambda: tensor_specs(tmp_path / "graph.onnx")) < model.ByteSize() / 8
    assert [spec.name for spec in tensor_specs(tmp_path / "graph.onnx")[0]] == ["x0"]
    model.graph.initializer.append(numpy_helper.from_array(np.ones((PRODUCTS, WIDTH, WIDTH), np.float32), "one"))
    save(model, tmp_path / "graph.onnx")
    assert _traced(lambda: read_hollow(tmp_path / "graph.onnx")) < model.ByteSize() / 8, "nor any weight whole"


@pytest.mark.parametrize("share", [0.5, 0.999999])
def test_a_graph_that_ends_too_early_is_no_graph(tmp_path: Path, share: float) -> None:
    path = tmp_path / "graph.onnx"
    save(_chain(), path)
    with path.open("r+b") as file:
        file.truncate(int(path.stat().st_size * share))
    with pytest.raises(ValueError, match=r"graph\.onnx: expected a field that ends at byte \d+ or before"):
        read_hollow(path)


def test_a_graph_gives_more_tensors_where_its_file_says_so(tmp_path: Path) -> None:
    path = tmp_path / "graph.onnx"
    save(_chain(), path)
    add_outputs(path, [helper.make_empty_tensor_value_info("x2")])
    read = onnx.load(str(path))
    assert [output.name for output in read.graph.output] == [f"x{PRODUCTS}", "x2"]
    assert read.graph.initializer == _chain().graph.initializer
    feed = {"x0": np.ones((1, WIDTH), np.float32)}
    last, second = open_session(str(path), "test", "cpu", 1).run([f"x{PRODUCTS}", "x2"], feed)
    assert last.shape == second.shape == (1, WIDTH)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells the peak of a process there")
def test_weights_in_fp16_are_not_there_in_fp32_too(tmp_path: Path) -> None:
    path, side = tmp_path / "graph.onnx", 2048
    weights = [np.eye(side, dtype=np.float16)] * 16
    model = helper.make_model(_products(weights, TensorProto.FLOAT16), opset_imports=[helper.make_opsetid("", 20)])
    save(model, path)
    stored = sum(weight.nbytes for weight in weights)
    assert _held(path, "fp16") < 1.4 * stored
    assert _held(path, "fp32") > 2.5 * stored  # what hospitals run: as fast as it can be


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells the peak of a process there")
def test_a_graph_with_weights_in_eight_bits_is_compared_without_all_of_them_in_fp32(tmp_path: Path) -> None:
    eye = np.eye(2048, dtype=np.float32)
    model = helper.make_model(_products([eye] * 12, TensorProto.FLOAT), opset_imports=[helper.make_opsetid("", 20)])
    path = tmp_path / "graph.onnx"
    onnx.save(quantize_weights(model), str(path))
    stored = path.stat().st_size
    assert _held(path, "int4") < 3 * stored
    assert _held(path, "fp32") > 4 * stored  # what hospitals run: as fast as it can be
    assert _printed(COUNTED, path) < 3 * stored, "counting its operations takes them to fp32 too"


@pytest.mark.skipif(sys.platform != "linux", reason="only the GNU C library is told what to give back")
def test_what_is_large_goes_back_when_it_is_freed() -> None:
    done = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 150  # MiB of 196


@pytest.mark.parametrize("lower", [to_half, to_static])
def test_a_graph_with_its_weights_outside_is_lowered_to_the_same(tmp_path: Path, lower: Callable[..., Any]) -> None:
    feeds = [{"x0": np.linspace(-1, 1, WIDTH, dtype=np.float32)[None]}]
    inside = lower(_chain(), feeds, label="test", limit=10.0)
    outside = lower(_outside(tmp_path), feeds, label="test", limit=10.0, outside=tmp_path)
    assert outside.model.SerializeToString(deterministic=True) == inside.model.SerializeToString(deterministic=True)
    assert outside.drift == inside.drift


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="Linux tells there what a process maps")
def test_what_was_traced_lets_go_of_its_weights(tiny_checkpoint: Path, tmp_path: Path) -> None:
    def mapped() -> int:
        return Path("/proc/self/maps").read_text("utf-8").count(str(tiny_checkpoint / "model.safetensors"))

    checkpoint = load_checkpoint(tiny_checkpoint)
    before = mapped()
    for plan in checkpoint_plans(checkpoint, lambda: load_checkpoint(tiny_checkpoint).trrg()):
        (folder := tmp_path / plan.name).mkdir()
        write_trace(plan, folder)
        assert len(list(folder.iterdir())) == 2
        assert mapped() == before > 0


@pytest.mark.parametrize("aside", [False, True], ids=["nothing aside", "some of the program's own aside"])
def test_what_was_there_before_an_export_is_not_looked_through_and_what_it_makes_is(aside: bool) -> None:
    class Knot:
        def __init__(self) -> None:
            self.itself = self

    frozen = gc.get_freeze_count()  # see tests/conftest.py
    gc.unfreeze()
    if aside:
        gc.freeze()
    gone = weakref.ref(Knot())
    with apart():
        looked_at = len(gc.get_objects())
        inside = weakref.ref(Knot())
        release()
        assert inside() is None
    assert gone() is None
    assert (gc.get_freeze_count() > 0) == aside
    assert looked_at < len(gc.get_objects()) / 2 or aside
    gc.unfreeze()
    if frozen:
        gc.freeze()


def test_sections_hold_their_own_weights_only() -> None:
    model = _chain()
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    parts = cut(model)
    sections = Sections(model, parts, weights.__getitem__)
    states = [{"x0": np.ones((1, WIDTH), np.float32)}]

    def run() -> None:
        for index in range(len(parts)):
            (values,) = sections.run(index, states)
            assert len(values) == NODES

    assert _traced(run) < model.ByteSize() / 3


def test_the_clue_encoder_is_closed_before_the_graphs_of_a_report_are_opened(
    fp32_bundle: Path, tiny_checkpoint: Path
) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint)
    reference = run_pytorch(checkpoint, checkpoint.parity_pixels()[:1])
    backend = _Watched("cpu", 1)
    exported = Exported(Bundle.load(fp32_bundle), "fp32", backend)
    report = compare(exported, checkpoint_plans(checkpoint, checkpoint.trrg), reference, limits=LIMITS["fp32"])
    assert report.failures == ()
    assert backend.beside == {"clue_encoder": set(), "vision": set(), "fusion": {"vision"}}


def _outside(folder: Path) -> ModelProto:
    """The chain with its weights in a file of the folder."""
    source = folder / "source.onnx"
    onnx.save_model(_chain(), str(source), save_as_external_data=True, location="source.data")
    model: ModelProto = onnx.load(str(source), load_external_data=False)
    return model


class _Watched(OrtBackend):
    """Notes which graphs are open when one is opened."""

    def __init__(self, device: str, threads: int) -> None:
        super().__init__(device, threads)
        self.beside: dict[str, set[str]] = {}
        self._opened: dict[str, weakref.ref[OrtGraph]] = {}

    def graph(self, path: Path, *, spec: GraphSpec | None = None) -> OrtGraph:
        self.beside[path.stem] = {name for name, graph in self._opened.items() if graph() is not None}
        graph = super().graph(path, spec=spec)
        self._opened[path.stem] = weakref.ref(graph)
        return graph


def _held(graph: Path, precision: str) -> int:
    """The most that comparing a graph takes, in bytes, in a process of its own."""
    return _printed(RUN, precision, graph)


def _printed(program: str, *words: object) -> int:
    command = [sys.executable, "-c", program, *map(str, words)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def _chain() -> ModelProto:
    """x0 (1, 256) through products with weights of 256 KiB."""
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=(WIDTH, WIDTH)).astype(np.float32) / WIDTH**0.5 for _ in range(PRODUCTS)]
    graph = _products(weights, TensorProto.FLOAT)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _products(weights: Sequence[NDArray[Any]], kind: int) -> onnx.GraphProto:
    """x0 (1, side) times one square weight after the other; what each gives is the next one's input."""
    count, side = len(weights), len(weights[0])
    nodes = [helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"x{i + 1}"], name=f"n{i}") for i in range(count)]
    ends = [helper.make_tensor_value_info(name, kind, [1, side]) for name in ("x0", f"x{count}")]
    tensors = [numpy_helper.from_array(weight, f"w{i}") for i, weight in enumerate(weights)]
    return helper.make_graph(nodes, "chain", ends[:1], ends[1:], tensors)


def _traced(step: Callable[[], object]) -> int:
    """The most that Python and NumPy hold for a step, in bytes."""
    tracemalloc.start()
    try:
        step()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
