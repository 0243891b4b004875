import dataclasses
import shutil

import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from torch.nn.functional import normalize

from trrg_sdk.errors import UsageError
from trrg_train.models.backbone import backbone_config
from trrg_train.models.checkpoint import load_checkpoint, save_checkpoint
from trrg_train.models.clue import BankedClue
from trrg_train.models.clue_bank import clue_inputs, embed_bank
from trrg_train.models.config import ModelConfig
from trrg_train.models.fusion import Fusion
from trrg_train.models.injection import HEAT_STRENGTH
from trrg_train.models.interaction import CrossModalInteraction
from trrg_train.models.perceiver import Perceiver
from trrg_train.models.stored import CheckpointMeta
from trrg_train.models.tokenizer import train_tokenizer
from trrg_train.models.trrg import EncodedImages, Prompt, ReportTokens, Trrg

PREPROCESS = {"size": 64}


def unit(*shape):
    return normalize(torch.randn(*shape), dim=-1)


def images(batch=2, patches=4, width=16, joint=16):
    return EncodedImages(torch.randn(batch, patches, width), unit(batch, patches, joint), unit(batch, joint))


def clues(batch=2, count=3, joint=16, override=-1.0):
    bank = [BankedClue(f"clue {i}", "there is", "there is no") for i in range(count)]
    return clue_inputs(bank, unit(count, joint), unit(count, joint), torch.full((batch, count), override))


def report(ids):
    return ReportTokens(ids, torch.ones_like(ids), torch.ones_like(ids, dtype=torch.bool))


@pytest.fixture
def model(tiny_config):
    torch.manual_seed(0)
    model = Trrg(tiny_config, vocab_size=300, prompt=Prompt((1, 5, 6), (1,))).eval()
    heard(model.fusion.interaction)
    return model


@torch.no_grad()
def heard(interaction):
    """Give the branches of an interaction, which start silent, something to say."""
    for parameter in interaction.parameters():
        if not parameter.any():
            parameter.normal_(std=0.3)


def test_the_perceiver_gives_unit_vectors_of_the_contract_shapes(tiny_config):
    perceiver = Perceiver(tiny_config, vocab_size=300).eval()
    patches, patch_joint, global_joint = perceiver.encode_images(torch.randn(3, 1, 64, 64))
    assert patches.shape == (3, 4, 16)
    assert patch_joint.shape == (3, 4, 16)
    assert global_joint.shape == (3, 16)
    assert torch.allclose(patch_joint.norm(dim=-1), torch.ones(3, 4), atol=1e-5)
    texts = perceiver.encode_texts(torch.randint(3, 300, (5, 7)), torch.ones(5, 7, dtype=torch.long))
    assert torch.allclose(texts.norm(dim=-1), torch.ones(5), atol=1e-5)


def test_padding_does_not_change_a_text(tiny_config):
    perceiver = Perceiver(tiny_config, vocab_size=300).eval()
    ids = torch.randint(3, 300, (1, 6))
    mask = torch.ones(1, 6, dtype=torch.long)
    padded = torch.cat((ids, torch.zeros(1, 4, dtype=torch.long)), 1)
    padded_mask = torch.cat((mask, torch.zeros(1, 4, dtype=torch.long)), 1)
    assert torch.allclose(perceiver.encode_texts(ids, mask), perceiver.encode_texts(padded, padded_mask), atol=1e-5)


@pytest.mark.parametrize(
    ("part", "key"), [("vision", "hiden_sizes"), ("clue_encoder", "num_layer"), ("llm", "intermediate")]
)
def test_a_key_that_transformers_does_not_know_is_refused(tiny_model_table, part, key):
    table = {**tiny_model_table, part: {**tiny_model_table[part], key: 8}}
    with pytest.raises(UsageError, match=rf"unknown keys in \[model.{part}\]: {key}; transformers' "):
        Trrg(ModelConfig.from_mapping(table), vocab_size=300, prompt=Prompt((1,), (1,)))


