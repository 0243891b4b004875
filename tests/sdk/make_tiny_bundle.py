"""Builds ``tests/sdk/tiny_bundle``: a real bundle with random weights, small enough to be committed.

    python tests/sdk/make_tiny_bundle.py tests/sdk/tiny_bundle

Needs the ``export`` extra. The tests that read the bundle need neither torch nor onnx. ``tiny_bundle_expected.npz``
beside the bundle holds what torch computed with the same weights.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from trrg_sdk import manifest as m
from trrg_sdk.bundle import write_manifest
from trrg_sdk.gate_specs import PopulationSpec
from trrg_sdk.preprocess import Preprocess

SIZE, GRID, PATCH_WIDTH, JOINT, WIDTH, LAYERS, HEADS, MAX_LENGTH = 16, 2, 12, 8, 16, 2, 2, 128
HEAD_SIZE = 16  # GroupQueryAttention takes multiples of 16 only, and says so at the first run
FEED_FORWARD, NEW_TOKENS = 32, 48
CLUES = (
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
    "No Finding",
)
SENTENCES = (
    "FINDINGS: The heart is enlarged. There is a small left pleural effusion. No pneumothorax is seen.",
    "FINDINGS: The lungs are clear. There is no pleural effusion. The heart is of normal size.",
    "There is a pneumothorax. There is no pneumothorax. IMPRESSION: No acute abnormality.",
)


AXES: dict[str, dict[int, str]] = {
    "pixels": {0: "batch"},
    "input_ids": {0: "prompts", 1: "length"},
    "attention_mask": {0: "prompts", 1: "length"},
    "patches": {0: "batch"},
    "patch_joint": {0: "batch"},
    "global_joint": {0: "batch"},
    "clue_positive": {0: "clues"},
    "clue_negative": {0: "clues"},
    "clue_scale": {0: "clues"},
    "clue_offset": {0: "clues"},
    "clue_threshold": {0: "clues"},
    "clue_override": {0: "batch", 1: "clues"},
}


class Vision(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, PATCH_WIDTH, SIZE // GRID, SIZE // GRID)
        self.joint = nn.Linear(PATCH_WIDTH, JOINT)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        patches = self.patch(pixels).flatten(2).transpose(1, 2)  # (B, N, Dv)
        joint = self.joint(patches)
        return patches, normalize(joint, dim=-1), normalize(joint.mean(1), dim=-1)


class ClueEncoder(nn.Module):
    def __init__(self, vocab: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab, JOINT)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        mask = attention_mask[..., None].to(torch.float32)
        return normalize((self.embedding(input_ids) * mask).sum(1) / mask.sum(1), dim=-1)


class Fusion(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.visual = nn.Linear(PATCH_WIDTH, WIDTH)
        self.clue = nn.Linear(GRID * GRID * JOINT, WIDTH)

    def forward(
        self,
        patches: Tensor,
        patch_joint: Tensor,
        global_joint: Tensor,
        clue_positive: Tensor,
        clue_negative: Tensor,
        clue_scale: Tensor,
        clue_offset: Tensor,
        clue_threshold: Tensor,
        clue_override: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        margin = clue_positive - clue_negative  # (C, De)
        logits = global_joint @ margin.T * clue_scale + clue_offset
        forced = torch.logit(clue_override.clamp(1e-4, 1 - 1e-4))
        logits = torch.where(clue_override < 0, logits, forced)
        heat = torch.sigmoid((patch_joint @ margin.T * clue_scale + clue_offset).transpose(1, 2))  # (B, C, N)
        injected = patch_joint[:, None] * clue_positive[None, :, None]  # (B, C, N, De)
        gate = torch.sigmoid(logits - torch.logit(clue_threshold))[..., None]
        tokens = torch.cat([self.visual(patches), self.clue(injected.flatten(2)) * gate], dim=1)
        return tokens, logits, heat


def make_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        SENTENCES, trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return tokenizer


def export(module: nn.Module, path: Path, arguments: dict[str, Tensor], outputs: list[str]) -> None:
    """Write one graph whose free axes are those in ``AXES``."""
    torch.onnx.export(
        module.eval(),
        tuple(arguments.values()),
        str(path),
        dynamo=True,
        external_data=False,
        verbose=False,
        input_names=list(arguments),
        output_names=outputs,
        dynamic_shapes=tuple({axis: torch.export.Dim(name) for axis, name in AXES[key].items()} for key in arguments),
    )
    graph = onnx.load(path)
    for part in [graph, *graph.graph.node, *graph.graph.value_info, *graph.graph.input, *graph.graph.output]:
        del part.metadata_props[:]  # stack traces with the paths of the machine that exported
    onnx.save(graph, path)


def export_three(graphs: Path, vision: Vision, encoder: ClueEncoder, fusion: Fusion) -> None:
    pixels, ids, clues = torch.zeros(2, 1, SIZE, SIZE), torch.ones(3, 5, dtype=torch.int64), len(CLUES)
    patches, patch_joint, global_joint = vision(pixels)
    export(vision, graphs / "vision.onnx", {"pixels": pixels}, ["patches", "patch_joint", "global_joint"])
    export(encoder, graphs / "clue_encoder.onnx", {"input_ids": ids, "attention_mask": ids}, ["clue_joint"])
    arguments = {
        "patches": patches,
        "patch_joint": patch_joint,
        "global_joint": global_joint,
        "clue_positive": torch.ones(clues, JOINT),
        "clue_negative": torch.zeros(clues, JOINT),
        "clue_scale": torch.ones(clues),
        "clue_offset": torch.zeros(clues),
        "clue_threshold": torch.full((clues,), 0.5),
        "clue_override": torch.full((2, clues), -1.0),
    }
    export(fusion, graphs / "fusion.onnx", arguments, ["prompt_embeds", "clue_logits", "clue_heat"])


def export_decoder(model: LlamaForCausalLM, tokenizer: Tokenizer, graphs: Path) -> None:
    from onnxruntime_genai.models import builder

    with tempfile.TemporaryDirectory() as scratch:
        source, target, cache = Path(scratch, "source"), Path(scratch, "target"), Path(scratch, "cache")
        model.save_pretrained(source)
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
        ).save_pretrained(source)
        where = ("", str(source), str(target), "fp32", "cpu", str(cache))
        options = builder.parse_extra_options(
            *where, ["exclude_embeds=true", "hf_token=false", "filename=decoder.onnx"]
        )
        builder.create_model(*where, **options)
        graph = onnx.load(target / "decoder.onnx")
    onnx.save(graph, graphs / "decoder.onnx")  # with its weights inside


def specs(path: Path) -> tuple[tuple[m.TensorSpec, ...], tuple[m.TensorSpec, ...]]:
    graph = onnx.load(path).graph

    def spec(value: onnx.ValueInfoProto) -> m.TensorSpec:
        tensor = value.type.tensor_type
        axes = tuple(axis.dim_param or axis.dim_value for axis in tensor.shape.dim)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        return m.TensorSpec(value.name, str(dtype), axes)

    return tuple(spec(value) for value in graph.input), tuple(spec(value) for value in graph.output)


def encode(tokenizer: Tokenizer, encoder: ClueEncoder, prompts: list[str]) -> np.ndarray:
    rows = []
    for prompt in prompts:
        ids = torch.tensor([tokenizer.encode(prompt).ids])
        rows.append(encoder(ids, torch.ones_like(ids)).numpy())
    return np.concatenate(rows)


def make_manifest(folder: Path, tokenizer: Tokenizer) -> m.Manifest:
    vocab = tokenizer.get_vocab_size()
    graphs = {}
    for name in m.GRAPH_NAMES:
        inputs, outputs = specs(folder / "graphs" / f"{name}.onnx")
        graphs[name] = m.GraphSpec(f"graphs/{name}.onnx", "fp32", inputs, outputs)
    prefix = (1, *tokenizer.encode("Describe the chest film.", add_special_tokens=False).ids)
    suffix = tuple(tokenizer.encode("FINDINGS:", add_special_tokens=False).ids)
    return m.Manifest(
        schema_version=m.SCHEMA_VERSION,
        bundle_id="tiny-00000000",
        model=m.ModelSpec("tiny", "0" * 64),
        files={},
        graphs=graphs,
        preprocess=Preprocess(size=SIZE).to_manifest(),
        population=PopulationSpec(minimum_age=18.0, views=("PA", "AP")),
        distance=None,
        patch_grid=(GRID, GRID),
        prompt=m.PromptSpec(prefix, suffix, ("prefix", "visual", "clues", "suffix")),
        tokenizer=m.TokenizerSpec("tokenizer.json", 1, 2, 0, vocab),
        token_embedding=m.ArraySpec("token_embedding.npy", "float32", (vocab, WIDTH)),
        observations=CLUES,
        clues=tuple(
            m.ClueSpec(name, f"There is {name.lower()}.", f"There is no {name.lower()}.", 4.0, 0.0, 0.5)
            for name in CLUES
        ),
        custom_clue=m.CustomClueSpec(4.0, 0.0, 0.5, 24),
        clue_bank=m.ArraySpec("clue_bank.npz", "float32", ("clues", JOINT)),
        decoding=m.DecodingSpec("greedy", NEW_TOKENS),
        drafts=None,
        decoder=m.DecoderSpec(LAYERS, HEADS, HEAD_SIZE, WIDTH, MAX_LENGTH),
        targets={"ort-cpu": m.TargetSpec("onnxruntime", "1.32", {}, ())},
        provenance=m.ProvenanceSpec("0.1.0", "test", "0" * 64, "random weights", {"torch": torch.__version__}),
        evaluation={},
        parity={"fp32": {}},
        intended_use="Tests only: random weights.",
    )


@torch.no_grad()
def greedy(model: LlamaForCausalLM, embeds: Tensor, steps: int) -> tuple[list[int], list[float]]:
    ids: list[int] = []
    logprobs = []
    for _ in range(steps):
        row = model(inputs_embeds=embeds[None]).logits[0, -1]
        ids.append(int(row.argmax()))
        logprobs.append(float(row.log_softmax(-1).max()))
        embeds = torch.cat([embeds, model.get_input_embeddings()(torch.tensor(ids[-1:]))])
    return ids, logprobs


@torch.no_grad()
def build(folder: Path) -> None:
    torch.manual_seed(0)
    shutil.rmtree(folder, ignore_errors=True)
    graphs = folder / "graphs"
    graphs.mkdir(parents=True)
    tokenizer = make_tokenizer()
    vocab = tokenizer.get_vocab_size()
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=WIDTH,
        intermediate_size=FEED_FORWARD,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        head_dim=HEAD_SIZE,
        max_position_embeddings=MAX_LENGTH,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.6,  # large enough that greedy text does not repeat one token
    )
    vision, encoder, fusion, model = Vision(), ClueEncoder(vocab), Fusion(), LlamaForCausalLM(config).eval()
    export_three(graphs, vision, encoder, fusion)
    export_decoder(model, tokenizer, graphs)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    table = model.get_input_embeddings().weight
    np.save(folder / "token_embedding.npy", table.numpy())
    manifest = make_manifest(folder, tokenizer)
    bank = {
        key: encode(tokenizer, encoder, [getattr(clue, key) for clue in manifest.clues])
        for key in ("positive", "negative")
    }
    np.savez(folder / "clue_bank.npz", **bank)
    (folder / "model_card.md").write_text("# tiny\n\nRandom weights for tests. It knows nothing.\n", encoding="utf-8")
    write_manifest(folder, manifest)
    prompt = torch.randn(12, WIDTH, generator=torch.Generator().manual_seed(7))
    ids, logprobs = greedy(model, prompt, NEW_TOKENS)
    pixels = torch.randn(1, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(8))
    patches, patch_joint, global_joint = vision(pixels)
    expected = {"prompt": prompt, "pixels": pixels, "patches": patches, "global_joint": global_joint}
    np.savez(
        folder.parent / "tiny_bundle_expected.npz",
        ids=np.array(ids),
        logprobs=np.array(logprobs),
        **{key: value.numpy() for key, value in expected.items()},
    )


if __name__ == "__main__":
    build(Path(sys.argv[1]))
