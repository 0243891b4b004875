"""What our Trainer does otherwise than that of transformers."""

import dataclasses

import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from types import SimpleNamespace

from torch import nn
from transformers import AutoModel, Trainer, ViTConfig

from trrg_sdk.errors import UsageError
from trrg_train import trainer
from trrg_train.config import OptimConfig
from trrg_train.draws import Draws
from trrg_train.models.trrg import Prompt, Trrg
from trrg_train.trainer import (
    StudyTrainer,
    ready_for_processes,
    ready_to_shard,
    training_arguments,
    whole_steps,
    without_weights,
)


@pytest.fixture
def model(tiny_config):
    """All parts of both stages, and a ViT, which has parameters of its own."""
    model = Trrg(dataclasses.replace(tiny_config, lora_rank=2), vocab_size=99, prompt=Prompt((1,), (1,)))
    model.vit = AutoModel.from_config(ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1))
    return model


@pytest.mark.parametrize(
    ("precision", "found", "warned"),
    [
        ("bf16", {"avx2", "avx512f"}, True),
        ("bf16", {"avx512f", "avx512_bf16"}, False),
        ("bf16", set(), False),
        ("fp32", {"avx2"}, False),
    ],
    ids=["imitated", "there", "not known", "not asked for"],
)
def test_bf16_that_the_processor_imitates_is_said(monkeypatch, caplog, tmp_path, precision, found, warned):
    monkeypatch.setattr(trainer, "instructions", lambda: frozenset(found))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    training_arguments(OptimConfig(1, 4, 1e-3, precision=precision), tmp_path, seed=1)
    assert ("imitates" in caplog.text) == warned


def test_only_weights_of_layers_decay(model, tmp_path):
    arguments = training_arguments(OptimConfig(1, 4, 1e-3, weight_decay=0.5), tmp_path, seed=1)
    optimizer = StudyTrainer(model=model, args=arguments, validation=None).create_optimizer()
    decay = {id(weight): group["weight_decay"] for group in optimizer.param_groups for weight in group["params"]}
    trained = {name: decay[id(weight)] for name, weight in model.named_parameters() if weight.requires_grad}
    pulled, free = ({name for name, value in trained.items() if value == kept} for kept in (0.5, 0.0))
    assert pulled | free == trained.keys()
    for part in ("convolution.weight", "query.weight", "lora_A.default.weight", "injection.project.weight"):
        assert any(name.endswith(part) for name in pulled), part
    last = {name.rpartition(".")[2] for name in free}
    assert last == {"weight", "bias", "log_scale", "polarity", "position", "cls_token", "position_embeddings"}
    assert all(model.get_parameter(name).ndim == 1 or "embeddings" in name for name in free if name.endswith("weight"))
    assert not any("norm" in name.lower() or "embedding" in name for name in pulled if "patch_embed" not in name)
    default = set(Trainer.get_decay_parameter_names(None, model))
    missed = {
        "perceiver.perception.log_scale",
        "fusion.injection.polarity",
        "fusion.mapper.position",
        "vit.embeddings.cls_token",
    }
    assert missed <= default & free, "transformers would let these decay"
    assert any(name.endswith("normalization.weight") for name in default & free)


def test_draws_that_fill_no_step_are_left_out():
    draws = Draws(range(10), epochs=1, seed=1)
    assert [draw.number for draw in whole_steps(draws, 4)] == list(range(8))
    assert len(whole_steps(draws, 5)) == len(whole_steps(draws, 11)) == 10


def test_several_gpus_in_one_process_are_refused_and_batch_norm_is_shared_between_gpus():
    task = nn.Sequential(nn.BatchNorm2d(3))
    with pytest.raises(UsageError, match="accelerate launch --num_processes 4"):
        ready_for_processes(task, SimpleNamespace(n_gpu=4))
    one, two = (SimpleNamespace(n_gpu=1, world_size=2, device=torch.device(kind)) for kind in ("cpu", "cuda"))
    assert type(ready_for_processes(task, one)[0]) is nn.BatchNorm2d
    assert type(ready_for_processes(task, two)[0]) is nn.SyncBatchNorm


def test_what_fsdp_spreads_is_named_by_the_models_and_contiguous(model):
    task = ready_to_shard(model)
    assert {"LlamaDecoderLayer", "BertLayer", "ViTLayer", "ResNetConvLayer"} <= set(task._no_split_modules)
    assert all(parameter.is_contiguous() and parameter.ndim for parameter in task.parameters())


def test_a_copy_without_weights_takes_those_that_are_gathered(model):
    empty = without_weights(model)
    assert all(parameter.is_meta for parameter in empty.parameters())
    empty.load_state_dict(model.state_dict(), assign=True)
    for name, weight in empty.state_dict().items():
        torch.testing.assert_close(weight, model.state_dict()[name])
    rotary = empty.llm.get_base_model().model.rotary_emb.inv_freq
    torch.testing.assert_close(rotary, model.llm.get_base_model().model.rotary_emb.inv_freq)
