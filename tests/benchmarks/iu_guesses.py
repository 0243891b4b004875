"""How far guesses of the next tokens are right on what people wrote: the report store beside other ways to guess.

    python tests/benchmarks/iu_guesses.py --reports iu_reports.jsonl.gz --folder runs/iu \\
        --write tests/benchmarks/results/iu_guesses.md

No decoder runs: a guess counts as far as it is what a person wrote next, in val reports, from train reports alone. The
others are backing-off models (Witten and Bell's mixture of all contexts up to an order), alone and with each train
report weighed by how close its labels are: they say what that would gain.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

from iu_reports import IuStudy, about, read_studies
from tokenizers import Tokenizer

from trrg_sdk.decoding.drafts import StoreDrafter
from trrg_sdk.decoding.store import ReportStore, build_store
from trrg_train.models.tokenizer import EOS_ID

LENGTHS = (4, 8, 15)
START = -1
Context = tuple[int, ...]
Labels = tuple[int, int]


class BackingOff:
    """A mixture of what followed the last tokens, the more the longer they are."""

    def __init__(self, reports: Sequence[list[int]], labels: Sequence[Labels], *, order: int, sharpness: float) -> None:
        """Count.

        Args:
            reports: Tokens of the train reports.
            labels: Of each, one bit for each observation: asserted, denied.
            order: Tokens of the longest context.
            sharpness: How much a report counts less for each label that differs; 0 leaves labels out.
        """
        self._order, self._sharpness, self._labels = order, sharpness, labels
        self._after: dict[Context, list[tuple[int, int]]] = defaultdict(list)  # report, token
        for number, report in enumerate(reports):
            line = (START, *report)
            for place in range(1, len(line)):
                for size in range(1, min(order, place) + 1):
                    self._after[line[place - size : place]].append((number, line[place]))
        self.about((0, 0))

    def about(self, labels: Labels) -> None:
        """Say what the next report is about."""
        differing = ((one[0] ^ labels[0]).bit_count() * 2 + (one[1] ^ labels[1]).bit_count() for one in self._labels)
        self._weights = [math.exp(-self._sharpness * count) + 0.02 for count in differing]

    def guess(self, written: Sequence[int], most: int) -> list[int]:
        """Guess the next tokens, the likeliest one after another."""
        line = [START, *written]
        while len(line) <= len(written) + most and (shares := self._shares(line)):
            line.append(max(shares, key=shares.__getitem__))
        return line[len(written) + 1 :]

    def _shares(self, line: Sequence[int]) -> dict[int, float]:
        mixed: dict[int, float] = {}
        for size in range(1, min(self._order, len(line)) + 1):
            followed = self._after.get(tuple(line[-size:]))
            if not followed:
                break
            weights: dict[int, float] = defaultdict(float)
            for number, token in followed:
                weights[token] += self._weights[number]
            total = sum(weights.values())
            trust = len(followed) / (len(followed) + 0.6 * len(weights)) if mixed else 1.0
            mixed = {token: share * (1 - trust) for token, share in mixed.items()}
            for token, weight in weights.items():
                mixed[token] = mixed.get(token, 0.0) + trust * weight / total
        return mixed


Guess = Callable[[Sequence[int], int], list[int]]


def tokens_a_pass(guess: Guess, tell: Callable[[Labels], None], val: Sequence[tuple[list[int], Labels]]) -> list[str]:
    """Tokens that a pass decides, for each length of a draft."""
    cells = []
    for length in LENGTHS:
        passes = tokens = 0
        for report, labels in val:
            tell(labels)
            at = 1  # the first token comes from the prompt
            while at < len(report):
                draft = guess(report[:at], length)[:length]
                right = 0
                while right < len(draft) and at + right < len(report) - 1 and draft[right] == report[at + right]:
                    right += 1
                at, passes, tokens = at + right + 1, passes + 1, tokens + right + 1
        cells.append(f"{tokens / passes:.2f}")
    return cells


def encoded(studies: Sequence[IuStudy], tokenizer: Tokenizer) -> list[tuple[list[int], Labels]]:
    """Tokens of each report with its end token, and its labels."""
    return [([*tokenizer.encode(study.text).ids, EOS_ID], about(study)) for study in studies]


def rows_of(
    train: Sequence[tuple[list[int], Labels]], val: Sequence[tuple[list[int], Labels]], tokenizer: Tokenizer
) -> list[list[str]]:
    """Lines of the table."""
    reports, labels = [report for report, _ in train], [one for _, one in train]
    rows = []
    for least in (1, 2, 5):
        store = ReportStore(build_store(reports, least=least)[0], vocabulary=tokenizer.get_vocab_size())
        drafter = StoreDrafter(store)

        def guess(written: Sequence[int], most: int, drafter: StoreDrafter = drafter) -> list[int]:
            return [token for token, _ in islice(drafter.line(written), most)]

        name = f"report store, runs in at least {least} report{'s' * (least > 1)}: {len(store)} of them"
        rows.append([name, *tokens_a_pass(guess, lambda _: None, val)])
    for order, sharpness in ((3, 0.0), (8, 0.0), (8, 0.35), (12, 0.0)):
        model = BackingOff(reports, labels, order=order, sharpness=sharpness)
        name = f"backing off from {order} tokens{', nearest labels count most' * (sharpness > 0)}"
        rows.append([name, *tokens_a_pass(model.guess, model.about, val)])
    return rows


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reports", type=Path, required=True, help="iu_reports.jsonl.gz")
    parser.add_argument("--folder", type=Path, required=True, help="of iu_decoder.py, for its tokenizer")
    parser.add_argument("--studies", type=int, default=296)
    parser.add_argument("--write", type=Path, help="the page")
    arguments = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(arguments.folder / "tokenizer.json"))
    train, val = (encoded(read_studies(arguments.reports, split), tokenizer) for split in ("train", "val"))
    val = val[: arguments.studies]
    head = ["guess", *(f"{length} tokens" for length in LENGTHS)]
    table = [head, ["---"] * len(head), *rows_of(train, val, tokenizer)]
    lines = [
        "# What a draft guesses right of what people wrote",
        "",
        f"`python tests/benchmarks/iu_guesses.py`: tokens a pass decides on {len(val)} val reports of Indiana "
        f"University, guessed from {len(train)} train reports, by the length of the draft. Nothing is timed.",
        "",
        *(f"| {' | '.join(cells)} |" for cells in table),
    ]
    print("\n".join(lines))
    if arguments.write:
        arguments.write.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
