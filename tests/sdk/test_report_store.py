"""The report store holds the runs of tokens that were counted, guesses as a plain count does, and follows any text."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from trrg_sdk.backends import open_backend, open_decoder
from trrg_sdk.bundle import Bundle
from trrg_sdk.decoding import generate, store
from trrg_sdk.decoding.choice import NEAR_TIE
from trrg_sdk.decoding.drafts import StoreDrafter
from trrg_sdk.decoding.greedy import Drafts
from trrg_sdk.decoding.pace import LONGEST, Guess, Pace
from trrg_sdk.decoding.store import ORDER, ReportStore, StoreArrays, build_store
from trrg_sdk.errors import BundleError

EOS, STOP, START = 2, 3, -1
VOCAB = 12
Run = tuple[int, ...]


class Eager(Pace):
    """Drafts as much as there is, whatever it costs."""

    open = True

    def cut(self, draft: Iterable[Guess]) -> list[Guess]:
        return list(islice(draft, LONGEST))


def opened(reports: list[list[int]], *, least: int = 1) -> ReportStore:
    return ReportStore(build_store(reports, least=least)[0], vocabulary=VOCAB)


def guess(drafter: StoreDrafter, written: list[int], most: int) -> tuple[list[int], list[float]]:
    """The next tokens and how sure they are."""
    pairs = list(islice(drafter.line(written), most))
    return [token for token, _ in pairs], [confidence for _, confidence in pairs]


def random_reports(seed: int, count: int = 60, *, kinds: int = 12) -> list[list[int]]:
    """Reports of sentences of few words, so that all kinds of overlaps happen."""
    rng = np.random.default_rng(seed)
    sentences = [[*rng.integers(4, 8, rng.integers(1, 7)).tolist(), STOP] for _ in range(kinds)]
    return [[token for pick in rng.integers(0, kinds, 4) for token in sentences[pick]] + [EOS] for _ in range(count)]


def counted(reports: list[list[int]], *, least: int) -> dict[Run, int]:
    """How often each run of tokens occurs, of those that stand in enough reports: one after the other, by hand."""
    times, within = Counter[Run](), defaultdict[Run, set[int]](set)
    for number, report in enumerate(reports):
        line = (START, *report)
        for end in range(1, len(line) + 1):
            for size in range(1, min(ORDER + 1, end) + 1):
                times[line[end - size : end]] += 1
                within[line[end - size : end]].add(number)
    return {run: often for run, often in times.items() if len(within[run]) >= least}


def held(arrays: StoreArrays) -> list[Run]:
    """All contexts, read from the arrays by hand."""
    runs: list[Run] = [()] * len(arrays.tokens)
    ends = [*arrays.children[1:].tolist(), len(arrays.tokens)]
    for place, (first, end) in enumerate(zip(arrays.children.tolist(), ends, strict=True)):
        for child in range(first, end):
            runs[child] = (*runs[place], int(arrays.tokens[child]) - 1)
    return runs


class Plain:
    """Kneser and Ney's mixture as it is written down, token by token."""

    def __init__(self, times: dict[Run, int]) -> None:
        before = Counter(run[1:] for run in times if len(run) > 1)
        self.after: dict[Run, dict[int, float]] = defaultdict(dict)
        for run, often in times.items():
            whole = len(run) == ORDER + 1 or run[0] == START
            if run[-1] != START:
                self.after[run[:-1]][run[-1]] = often if whole else max(1, before[run])

    def chances(self, context: Run) -> dict[int, float]:
        followed = self.after.get(context, {})
        total = sum(followed.values())
        if not context:
            return {token: weight / total for token, weight in followed.items()}
        mixed = {token: max(weight - 0.9, 0) / total for token, weight in followed.items()}
        left = 1 - sum(mixed.values())
        for token, chance in self.chances(context[1:]).items():
            mixed[token] = mixed.get(token, 0.0) + left * chance
        return mixed


@pytest.mark.parametrize("least", [1, 2, 5])
@pytest.mark.parametrize("seed", range(3))
def test_contexts_are_the_runs_that_stand_in_enough_reports(seed: int, least: int) -> None:
    reports = random_reports(seed)
    arrays, held_by = build_store(reports, least=least)
    times = counted(reports, least=least)
    runs = held(arrays)
    assert held_by == least
    assert len(runs) == len(set(runs))
    assert set(runs) == {(), *(run for run in times if len(run) <= ORDER)}
    assert [runs[place] for place in arrays.shorter.tolist()] == [run[1:] for run in runs]