@pytest.mark.parametrize("part", ["vision", "clue_encoder", "llm"])
def test_a_model_type_that_transformers_does_not_know_is_refused(tiny_model_table, part):
    table = {**tiny_model_table, part: {**tiny_model_table[part], "model_type": "resnext"}}
    with pytest.raises(UsageError, match=rf"\[model.{part}\] model_type 'resnext' is not known"):
        Trrg(ModelConfig.from_mapping(table), vocab_size=300, prompt=Prompt((1,), (1,)))


def test_an_alias_of_transformers_is_a_known_key():
    made = backbone_config({"model_type": "gpt2", "hidden_size": 24}, "llm", vocab_size=300)
    assert (made.n_embd, made.vocab_size) == (24, 300)


def test_a_clue_depends_on_its_own_score_and_embedding_only_through_shared_weights(model):
    seen = images(batch=1)
    three = clues(batch=1, count=3)
    many = three._replace(
        positive=torch.cat((three.positive, unit(5, 16))),
        negative=torch.cat((three.negative, unit(5, 16))),
        scale=torch.ones(8),
        offset=torch.zeros(8),
        threshold=torch.full((8,), 0.5),
        override=torch.full((1, 8), -1.0),
    )
    with torch.no_grad():
        few_out, many_out = model.fusion(*seen, three), model.fusion(*seen, many)
    assert few_out.prompt_embeds.shape == (1, 4 + 3, 32)
    assert many_out.prompt_embeds.shape == (1, 4 + 8, 32)
    assert torch.allclose(few_out.clue_logits, many_out.clue_logits[:, :3], atol=1e-5)
    assert torch.allclose(few_out.clue_heat, many_out.clue_heat[:, :3], atol=1e-5)


def test_an_untrained_interaction_changes_nothing_and_learns():
    torch.manual_seed(0)
    layer = CrossModalInteraction(width=16, heads=2, layers=2)
    visual, tokens = torch.randn(1, 4, 16), torch.randn(1, 3, 16)
    made = layer(visual, tokens)
    assert torch.equal(made[0], visual)
    assert torch.equal(made[1], tokens)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        sum(part.square().mean() for part in layer(visual, tokens)).backward()
        optimizer.step()
    assert all(weight.grad.any() for name, weight in layer.named_parameters() if name.endswith("out.weight"))
    assert not torch.equal(layer(visual, tokens)[0], visual)


def test_masked_clues_are_as_if_absent():
    torch.manual_seed(0)
    layer = CrossModalInteraction(width=16, heads=2, layers=2).eval()
    heard(layer)
    visual, tokens = torch.randn(1, 4, 16), torch.randn(1, 3, 16)
    padded = torch.cat((tokens, torch.randn(1, 2, 16)), 1)
    mask = torch.tensor([[True, True, True, False, False]])
    plain_visual, plain_tokens = layer(visual, tokens)
    masked_visual, masked_tokens = layer(visual, padded, mask)
    assert torch.allclose(plain_visual, masked_visual, atol=1e-5)
    assert torch.allclose(plain_tokens, masked_tokens[:, :3], atol=1e-5)
    assert not torch.allclose(plain_visual, layer(visual, padded)[0], atol=1e-3)


def test_an_override_moves_the_prompt_and_leaves_what_is_perceived(model):
    seen = images(batch=1)
    base = clues(batch=1)
    low = base._replace(override=torch.tensor([[0.0, -1.0, -1.0]]))
    high = base._replace(override=torch.tensor([[1.0, -1.0, -1.0]]))
    with torch.no_grad():
        a, b = model.fusion(*seen, low), model.fusion(*seen, high)
    assert torch.equal(a.clue_logits, b.clue_logits)
    assert (a.prompt_embeds - b.prompt_embeds).abs().max() > 1e-3


