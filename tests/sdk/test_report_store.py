"""The report store finds what a plain search finds, is built in few sorts, and its drafts pay or stop."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from trrg_sdk.backends import open_backend, open_decoder
from trrg_sdk.bundle import Bundle
from trrg_sdk.decoding import generate
from trrg_sdk.decoding.choice import NEAR_TIE
from trrg_sdk.decoding.drafts import StoreDrafter
from trrg_sdk.decoding.greedy import Drafts, Pass
from trrg_sdk.decoding.pace import LONGEST, Costs, Pace
from trrg_sdk.decoding.store import ReportStore, Sentence, StoreArrays, backward_order, build_store, split
from trrg_sdk.errors import BundleError

EOS, STOP = 2, 3
ENDS = (EOS, STOP)


def nothing(sentence: Sentence) -> tuple[int, int]:
    return 0, 0


class Eager(Pace):
    """Drafts as much as there is, whatever it costs."""

    open = True

    def length(self, confidences: Iterable[float]) -> int:
        return sum(1 for _ in islice(confidences, LONGEST))


def guess(drafter: StoreDrafter, written: list[int], most: int) -> tuple[list[int], list[float]]:
    """The next tokens and how sure they are."""
    pairs = list(islice(drafter.line(written), most))
    return [token for token, _ in pairs], [confidence for _, confidence in pairs]


def random_reports(seed: int, count: int = 60, *, kinds: int = 12) -> list[list[int]]:
    """Reports of sentences of few words, so that all kinds of overlaps happen."""
    rng = np.random.default_rng(seed)
    sentences = [[*rng.integers(4, 8, rng.integers(1, 7)).tolist(), STOP] for _ in range(kinds)]
    return [[token for pick in rng.integers(0, kinds, 4) for token in sentences[pick]] + [EOS] for _ in range(count)]


def stored(arrays: StoreArrays) -> list[Sentence]:
    """All sentences, read from the arrays by hand."""
    starts, tokens = arrays.sentences[:, 0], arrays.tokens.astype(int) - 1
    return [tuple(tokens[first + 1 : last].tolist()) for first, last in pairwise(starts)]


@pytest.mark.parametrize("seed", range(3))
def test_the_arrays_hold_what_was_counted(seed: int) -> None:
    reports = random_reports(seed)
    arrays = build_store(reports, ends=ENDS, least=3, findings=lambda one: (len(one), one[0]))
    cut = [list(split(report, ENDS)) for report in reports]
    within, count = Counter(s for one in cut for s in set(one)), Counter(s for one in cut for s in one)
    pairs = Counter(pair for one in cut for pair in pairwise([(), *one]))
    kept = stored(arrays)
    assert set(kept) == {one for one, times in within.items() if times >= 3}
    assert arrays.sentences[:-1, 1].tolist() == [count[one] for one in kept] == sorted(map(count.get, kept))[::-1]
    assert arrays.sentences[:-1, 2:4].tolist() == [[len(one), one[0]] for one in kept]
    store = ReportStore(arrays, ends=ENDS)
    for row, first in [*enumerate(kept), (store.start, ())]:
        times = sorted((pairs[first, other] for other in kept if pairs[first, other]), reverse=True)[:4]
        followers = store.followers(row)
        assert [often for _, often in followers] == times
        assert all(pairs[first, kept[after]] == often for after, often in followers)


@pytest.mark.parametrize("seed", range(3))
def test_order_is_the_backward_one(seed: int) -> None:
    stream = np.random.default_rng(seed).integers(0, 3, 200)
    order = backward_order(stream)
    keys = [tuple(stream[max(0, place - 23) : place + 1][::-1].tolist()) for place in order.tolist()]
    assert sorted(order.tolist()) == list(range(200))
    assert keys == sorted(keys)


def plain_search(kept: Sequence[Sentence], query: Sentence) -> tuple[int, set[tuple[int, Sentence]]]:
    """The longest end of a query that stands in a sentence, a whole beginning counting one more."""
    best, found = 0, set[tuple[int, Sentence]]()
    for row, sentence in enumerate(kept):
        for end in range(1, len(sentence) + 1):
            length = 0
            while length < min(len(query), end) and query[len(query) - 1 - length] == sentence[end - 1 - length]:
                length += 1
            length += length == len(query) == end
            if length > best:
                best, found = length, set()
            if length == best:
                found.add((row, sentence[end:]))
    return (best, found) if best >= 2 else (0, set())


@pytest.mark.parametrize("seed", range(3))
def test_matches_are_those_of_a_plain_search(seed: int) -> None:
    arrays = build_store(random_reports(seed), ends=ENDS, least=1, findings=nothing)
    store, kept, rng = ReportStore(arrays, ends=ENDS), stored(arrays), np.random.default_rng(seed)
    hits = 0
    for _ in range(200):
        query = tuple(rng.integers(4, 8, rng.integers(1, 7)).tolist())
        shared, matches = store.matches(query)
        expected, places = plain_search(kept, query)
        assert shared == expected
        assert {(one.sentence, one.rest) for one in matches} <= places
        assert len(matches) == len(places) or len(matches) == 24
        hits += shared > 0
    assert hits > 50


def test_the_sentence_before_is_known() -> None:
    arrays = build_store([[5, 6, STOP, 7, STOP, EOS]], ends=ENDS, least=1, findings=nothing)
    store, kept = ReportStore(arrays, ends=ENDS), stored(arrays)
    assert store.current([]) == ((), store.start)
    assert store.current([5, 6]) == ((5, 6), store.start)
    assert store.current([5, 6, STOP, 7]) == ((7,), kept.index((5, 6, STOP)))
    assert store.current([9, STOP]) == ((), None)
    assert store.current([6, STOP]) == ((), None)  # the end of a sentence is none


@pytest.mark.parametrize("factor", [1, 8])
def test_the_work_grows_with_the_tokens(monkeypatch: pytest.MonkeyPatch, factor: int) -> None:
    sorted_sizes, asked = [], []
    argsort = np.argsort

    def counted(keys: np.ndarray, **options: object) -> np.ndarray:
        sorted_sizes.append(len(keys))
        return argsort(keys, **options)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(np, "argsort", counted)
    reports = random_reports(1, 50 * factor, kinds=40 * factor)

    def findings(sentence: Sentence) -> tuple[int, int]:
        asked.append(sentence)
        return 0, 0

    arrays = build_store(reports, ends=ENDS, least=1, findings=findings)
    assert sorted_sizes == [len(arrays.tokens)] * 5  # whatever the size
    assert len(asked) == len(set(asked)) == len(arrays.sentences) - 1


def test_a_large_vocabulary_and_an_empty_store() -> None:
    arrays = build_store([[70000, 70001, STOP, EOS]], ends=ENDS, least=1, findings=nothing)
    assert arrays.tokens.dtype == ">u4"
    assert ReportStore(arrays, ends=ENDS).matches((70000,))[1][0].rest == (70001, STOP)
    empty = build_store([[5, STOP, EOS]], ends=ENDS, least=2, findings=nothing)
    assert len(empty.tokens) == 0
    assert guess(StoreDrafter(ReportStore(empty, ends=ENDS)), [5, 6], 8) == ([], [])


@pytest.mark.parametrize("what", ["order", "start", "rows", "follower"])
def test_damaged_arrays_are_refused(what: str) -> None:
    arrays = build_store(random_reports(1), ends=ENDS, least=1, findings=nothing)
    if what == "order":
        arrays.order[3] = 10_000
    elif what == "start":
        arrays.sentences[1, 0] = 10_000
    elif what == "follower":
        arrays.sentences[0, 4] = 10_000
    else:
        arrays = arrays._replace(sentences=arrays.sentences[:, :5])
    with pytest.raises(BundleError, match="Export the bundle again"):
        ReportStore(arrays, ends=ENDS)


def test_a_draft_goes_on_as_most_reports_do() -> None:
    common, rare = [5, 6, 7, STOP, 8, 9, STOP, EOS], [5, 6, 4, STOP, EOS]
    arrays = build_store([common] * 5 + [rare], ends=ENDS, least=1, findings=nothing)
    drafter = StoreDrafter(ReportStore(arrays, ends=ENDS))
    tokens, confidences = guess(drafter, [5], 16)
    assert tokens == common[1:]
    assert all(0 < one <= 1 for one in confidences)
    assert guess(drafter, [], 3)[0] == common[:3]
    assert guess(drafter, [5, 6, 4], 16)[0] == [STOP, EOS]
    assert guess(drafter, [9, 9], 16) == ([], [])


def test_a_sentence_that_contradicts_a_clue_comes_last() -> None:
    effusion, clear = [5, 6, STOP, EOS], [5, 7, STOP, EOS]
    says = {(5, 6, STOP): (1, 0), (5, 7, STOP): (0, 1)}
    arrays = build_store([effusion, clear, clear], ends=ENDS, least=1, findings=lambda one: says.get(one, (0, 0)))
    drafter = StoreDrafter(ReportStore(arrays, ends=ENDS))
    for present, absent, expected in ((0, 0, clear), (1, 0, effusion), (0, 1, clear)):
        drafter.about(present=present, absent=absent)
        assert guess(drafter, [], 2)[0] == expected[:2]
        assert guess(drafter, [5], 1)[0] == expected[1:2]


def spent(pace: Pace, *, passes: int, right: float, slope: float, lookup: float = 0.05) -> tuple[float, float]:
    """Seconds of a simulated text with drafts, and of the same one without."""
    rng = np.random.default_rng(0)
    total = plain = 0.0
    for _ in range(passes):
        if pace.resting():
            total, plain = total + 1, plain + 1
            continue
        looked, confidences = pace.open, list[float]()
        if looked:
            confidences = [0.9] * LONGEST
            confidences = confidences[: pace.length(confidences)]
        accepted = 0
        while accepted < len(confidences) and rng.random() < right:
            accepted += 1
        width = 1 + len(confidences)
        seconds = 1 + slope * (width - 1)
        pace.learn(Pass(width, 1 + accepted, seconds, lookup * looked, 0), confidences, looked=looked)
        total, plain = total + seconds + lookup * looked, plain + 1 + accepted
    return total, plain


@pytest.mark.parametrize("lookup", [0.02, 0.1, 0.5])
@pytest.mark.parametrize("slope", [0.0, 0.2, 0.4, 1.0])
@pytest.mark.parametrize("right", [0.0, 0.3, 0.6])
def test_drafts_that_are_no_use_cost_little(right: float, slope: float, lookup: float) -> None:
    """A few dozen reports are enough for at least 0.97 of the speed without drafts, whatever they are worth."""
    total, plain = spent(Pace(), passes=1500, right=right, slope=slope, lookup=lookup)
    assert total <= plain / 0.97
    pace = Pace()
    spent(pace, passes=5000, right=right, slope=slope, lookup=lookup)
    total, plain = spent(pace, passes=5000, right=right, slope=slope, lookup=lookup)
    assert total <= plain / 0.99


@pytest.mark.parametrize(("change", "slope"), [(0.0, 0.01), (0.0, 0.05), (0.2, 0.02)])
def test_where_wide_passes_cost_little_drafts_become_long(change: float, slope: float) -> None:
    """Nobody read that many positions before, so a cost believed too high would never be found out.

    Some runtimes make a pass of another width than the last one dearer, whatever the width.
    """
    pace = Pace()
    for _ in range(200):
        right = pace.length([0.9] * LONGEST) if pace.open else 0
        seconds = 1 + change * (right > 0) + slope * right
        pace.learn(Pass(1 + right, 1 + right, seconds, 0.05, 0), [0.9] * right, looked=pace.open)
    assert pace.length([0.9] * LONGEST) == LONGEST
    assert pace.costs.of(LONGEST + 1) == pytest.approx(1 + change + slope * LONGEST, rel=0.1)


def test_past_gains_pay_for_few_losses() -> None:
    pace = Pace()
    spent(pace, passes=2000, right=0.95, slope=0.15)
    total, plain = spent(pace, passes=2000, right=0.0, slope=0.15)
    assert total <= 1.01 * plain + 80


@pytest.mark.parametrize("slope", [0.02, 0.1, 0.35])
def test_costs_are_medians_on_a_machine_that_does_other_work(slope: float) -> None:
    """Every fourth pass, of any width, is interrupted for ten times its length."""
    costs, rng = Costs(), np.random.default_rng(1)
    for _ in range(1500):
        width = int(rng.choice([1, 2, 4, 8, 16]))
        seconds = 0.003 * (1 + slope * (width - 1)) * rng.uniform(0.95, 1.05)
        costs.learn(width, seconds * (11 if rng.random() < 0.25 else 1))
    for width in (2, 4, 8, 16):
        assert costs.of(width) == pytest.approx(1 + slope * (width - 1), rel=0.2)


def test_costs_follow_a_device_that_reads_two_positions_in_the_time_of_one() -> None:
    """Measured for int4 kernels: no straight line through all of them is near."""
    costs, rng = Costs(), np.random.default_rng(1)
    measured = {1: 1.0, 2: 1.05, 4: 1.8, 8: 3.3, 17: 6.7}
    for _ in range(2000):
        width = int(rng.choice(list(measured)))
        costs.learn(width, 0.0005 * measured[width] * rng.uniform(0.95, 1.05))
    for width, cost in measured.items():
        assert costs.of(width) == pytest.approx(cost, rel=0.1)
    assert costs.of(2) < costs.of(3) < costs.of(4) < costs.of(6) < costs.of(8)


def test_a_single_pass_after_a_longer_one_is_no_measure() -> None:
    """The runtime plans anew between them: without drafts it would not."""
    costs = Costs()
    for width in (1, 1, 1, 1, *(4, 1) * 200):
        costs.learn(width, 0.002 if width == 1 and costs.known else 0.001)
    assert costs.single == pytest.approx(0.001)
    for _ in range(200):
        costs.learn(1, 0.002)
    assert costs.single == pytest.approx(0.002, rel=0.1)


def test_no_more_is_guessed_than_may_be_of_use() -> None:
    asked = list[float]()

    def unsure() -> Iterator[float]:
        while True:
            asked.append(0.1)
            yield 0.1

    assert Pace().length(unsure()) <= 1
    assert len(asked) < 5


def test_each_rest_without_a_gain_is_longer() -> None:
    pace, rests = Pace(), list[int]()
    for _ in range(4):
        spent(pace, passes=1, right=0.0, slope=0.5)
        while not pace.resting():
            spent(pace, passes=1, right=0.0, slope=0.5)
        rests.append(1)
        while pace.resting():
            rests[-1] += 1
    assert rests == sorted(set(rests)), rests
    assert rests[-1] > 6 * rests[0]


def test_good_drafts_on_a_flat_device_are_long_and_pay() -> None:
    total, plain = spent(Pace(), passes=300, right=0.95, slope=0.02)
    assert total < plain / 4


def test_drafts_come_back_when_they_are_good_again() -> None:
    pace = Pace()
    spent(pace, passes=1000, right=0.0, slope=0.2)
    total, plain = spent(pace, passes=4000, right=0.95, slope=0.05)
    assert total < plain / 2


def test_what_the_embedded_model_writes_is_the_same_with_a_store_of_its_own_texts() -> None:
    bundle = Bundle.embedded()
    decoder, table = open_decoder(open_backend(device="cpu", threads=1), bundle), bundle.token_embedding()
    spec = bundle.manifest.prompt
    rng, prompts = np.random.default_rng(0), []
    for _ in range(8):  # an instruction, noise for an image, and the start of a report: it writes sentences
        noise = rng.normal(scale=0.02, size=(50, table.shape[1])).astype(np.float32)
        prompts.append(np.concatenate([table[list(spec.prefix_ids)], noise, table[list(spec.suffix_ids)]]))
    texts = [generate(decoder, prompt, table, eos=EOS, max_new_tokens=40) for prompt in prompts]
    tokenizer = Tokenizer.from_file(str(bundle.tokenizer_path))
    ends = (EOS, *(token for token in range(len(table)) if tokenizer.decode([token]).endswith(".")))
    arrays = build_store([[*text.ids, EOS] for text in texts[::2]], ends=ends, least=1, findings=nothing)
    drafts = Drafts(StoreDrafter(ReportStore(arrays, ends=ends), Eager()), NEAR_TIE["int8"])
    again = [generate(decoder, prompt, table, eos=EOS, max_new_tokens=40, drafts=drafts) for prompt in prompts]
    assert [one.ids for one in again] == [one.ids for one in texts]
    assert sum(one.passes for one in again[::2]) < sum(one.passes for one in texts[::2])


def test_the_store_lies_in_files_as_it_is(tmp_path: Path) -> None:
    arrays = build_store(random_reports(2), ends=ENDS, least=1, findings=nothing)
    for name, array in arrays._asdict().items():
        np.save(tmp_path / f"{name}.npy", array)
    mapped = StoreArrays(*(np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in arrays._fields))
    ours, theirs = ReportStore(arrays, ends=ENDS), ReportStore(mapped, ends=ENDS)
    assert ours.matches((5, 6, 7)) == theirs.matches((5, 6, 7))