@pytest.mark.parametrize("least", [1, 2, 5])
@pytest.mark.parametrize("seed", range(3))
def test_guesses_are_those_of_a_plain_count(seed: int, least: int) -> None:
    reports = random_reports(seed)
    arrays, _ = build_store(reports, least=least)
    plain, kinds = Plain(counted(reports, least=least)), set[int]()
    for place, run in enumerate(held(arrays)):
        got, chance = int(arrays.guesses[place]) - 1, arrays.chances[place] / 255
        if run[-1:] == (EOS,):
            assert (got, chance) == (-1, 0)
            continue
        chances = plain.chances(run)
        assert sum(chances.values()) == pytest.approx(1)
        assert chances[got] == pytest.approx(max(chances.values()))
        assert chance == pytest.approx(chances[got], abs=0.003)
        kinds.add(got)
    assert len(kinds) > 3


@pytest.mark.parametrize("seed", range(3))
def test_a_text_is_followed_to_the_longest_context(seed: int) -> None:
    reports = random_reports(seed)
    arrays, _ = build_store(reports, least=2)
    found, runs, rng = ReportStore(arrays, vocabulary=VOCAB), held(arrays), np.random.default_rng(seed)
    places, lengths = {run: place for place, run in enumerate(runs)}, Counter[int]()
    for report in [*reports[:20], *([*rng.integers(2, 11, 30)] for _ in range(20))]:
        context = found.context([])
        for end, token in enumerate(report, start=1):
            line = (START, *map(int, report[:end]))
            longest = next(line[start:] for start in range(len(line) + 1) if line[start:] in places)
            context = found.after(context, int(token))
            assert runs[context] == longest
            assert found.context(line[1:]) == context
            lengths[len(longest)] += 1
    assert lengths[0] > 10
    assert lengths[ORDER] > 10


def test_of_too_many_contexts_the_common_ones_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    reports = random_reports(4, 200, kinds=30)
    monkeypatch.setattr(store, "MOST", 300)
    arrays, held_by = build_store(reports, least=2)
    monkeypatch.undo()
    runs, common = held(arrays), counted(reports, least=held_by)
    assert held_by > 2
    assert len(runs) <= 300
    assert set(runs) == {(), *(run for run in common if len(run) <= ORDER)}
    fewer = counted(reports, least=held_by - 1)
    assert sum(len(run) <= ORDER for run in fewer) >= 300
    assert build_store(reports, least=2)[1] == 2