def test_a_clue_token_says_where_as_loud_as_whether(tiny_config):
    """The side of a finding is read from it: what the patches say must not drown in what the score says."""
    torch.manual_seed(0)
    injection = Fusion(tiny_config, vision_width=16, llm_width=32).injection
    generator = torch.Generator().manual_seed(0)
    patches, clue = (torch.randn(*n, generator=generator) for n in ((1, tiny_config.patches, 16), (3, 16)))
    patches, clue = (torch.nn.functional.normalize(t, dim=-1) for t in (patches, clue))
    present, absent = torch.full((1, 3), 0.95), torch.full((1, 3), 0.05)
    with torch.no_grad():
        token = injection(patches, clue, present)
        where = (injection(patches.flip(1), clue, present) - token).norm()
        whether = (injection(patches, clue, absent) - token).norm()
    assert where > 0.2 * whether


def test_a_clue_token_starts_with_its_heat(tiny_config):
    """Where a clue is hot can be read from the token by one linear rule for all clues, before any training."""
    torch.manual_seed(0)
    injection = Fusion(tiny_config, vision_width=16, llm_width=32).injection
    generator = torch.Generator().manual_seed(0)
    patches, clue = (torch.randn(*n, generator=generator) for n in ((1, tiny_config.patches, 16), (3, 16)))
    patches, clue = (torch.nn.functional.normalize(t, dim=-1) for t in (patches, clue))
    with torch.no_grad():
        heat = (patches @ clue.t())[0].t()  # (C, N)
        rows = injection.project((patches.unsqueeze(1) * clue.unsqueeze(1)).flatten(2))[0] - injection.project.bias
    strength = HEAT_STRENGTH * (tiny_config.patches * 16) ** -0.5
    assert torch.allclose(rows[:, : tiny_config.patches], strength * heat, atol=1e-5)


def test_tokens_that_do_not_count_give_no_loss(model):
    seen, inputs, labels = images(batch=1), clues(batch=1), torch.zeros(1, 3)
    tokens = report(torch.randint(3, 300, (1, 4)))
    last = tokens.ids.clone()
    last[0, 3] = (last[0, 3] + 1) % 297 + 3
    without = tokens.counted.clone()
    without[0, 3] = False
    with torch.no_grad():
        losses = [
            model(seen, inputs, ReportTokens(ids, tokens.mask, counted), labels).language_loss.item()
            for ids in (tokens.ids, last)
            for counted in (tokens.counted, without)
        ]
    assert losses[0] != pytest.approx(losses[2], abs=1e-4)
    assert losses[1] == pytest.approx(losses[3], abs=1e-6)


def test_the_gate_is_half_exactly_at_the_threshold(model, monkeypatch):
    seen, inputs = images(batch=1), clues(batch=1)
    inputs = inputs._replace(scale=0.1 * inputs.scale)  # a probability very near to 1 has no exact logit in fp32
    gates = []
    original = model.fusion.injection.forward
    monkeypatch.setattr(
        model.fusion.injection, "forward", lambda p, c, gate: (gates.append(gate), original(p, c, gate))[1]
    )
    with torch.no_grad():
        probability = torch.sigmoid(model.fusion(*seen, inputs).clue_logits)[0]
        model.fusion(*seen, inputs._replace(threshold=probability))
    assert torch.allclose(gates[1], torch.full((1, 3), 0.5), atol=1e-5)


def test_switches_of_the_ablation(tiny_config):
    bare = dataclasses.replace(tiny_config, clue_injection=False, interaction_layers=0)
    fusion = Fusion(bare, vision_width=16, llm_width=32)
    assert fusion(*images(), clues()).prompt_embeds.shape == (2, 4, 32)
    with pytest.raises(UsageError, match="interaction"):
        dataclasses.replace(tiny_config, clue_injection=False)
    silent = Trrg(tiny_config, vocab_size=300, prompt=Prompt((1,), (1,)), consistency_weight=0.0)
    ids = torch.randint(3, 300, (2, 6))
    output = silent(images(), clues(), report(ids), torch.zeros(2, 3))
    assert output.consistency_loss.item() == 0.0
    assert output.loss.item() == output.language_loss.item()


