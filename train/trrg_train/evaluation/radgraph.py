"""RadGraph and RadGraph-XL (Jain et al. 2021, Delbrouck et al. 2024) from local weights, as a reader of report graphs.

The released archives (``radgraph.tar.gz``, ``radgraph-xl.tar.gz``) hold a DyGIE++ model of AllenNLP: BERT-base reads a
report, the first and the last word of every span and its width become one vector; a scorer names its entity label, a
second one keeps the likeliest spans, a third one names the relation of each pair of those. This is that forward pass
in plain PyTorch: the package ``radgraph`` fetches BERT from the internet and does not know transformers 5. Neither the
weights nor BERT's vocabulary are ours to ship: both are given by path.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import BertWordPieceTokenizer
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from trrg_sdk.errors import UsageError
from trrg_train.evaluation.graphs import Entity, GraphReader

KINDS = ("radgraph", "radgraph-xl")
"""Names of the data sets that the released models were trained on; each cuts words in its own way."""
MAX_PIECES = 512

_UNUSED = ("_coref.", "_events.", "_ner.", "_relation.")  # tasks and data sets other than ours
_WITHOUT_WEIGHT = "embeddings.position_ids"
# Of radgraph-xl: escapes that stand in exported reports as text, and what is cut off a run of punctuation.
_ESCAPES = (("\\n", " "), ("\\f", " "), ("\\u2122", " "), ('\\"', "``"))
_CUTS = ((").", ") ."), ("%.", "% ."), (".'", ". '"), ("%,", "% ,"), ("%)", "% )"))


@dataclass(frozen=True)
class Sizes:
    """What the archive's ``config.json`` and ``vocabulary`` say.

    Attributes:
        kind: One of ``KINDS``.
        entity_labels: The first one is the empty label.
        relation_labels: Without an empty one.
        hidden: Widths of the hidden layers of every scorer.
        max_span: Words of the widest span.
        width_dim: Width of a span width's embedding.
        spans_per_word: How many spans a word may have in relations.
        max_pieces: Word pieces that BERT reads at once.
    """

    kind: str
    entity_labels: tuple[str, ...]
    relation_labels: tuple[str, ...]
    hidden: tuple[int, ...]
    max_span: int
    width_dim: int
    spans_per_word: float
    max_pieces: int


class Scorer(nn.Module):
    """Hidden layers with ReLU, and one linear layer."""

    def __init__(self, width: int, hidden: Sequence[int], out: int) -> None:
        """Build with random weights."""
        super().__init__()
        sizes = (width, *hidden)
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes[:-1], sizes[1:], strict=True))
        self.out = nn.Linear(sizes[-1], out)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) to (..., out)."""
        for layer in self.hidden:
            x = layer(x).relu()
        scores: Tensor = self.out(x)
        return scores