@pytest.mark.parametrize("factor", [1, 8])
def test_the_work_grows_with_the_tokens(monkeypatch: pytest.MonkeyPatch, factor: int) -> None:
    sizes = list[int]()
    argsort, lexsort = np.argsort, np.lexsort

    def sort(keys: np.ndarray, **options: object) -> np.ndarray:
        sizes.append(len(keys))
        return argsort(keys, **options)  # type: ignore[call-overload, no-any-return]

    def sort_by_two(keys: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        sizes.append(len(keys[0]))
        return lexsort(keys)

    monkeypatch.setattr(np, "argsort", sort)
    monkeypatch.setattr(np, "lexsort", sort_by_two)
    reports = random_reports(1, 50 * factor, kinds=40 * factor)
    build_store(reports, least=1)
    assert len(sizes) == 2 * (ORDER + 1)  # whatever the size
    assert max(sizes) <= sum(len(report) + 1 for report in reports)


def test_a_large_vocabulary_and_an_empty_store() -> None:
    arrays, _ = build_store([[70000, 70001, STOP, EOS]], least=1)
    assert arrays.tokens.dtype == arrays.guesses.dtype == np.uint32
    assert guess(StoreDrafter(ReportStore(arrays, vocabulary=80000)), [70000], 3)[0] == [70001, STOP, EOS]
    for reports in ([[5, STOP, EOS]], []):
        empty = opened(reports, least=2)
        assert len(empty) == 1
        assert guess(StoreDrafter(empty), [5, 6], 8) == ([], [])


@pytest.mark.parametrize(
    "what", ["empty", "length", "sign", "children", "beyond", "circle", "shorter", "token", "guess"]
)
def test_damaged_arrays_are_refused(what: str) -> None:
    arrays, _ = build_store(random_reports(1), least=1)
    size = len(arrays.tokens)
    if what == "empty":
        arrays = StoreArrays(*(array[:0] for array in arrays))
    elif what == "length":
        arrays = arrays._replace(chances=arrays.chances[:-1])
    elif what == "sign":
        arrays = arrays._replace(guesses=arrays.guesses.astype(np.int32))
    elif what == "children":
        arrays.children[5] = 1
    elif what == "beyond":
        arrays.children[-1] = size + 1
    elif what == "circle":
        arrays.children[:] = 0
    elif what == "shorter":
        arrays.shorter[7] = 7
    else:
        (arrays.tokens if what == "token" else arrays.guesses)[9] = VOCAB + 1
    with pytest.raises(BundleError, match="Export the bundle again"):
        ReportStore(arrays, vocabulary=VOCAB)


def test_a_draft_goes_on_as_most_reports_do() -> None:
    common, rare = [5, 6, 7, STOP, 8, 9, STOP, EOS], [5, 6, 4, STOP, EOS]
    drafter = StoreDrafter(opened([common] * 5 + [[10, *common[1:]], [11, *common[1:]], rare]))
    tokens, confidences = guess(drafter, [5], 16)
    assert tokens == common[1:]  # and nothing behind the end
    assert all(0.5 < one <= 1 for one in confidences)
    assert guess(drafter, [], 3)[0] == common[:3]
    assert guess(drafter, [5, 6, 4], 16)[0] == [STOP, EOS]
    assert guess(drafter, [9, 8, 4, 6, 7, STOP], 16)[0] == [8, 9, STOP, EOS]  # as after a sentence that ends like this
    assert guess(drafter, common, 4) == ([], [])
    sure, unsure = (guess(drafter, written, 1)[1][0] for written in ([5, 6, 7], [8, 8, 7]))
    assert sure > unsure


def test_a_text_that_is_followed_on_is_guessed_as_one_that_is_looked_up() -> None:
    """As it grows by one token or by several, is taken back, and gives way to another one."""
    reports, rng = random_reports(5), np.random.default_rng(5)
    store = opened(reports[::2])
    drafter = StoreDrafter(store)
    for report in reports:
        text = report[:-1]
        lengths = np.minimum(np.cumsum([0, *rng.integers(1, 9, len(text))]), len(text)).tolist()
        for length in [*lengths[:4], *lengths[2:]]:
            assert guess(drafter, text[:length], 16) == guess(StoreDrafter(store), text[:length], 16)


def test_what_the_embedded_model_writes_is_the_same_with_a_store_of_its_own_texts() -> None:
    bundle = Bundle.embedded()
    decoder, table = open_decoder(open_backend(device="cpu", threads=1), bundle), bundle.token_embedding()
    spec = bundle.manifest.prompt
    rng, prompts = np.random.default_rng(0), []
    for _ in range(8):  # an instruction, noise for an image, and the start of a report: it writes sentences
        noise = rng.normal(scale=0.02, size=(50, table.shape[1])).astype(np.float32)
        prompts.append(np.concatenate([table[list(spec.prefix_ids)], noise, table[list(spec.suffix_ids)]]))
    texts = [generate(decoder, prompt, table, eos=EOS, max_new_tokens=40) for prompt in prompts]
    arrays, _ = build_store([[*text.ids, EOS] for text in texts[::2]], least=1)
    drafts = Drafts(StoreDrafter(ReportStore(arrays, vocabulary=len(table)), Eager()), NEAR_TIE["int8"])
    again = [generate(decoder, prompt, table, eos=EOS, max_new_tokens=40, drafts=drafts) for prompt in prompts]
    assert [one.ids for one in again] == [one.ids for one in texts]
    assert sum(one.passes for one in again[::2]) < sum(one.passes for one in texts[::2])


def test_the_store_lies_in_files_as_it_is(tmp_path: Path) -> None:
    reports = random_reports(2)
    arrays, _ = build_store(reports, least=1)
    for name, array in arrays._asdict().items():
        np.save(tmp_path / f"{name}.npy", array)
    mapped = StoreArrays(*(np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in arrays._fields))
    ours, theirs = (StoreDrafter(ReportStore(one, vocabulary=VOCAB)) for one in (arrays, mapped))
    assert [guess(ours, report[:9], 6) for report in reports] == [guess(theirs, report[:9], 6) for report in reports]