def test_the_loss_is_that_of_language_and_of_consistency_with_sides(model):
    seen, inputs, tokens, labels = images(), clues(), report(torch.randint(3, 300, (2, 6))), torch.zeros(2, 3)
    sides = torch.full((2, 3, 2), float("nan"))
    sides[0, 1], sides[1, 2] = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    with torch.no_grad():
        without = model(seen, inputs, tokens, labels)
        of_left, of_right = (model(seen, inputs, tokens, labels, s) for s in (sides, 1.0 - sides))
    assert without.side_loss.item() == 0.0
    assert of_left.side_loss.item() != pytest.approx(of_right.side_loss.item(), abs=1e-4)
    assert of_left.consistency_loss.item() == pytest.approx(without.consistency_loss.item(), abs=1e-6)
    assert of_left.loss.item() != pytest.approx(of_right.loss.item(), abs=1e-4)
    for output in (without, of_left, of_right):
        extra = 0.5 * (output.consistency_loss.item() + output.side_loss.item())  # 0.5: the default consistency_weight
        assert output.loss.item() == pytest.approx(output.language_loss.item() + extra, abs=1e-5)


def test_padding_of_a_report_changes_no_loss(model):
    seen, inputs, labels = images(), clues(), torch.zeros(2, 3)
    ids = torch.randint(3, 300, (2, 6))
    pad = torch.zeros(2, 5, dtype=torch.long)
    with torch.no_grad():
        a = model(seen, inputs, report(ids), labels)
        b = model(seen, inputs, ReportTokens(*(torch.cat((t, pad.to(t.dtype)), 1) for t in report(ids))), labels)
    assert a.language_loss.item() == pytest.approx(b.language_loss.item(), abs=1e-5)
    assert a.consistency_loss.item() == pytest.approx(b.consistency_loss.item(), abs=1e-5)


def test_the_loss_predicts_the_next_token(model):
    """The first report token is predicted from the prompt alone: changing it must not change its own logits."""
    seen, inputs, labels = images(batch=1), clues(batch=1), torch.zeros(1, 3)
    ids = torch.randint(3, 300, (1, 4))
    other = ids.clone()
    other[0, 0] = (other[0, 0] + 1) % 297 + 3
    with torch.no_grad():
        a = model(seen, inputs, report(ids), labels).logits
        b = model(seen, inputs, report(other), labels).logits
    assert torch.allclose(a[:, 0], b[:, 0], atol=1e-5)
    assert not torch.allclose(a[:, 1], b[:, 1], atol=1e-4)


def test_generation_starts_where_training_predicts(model):
    seen, inputs = images(batch=1), clues(batch=1)
    ids, logits = model.generate(seen, inputs, max_new_tokens=5)
    assert logits.shape == (1, 3)
    with torch.no_grad():
        forced = model(seen, inputs, report(ids), torch.zeros(1, 3)).logits
    assert forced.argmax(-1)[0, : ids.shape[1]].tolist() == ids[0].tolist()


def test_frozen_parts_get_no_gradient_and_lora_trains_adapters_only(tiny_config):
    config = dataclasses.replace(tiny_config, lora_rank=2)
    model = Trrg(config, vocab_size=300, prompt=Prompt((1,), (1,)))
    model.freeze_perceiver()
    ids = torch.randint(3, 300, (2, 6))
    model(images(), clues(), report(ids), torch.zeros(2, 3)).loss.backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert not [n for n in trained if n.startswith(("perceiver", "fusion.perception"))]
    assert all("lora_" in n for n in trained if n.startswith("llm"))
    assert any("lora_" in n for n in trained)
    assert any(n.startswith("fusion.injection") for n in trained)