class RadGraphModel(nn.Module):
    """The parts of the released model that read entities and relations."""

    def __init__(self, config: BertConfig, sizes: Sizes) -> None:
        """Build with random weights."""
        super().__init__()
        self.sizes = sizes
        self.bert = BertModel(config)
        width = 2 * config.hidden_size + sizes.width_dim
        self.widths = nn.Embedding(sizes.max_span, sizes.width_dim)
        self.entities = Scorer(width, sizes.hidden, len(sizes.entity_labels) - 1)  # the empty label scores 0
        self.mentions = Scorer(width, sizes.hidden, 1)
        self.relations = Scorer(3 * width, sizes.hidden, len(sizes.relation_labels))

    def embed(self, pieces: Sequence[Sequence[int]], *, first: int, last: int) -> Tensor:
        """Mean of BERT's vectors of each word's pieces; a long text is read in parts.

        Args:
            pieces: Ids of the word pieces of T words; a word without one becomes 0.
            first: Id of ``[CLS]``.
            last: Id of ``[SEP]``.

        Returns:
            float32 (T, D).
        """
        flat = [piece for word in pieces for piece in word]
        room = self.sizes.max_pieces - 2
        parts = [[first, *flat[at : at + room], last] for at in range(0, len(flat), room)]
        read = [self.bert(torch.tensor([p], device=self.bert.device)).last_hidden_state[0, 1:-1] for p in parts]
        counts = torch.tensor([len(word) for word in pieces], device=self.bert.device)
        word_of = torch.repeat_interleave(torch.arange(len(pieces), device=counts.device), counts)
        summed = torch.zeros(len(pieces), self.bert.config.hidden_size, device=counts.device)
        if parts:
            summed.index_add_(0, word_of, torch.cat(read))
        return summed / counts.clamp_min(1)[:, None]

    def forward(self, words: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Read one report.

        Args:
            words: float32 (T, D), T at least 1.

        Returns:
            First and last word of every span, int64 (S, 2); its entity label, int64 (S,), 0 is none; the spans that may
            have relations, int64 (M,), ascending; their relation labels, int64 (M, M), first span a row, 0 is none and
            the others are one more than the place in ``relation_labels``.
        """
        count = len(words)
        pairs = [(a, b) for a in range(count) for b in range(a, min(a + self.sizes.max_span, count))]
        spans = torch.tensor(pairs, device=words.device)
        vectors = torch.cat([words[spans[:, 0]], words[spans[:, 1]], self.widths(spans[:, 1] - spans[:, 0])], dim=1)
        labels = nn.functional.pad(self.entities(vectors), (1, 0)).argmax(dim=1)
        mentions = self.mentions(vectors)[:, 0]
        keep = min(max(math.ceil(count * self.sizes.spans_per_word), 1), len(pairs))
        kept = mentions.topk(keep).indices.sort().values
        one, two = torch.broadcast_tensors(vectors[kept][:, None], vectors[kept][None])  # (M, M, 2 D + F) each
        scores = self.relations(torch.cat([one, two, one * two], dim=2))
        scores = scores + (mentions[kept][:, None] + mentions[kept][None])[..., None]
        return spans, labels, kept, nn.functional.pad(scores, (1, 0)).argmax(dim=2)


def load_radgraph(
    folder: Path, vocabulary: Path, *, config: BertConfig | None = None, device: str = "cpu"
) -> GraphReader:
    """Load RadGraph or RadGraph-XL.

    Args:
        folder: The unpacked archive: ``config.json``, ``vocabulary``, ``weights.th``.
        vocabulary: ``vocab.txt`` of the BERT that ``config.json`` names.
        config: None is BERT-base, which the released weights fit.
        device: Where PyTorch runs it.

    Raises:
        UsageError: A file is missing or does not fit; names what differs.
    """
    for path in (vocabulary, folder / "config.json", folder / "weights.th"):
        if not path.is_file():
            raise UsageError(f"{path} is no file; RadGraph needs its unpacked archive and the vocab.txt of its BERT")
    sizes = read_sizes(folder)
    model = RadGraphModel(config or BertConfig(), sizes)
    _load_strictly(model, _state(folder / "weights.th"), folder / "weights.th")
    tokenizer = BertWordPieceTokenizer(str(vocabulary), lowercase=True)
    words, rows = tokenizer.get_vocab_size(), model.bert.config.vocab_size
    if words != rows:
        raise UsageError(f"{vocabulary} has {words} tokens, the weights {rows}: give the vocabulary of the weights")
    model.eval().to(device)
    name = {"radgraph": "RadGraph", "radgraph-xl": "RadGraph-XL"}[sizes.kind]
    return GraphReader(f"{name} ({folder.name})", lambda texts: [read_graph(model, tokenizer, text) for text in texts])


def cut_words(text: str, *, kind: str) -> list[str]:
    """Cut a report into words as the model's training data were cut.

    Args:
        text: As written.
        kind: ``"radgraph"``: punctuation but the hyphen stands alone. ``"radgraph-xl"``: runs of letters and digits,
            and runs of punctuation.
    """
    if kind == "radgraph":
        return re.sub(r"([/,:.!?()])", r" \1 ", text).split()
    for written, meant in _ESCAPES:
        text = text.replace(written, meant)
    cut = " ".join(re.findall(r"\w+|[^\w\s]+", text))
    for joined, apart in _CUTS:
        cut = cut.replace(joined, apart)
    return cut.split()


@torch.no_grad()
def read_graph(model: RadGraphModel, tokenizer: BertWordPieceTokenizer, text: str) -> tuple[Entity, ...]:
    """Read the entities of one report; none in a report without a word."""
    words = cut_words(text, kind=model.sizes.kind)
    if not words:
        return ()
    shown = [word[1:] if word in ("/.", "/?") else word for word in words]  # as DyGIE++ reads OntoNotes
    pieces = [one.ids for one in tokenizer.encode_batch(shown, add_special_tokens=False)]
    first, last = (tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]"))
    spans, labels, kept, relations = (found.tolist() for found in model(model.embed(pieces, first=first, last=last)))
    texts = {at: " ".join(words[a : b + 1]).lower() for at, (a, b) in enumerate(spans) if labels[at]}
    return tuple(
        Entity(said, model.sizes.entity_labels[labels[at]], _relations_of(at, texts, kept, relations, model.sizes))
        for at, said in texts.items()
    )


def _relations_of(
    at: int, texts: Mapping[int, str], kept: Sequence[int], relations: Sequence[Sequence[int]], sizes: Sizes
) -> tuple[tuple[str, str], ...]:
    """The relations that start at a span and end at an entity."""
    if at not in kept:
        return ()
    row = relations[kept.index(at)]
    ends = ((label, end) for label, end in zip(row, kept, strict=True) if label and end in texts)
    return tuple((sizes.relation_labels[label - 1], texts[end]) for label, end in ends)


def read_sizes(folder: Path) -> Sizes:
    """Read ``config.json`` and ``vocabulary``.

    Raises:
        UsageError: A key is missing, or the model is another one than RadGraph.
    """
    path = folder / "config.json"
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        model, layers = values["model"], values["model"]["feedforward_params"]
        hidden, depth = layers["hidden_dims"], int(layers["num_layers"])
        if model["modules"].get("coref", {}).get("coref_prop", 0):
            raise UsageError(f"{path}: spans that are changed by coreference (coref_prop) are not supported")
        kind = _kind(folder / "vocabulary")
        entity_labels = _labels(folder / "vocabulary" / f"{kind}__ner_labels.txt")
        if entity_labels[0]:
            raise UsageError(f"{folder / 'vocabulary'}: the first entity label must be the empty one")
        return Sizes(
            kind=kind,
            entity_labels=entity_labels,
            relation_labels=_labels(folder / "vocabulary" / f"{kind}__relation_labels.txt"),
            hidden=tuple(hidden) if isinstance(hidden, list) else (int(hidden),) * depth,
            max_span=int(model["max_span_width"]),
            width_dim=int(model["feature_size"]),
            spans_per_word=float(model["modules"]["relation"]["spans_per_word"]),
            max_pieces=int(values["dataset_reader"]["token_indexers"]["bert"].get("max_length") or MAX_PIECES),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"{path} is no configuration of RadGraph: {type(error).__name__} {error}") from error


def _kind(vocabulary: Path) -> str:
    found = [kind for kind in KINDS if (vocabulary / f"{kind}__ner_labels.txt").is_file()]
    if len(found) != 1:
        raise UsageError(f"{vocabulary} must hold the labels of one of {', '.join(KINDS)}, it holds {found or 'none'}")
    return found[0]


def _labels(path: Path) -> tuple[str, ...]:
    """One label a line; AllenNLP numbers labels from 0 in this order."""
    try:
        return tuple(path.read_text(encoding="utf-8").removesuffix("\n").split("\n"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error


def _state(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)  # runs no code of the file
    except Exception as error:  # torch documents no error of a bad file, and raises pickle's, zipfile's and its own
        raise UsageError(f"{path} is no PyTorch file of plain tensors: {type(error).__name__}") from error
    if not isinstance(state, dict):
        raise UsageError(f"{path} holds no weights by name")
    return state


def released_name(name: str, kind: str) -> str:
    """The name in ``weights.th`` of one of our weights."""
    part, _, rest = name.partition(".")
    entity, relation = f"{kind}__ner_labels", f"{kind}__relation_labels"
    if part == "bert":
        return f"_embedder.token_embedder_bert._matched_embedder.transformer_model.{rest}"
    if part == "widths":
        return f"_endpoint_span_extractor._span_width_embedding.{rest}"
    hidden = rest.startswith("hidden.")
    tail = rest.removeprefix("hidden.").removeprefix("out.")
    if part == "relations":
        layers = f"_relation_feedforwards.{relation}._linear_layers" if hidden else f"_relation_scorers.{relation}"
        return f"_relation.{layers}.{tail}"
    scorer = f"_ner._ner_scorers.{entity}" if part == "entities" else f"_relation._mention_pruners.{relation}._scorer"
    return f"{scorer}.{'0._module._linear_layers' if hidden else '1._module'}.{tail}"


def _load_strictly(model: RadGraphModel, state: Mapping[str, Tensor], path: Path) -> None:
    wanted = {released_name(name, model.sizes.kind): name for name in model.state_dict()}
    ours = model.state_dict()
    extra = [n for n in state if n not in wanted and not n.startswith(_UNUSED) and not n.endswith(_WITHOUT_WEIGHT)]
    for names, problem in (
        (sorted(wanted.keys() - state.keys()), "are missing"),
        (sorted(extra), "are unknown"),
        (
            sorted(n for n in wanted.keys() & state.keys() if state[n].shape != ours[wanted[n]].shape),
            "have another shape",
        ),
    ):
        if names:
            raise UsageError(f"{path}: {len(names)} weights of RadGraph {problem}, first {names[0]}")
    model.load_state_dict({name: state[released] for released, name in wanted.items()})
