"""Text scores through pycocoevalcap, the package that the field's figures come from.

BLEU's counts are pycocoevalcap's; the corpus formula over their sums is theirs too, in numpy, so that a resample costs
a matrix product. ROUGE-L is the mean of pycocoevalcap's scores of single studies, and so is CIDEr, whose document
frequencies are always those of all references, in a resample and on a part as well. METEOR: see
``trrg_train.evaluation.meteor``. No text is ever shortened.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pycocoevalcap.bleu.bleu_scorer import BleuScorer
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from trrg_sdk.errors import UsageError
from trrg_train.evaluation.bootstrap import Statistic, mean_statistic
from trrg_train.evaluation.meteor import java_is_here, meteor_statistics

Tokenizer = Literal["plain", "ptb"]
TOKENIZERS: tuple[Tokenizer, ...] = ("plain", "ptb")
TEXT_SCORES = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr")
ORDER = 4
# BleuScorer.compute_score: keep a division by zero away without moving any digit that is shown.
SMALL, TINY = 1e-9, 1e-15


def tokenize(texts: Sequence[str], *, tokenizer: Tokenizer) -> list[str]:
    """Cut texts into tokens with one space between.

    Args:
        texts: As written, of any length.
        tokenizer: ``"plain"``: lower case, cut at white space, as R2Gen scores (its texts are cleaned beforehand, so
            that full stops stand alone). ``"ptb"``: the Penn Treebank tokenizer of the COCO evaluation, lower case,
            without punctuation; needs Java.

    Returns:
        One string a text.

    Raises:
        UsageError: The tokenizer cannot run here.
    """
    # " ||| " separates fields in METEOR's protocol.
    lines = [" ".join(text.replace("|||", " ").split()) for text in texts]
    return [line.lower() for line in lines] if tokenizer == "plain" else _ptb(lines)


def text_statistics(
    systems: Sequence[Sequence[str]], references: Sequence[str], *, meteor: bool
) -> list[dict[str, Statistic]]:
    """Score several systems against the same references.

    Args:
        systems: For each system K texts, tokenised.
        references: K texts, tokenised, one a study.
        meteor: Whether METEOR is scored; it starts Java.

    Returns:
        For each system its scores by name.

    Raises:
        UsageError: METEOR was asked for and Java is not there.
    """
    scored = [[*_bleu(texts, references), _rouge(texts, references), _cider(texts, references)] for texts in systems]
    if meteor:
        for scores, one in zip(scored, meteor_statistics(systems, references), strict=True):
            scores.append(one)
    return [{statistic.name: statistic for statistic in scores} for scores in scored]


def bleu_counts(texts: Sequence[str], references: Sequence[str]) -> NDArray[np.float64]:
    """What each study adds to BLEU: both lengths, then guessed and correct n-grams of 1 to 4; float64 (K, 10)."""
    scorer = BleuScorer(n=ORDER)
    for text, reference in zip(texts, references, strict=True):
        scorer += (text, [reference])
    return np.array([[c["testlen"], *c["reflen"], *c["guess"], *c["correct"]] for c in scorer.ctest], dtype=np.float64)


def bleu(sums: NDArray[np.float64], *, order: int) -> NDArray[np.float64]:
    """Corpus BLEU of summed counts, (R, 10) to (R,)."""
    length, reference = sums[:, 0], sums[:, 1]
    guessed, correct = sums[:, 2 : 2 + order], sums[:, 2 + ORDER : 2 + ORDER + order]
    precision = ((correct + TINY) / (guessed + SMALL)).prod(axis=1) ** (1 / order)
    short = (length + TINY) / (reference + SMALL)
    # exp(-large) is 0: an empty text scores 0.
    brevity = np.exp(np.minimum(0.0, 1 - 1 / np.maximum(short, TINY)))
    return np.where(reference > 0, precision * brevity, np.nan)


def _bleu(texts: Sequence[str], references: Sequence[str]) -> list[Statistic]:
    counts = bleu_counts(texts, references)
    return [Statistic(f"BLEU-{order}", counts, partial(bleu, order=order)) for order in range(1, ORDER + 1)]


def _rouge(texts: Sequence[str], references: Sequence[str]) -> Statistic:
    rouge = Rouge()
    pairs = zip(texts, references, strict=True)
    return mean_statistic("ROUGE-L", [rouge.calc_score([text], [reference]) for text, reference in pairs])


def _cider(texts: Sequence[str], references: Sequence[str]) -> Statistic:
    _, scores = Cider().compute_score(_by_row(references), _by_row(texts))
    return mean_statistic("CIDEr", scores)


def _by_row(texts: Sequence[str]) -> dict[int, list[str]]:
    return {row: [text] for row, text in enumerate(texts)}


def _ptb(lines: Sequence[str]) -> list[str]:
    if not java_is_here():
        raise UsageError("tokenizer ptb needs Java: install a Java runtime, or choose tokenizer plain")
    try:
        cut = PTBTokenizer().tokenize({row: [{"caption": line}] for row, line in enumerate(lines)})
    except OSError as error:
        message = "tokenizer ptb cannot write its temporary file beside pycocoevalcap: choose tokenizer plain"
        raise UsageError(f"{message} ({error.strerror})") from error
    if len(cut) != len(lines):
        raise UsageError(f"tokenizer ptb gave {len(cut)} lines for {len(lines)} texts: does `java -version` work?")
    return [cut[row][0] for row in range(len(lines))]
