"""A decoder of real report text to measure drafts with: trained on the IU train reports, exported by our own code.

    python tests/benchmarks/iu_decoder.py --reports iu_reports.jsonl.gz --out runs/iu        # again: goes on
    python tests/benchmarks/iu_decoder.py --reports iu_reports.jsonl.gz --out runs/iu --export-only

A Llama (wide and flat, so that a pass is bound by memory as a large one is) learns the findings of R2Gen's train part
from prompt embeddings, one for each label and each MeSH heading of the study. The folder gets what ``iu_workload.py``
loads: the decoder in fp32, int8 and int4 for ONNX Runtime and as a graph of standard operators for OpenVINO, token
embeddings, tokenizer, prompts of the val studies, and the train reports for the report store. All of it is made of
reports that must not be passed on: keep the folder to yourself. Training a width of 1024 takes 26 minutes of two cores
(AVX-512).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from iu_export import write_decoders, write_reports, write_studies
from iu_reports import IuStudy, condition, known_words, read_studies
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from trrg_train.models.tokenizer import BOS_ID, EOS_ID, PAD_ID, load_tokenizer, train_tokenizer

VOCABULARY = 3000
BATCH = 16
HEAD = 64
LAYERS = 3
POSITIONS = 512
IGNORED = -100
Condition = tuple[tuple[int, ...], ...]


class IuDecoder(nn.Module):
    """Prompt embeddings and a Llama."""

    def __init__(self, words: int, vocabulary: int, width: int) -> None:
        """Make one without a trained weight.

        Args:
            words: That conditions are made of.
            vocabulary: Tokens.
            width: Dl, a multiple of :data:`HEAD`.
        """
        super().__init__()
        config = LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            num_hidden_layers=LAYERS,
            intermediate_size=width * 11 // 4,
            num_attention_heads=width // HEAD,
            num_key_value_heads=width // HEAD,
            max_position_embeddings=POSITIONS,
            tie_word_embeddings=False,
            pad_token_id=PAD_ID,
            bos_token_id=BOS_ID,
            eos_token_id=EOS_ID,
        )
        self.llm = LlamaForCausalLM(config)
        self.words = nn.EmbeddingBag(words, width, mode="sum")
        nn.init.normal_(self.words.weight, std=self.llm.config.initializer_range)

    def prompt(self, positions: Condition) -> Tensor:
        """Embed a condition: float32 (1 + positions, Dl), the start token last."""
        start = self.llm.get_input_embeddings().weight[BOS_ID : BOS_ID + 1]
        if not positions:
            return start
        flat = torch.tensor([word for position in positions for word in position])
        offsets = torch.tensor(np.cumsum([0, *map(len, positions[:-1])]))
        return torch.cat([self.words(flat, offsets), start])

    def forward(self, conditions: list[Condition], tokens: list[list[int]], labels: Tensor) -> dict[str, Tensor]:
        """The mean loss of the reports' tokens.

        Args:
            conditions: Of B studies.
            tokens: Of each report, with the end token.
            labels: int64 (B, L), of each position of prompt and report the token, ``IGNORED`` for the prompt.
        """
        table = self.llm.get_input_embeddings()
        rows = [
            torch.cat([self.prompt(known), table(torch.tensor(ids))])
            for known, ids in zip(conditions, tokens, strict=True)
        ]
        embeds = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return {"loss": self.llm(inputs_embeds=embeds, labels=labels, use_cache=False).loss}


def collate(examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Make a batch of ``conditions``, ``tokens`` and ``labels``."""
    conditions = [example["condition"] for example in examples]
    tokens = [example["input_ids"] for example in examples]
    rows = [torch.tensor([IGNORED] * (len(known) + 1) + ids) for known, ids in zip(conditions, tokens, strict=True)]
    labels = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=IGNORED)
    return {"conditions": conditions, "tokens": tokens, "labels": labels}


def examples_of(studies: Sequence[IuStudy], tokenizer: Tokenizer, known: dict[str, int]) -> list[dict[str, Any]]:
    """Tokens of each report and what is known of its study; batches are of reports about as long."""
    return [
        {
            "condition": condition(study, known),
            "input_ids": [*tokenizer.encode(study.text).ids, EOS_ID],
        }
        for study in studies
    ]


def tokenizer_of(studies: Sequence[IuStudy], folder: Path) -> Tokenizer:
    """The tokenizer of the folder, learnt from these studies when there is none."""
    path = folder / "tokenizer.json"
    if not path.exists():
        train_tokenizer((study.text for study in studies), vocab_size=VOCABULARY).save(str(path))
    return load_tokenizer(path)


def train(model: IuDecoder, examples: list[dict[str, Any]], folder: Path, *, epochs: int, width: int) -> None:
    """Train to the end, from the last step that was kept if there is one."""
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=epochs,
        per_device_train_batch_size=BATCH,
        train_sampling_strategy="group_by_length",
        learning_rate=0.5 / width,
        lr_scheduler_type="cosine",
        warmup_steps=30,
        weight_decay=0.1,
        use_cpu=True,
        save_steps=50,
        save_total_limit=1,
        logging_steps=10,
        report_to=[],
        remove_unused_columns=False,
        label_names=["labels"],
        disable_tqdm=True,
        seed=0,
    )
    trainer = Trainer(model=model, args=arguments, data_collator=collate, train_dataset=examples)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)) if folder.exists() else None)


def restored(model: IuDecoder, folder: Path) -> IuDecoder:
    """The model of the last step that was kept."""
    from safetensors.torch import load_model

    if (last := get_last_checkpoint(str(folder))) is None:
        raise SystemExit(f"{folder}: expected a training step that was kept; train first")
    load_model(model, Path(last) / "model.safetensors")
    return model.eval()


@torch.no_grad()
def export(
    model: IuDecoder, tokenizer: Tokenizer, parts: tuple[list[dict[str, Any]], list[dict[str, Any]]], folder: Path
) -> None:
    """Write what ``iu_workload.py`` loads.

    Args:
        model: Trained.
        tokenizer: Its own.
        parts: Examples of train, for report stores, and of val, to be written about.
        folder: Where to.
    """
    prompts = [model.prompt(one["condition"]).numpy() for one in parts[1]]
    write_decoders(model.llm, tokenizer, folder, prompt=max(map(len, prompts)))
    write_reports([one["input_ids"] for one in parts[0]], folder)
    write_studies(folder, prompts, [one["input_ids"][:-1] for one in parts[1]])


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reports", type=Path, required=True, help="iu_reports.jsonl.gz")
    parser.add_argument("--out", type=Path, required=True, help="folder of its own, never to be passed on")
    parser.add_argument("--epochs", type=int, default=8, help="the more, the longer it takes and the less texts repeat")
    parser.add_argument("--width", type=int, default=512, help="of the decoder: 512 is 13 M parameters, 1024 is 45 M")
    parser.add_argument("--export-only", action="store_true", help="take the last step that was kept")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    studies, val = (read_studies(arguments.reports, split) for split in ("train", "val"))
    tokenizer, known = tokenizer_of(studies, arguments.out), known_words(studies)
    torch.manual_seed(0)
    model = IuDecoder(len(known), tokenizer.get_vocab_size(), arguments.width)
    parts = [examples_of(part, tokenizer, known) for part in (studies, val)]
    if not arguments.export_only:
        train(model, parts[0], arguments.out / "steps", epochs=arguments.epochs, width=arguments.width)
    export(restored(model, arguments.out / "steps"), tokenizer, (parts[0], parts[1]), arguments.out)


if __name__ == "__main__":
    main()