def test_a_checkpoint_comes_back_equal_with_adapters_merged(tiny_config, tmp_path):
    torch.manual_seed(1)
    tokenizer = train_tokenizer(["There is an effusion.", "There is no effusion."], vocab_size=300)
    vocab = tokenizer.get_vocab_size()
    config = dataclasses.replace(tiny_config, lora_rank=2)
    model = Trrg(config, vocab_size=vocab, prompt=Prompt((1, 4), (1,))).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    seen, inputs = images(batch=1), clues(batch=1)
    ids = torch.randint(3, vocab, (1, 5))
    with torch.no_grad():
        before = model(seen, inputs, report(ids), torch.zeros(1, 3)).logits
    meta = CheckpointMeta(
        stage=2, clues=(BankedClue("X", "a", "b"),), preprocess=PREPROCESS, prefix_ids=(1, 4), suffix_ids=(1,)
    )
    save_checkpoint(tmp_path / "c", model=model, config=config, tokenizer=tokenizer, meta=meta)
    loaded = load_checkpoint(tmp_path / "c")
    with torch.no_grad():
        after = loaded.trrg()(seen, inputs, report(ids), torch.zeros(1, 3)).logits
    assert torch.allclose(before, after, atol=1e-4)
    assert loaded.meta == meta
    assert not (tmp_path / "c.writing").exists()


def test_a_checkpoint_that_lacks_a_file_or_a_weight_is_refused(tiny_config, tmp_path):
    from safetensors.torch import load_file, save_file

    tokenizer = train_tokenizer(["There is an effusion."], vocab_size=300)
    perceiver = Perceiver(tiny_config, vocab_size=tokenizer.get_vocab_size())
    meta = CheckpointMeta(stage=1, clues=(), preprocess=PREPROCESS)
    folder = tmp_path / "c"
    save_checkpoint(folder, model=perceiver, config=tiny_config, tokenizer=tokenizer, meta=meta)
    with pytest.raises(UsageError, match="stage-1"):
        load_checkpoint(folder).trrg()
    weights = load_file(folder / "model.safetensors")
    weights.pop("joint.text.1.bias")
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(UsageError, match="1 missing .such as joint.text.1.bias."):
        load_checkpoint(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UsageError, match="tokenizer.json"):
        load_checkpoint(folder)


def test_a_checkpoint_needs_no_other_folder(tiny_config, tmp_path):
    tokenizer = train_tokenizer(["There is an effusion."], vocab_size=300)
    vocab = tokenizer.get_vocab_size()
    source = Trrg(tiny_config, vocab_size=vocab, prompt=Prompt((1,), (1,)))
    parts = {
        "llm": source.llm,
        "vision": source.perceiver.vision.backbone,
        "clue_encoder": source.perceiver.clue_encoder.encoder,
    }
    for name, part in parts.items():
        part.save_pretrained(tmp_path / name)
    config = dataclasses.replace(tiny_config, **{f"{name}_path": str(tmp_path / name) for name in parts})
    model = Trrg(config, vocab_size=vocab, prompt=Prompt((1,), (1,)))
    assert torch.equal(model.llm.lm_head.weight, source.llm.lm_head.weight)
    meta = CheckpointMeta(stage=2, clues=(), preprocess=PREPROCESS, prefix_ids=(1,), suffix_ids=(1,))
    save_checkpoint(tmp_path / "c", model=model, config=config, tokenizer=tokenizer, meta=meta)
    for name in parts:
        shutil.rmtree(tmp_path / name)
    loaded = load_checkpoint(tmp_path / "c").trrg()
    assert torch.equal(loaded.llm.lm_head.weight, source.llm.lm_head.weight)
    assert not [
        v for k, v in dataclasses.asdict(load_checkpoint(tmp_path / "c").config).items() if k.endswith("_path") and v
    ]


def test_prompts_of_the_bank_are_embedded_in_order(tiny_config):
    tokenizer = train_tokenizer(["There is an effusion.", "There is no effusion."], vocab_size=300)
    perceiver = Perceiver(tiny_config, vocab_size=tokenizer.get_vocab_size()).eval()
    bank = [BankedClue("A", "There is an effusion.", "No."), BankedClue("B", "No.", "There is an effusion.")]
    positive, negative = embed_bank(bank, perceiver, tokenizer, max_length=48)
    assert torch.allclose(positive[0], negative[1], atol=1e-5)
    assert not torch.allclose(positive[0], negative[0], atol=1e-3)
    with pytest.raises(ValueError, match="tokens"):
        embed_bank(bank, perceiver, tokenizer, max_length=2)
