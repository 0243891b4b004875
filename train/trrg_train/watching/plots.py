"""The pictures of a run's summary, as PNG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trrg_sdk.labeler import OBSERVATIONS
from trrg_train.calibration import MIN_POSITIVES
from trrg_train.metrics import auc
from trrg_train.watching.record import Perceived
from trrg_train.watching.validation import rows_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BINS = 10


def curves(history: Sequence[Mapping[str, float]], *, step: int) -> bytes:
    """Draw losses, the figures of the validation, learning rate and gradient norm against the step.

    Args:
        history: Entries of the Trainer's log.
        step: Whose weights were saved; a line marks it.
    """
    names = {name for entry in history for name in entry}
    losses = sorted(n for n in names if n == "loss" or (n.endswith("_loss") and n != "train_loss"))
    figures = sorted(n for n in names if n.startswith("eval_") and "/" not in n and not n.endswith("loss"))
    panels: list[tuple[str, Sequence[str]]] = [("losses", losses), ("held-out studies", figures)]
    panels += [(name.replace("_", " "), [name]) for name in ("temperature", "learning_rate", "grad_norm")]
    panels = [(title, series) for title, series in panels if names & set(series)]
    figure, axes = _figure(len(panels), width=4.2, height=3.4)
    for axis, (title, series) in zip(axes, panels, strict=True):
        for name in series:
            points = [(entry["step"], entry[name]) for entry in history if name in entry]
            style: dict[str, Any] = {"marker": "o", "linestyle": "--"} if name.startswith("eval_") else {}
            axis.plot(*zip(*points, strict=True), label=name.replace("eval_", "held-out ").replace("_", " "), **style)
        axis.axvline(step, color="#888888", linewidth=0.8, linestyle=":")
        axis.set(title=title, xlabel="step")
        axis.legend(fontsize="small")
    return _png(figure)


def roc(perceived: Perceived) -> bytes:
    """Draw the ROC curve of each observation, one panel a source."""
    groups = rows_of(perceived.sources)
    figure, axes = _figure(len(groups), width=5.0, height=5.4)
    for axis, (source, rows) in zip(axes, groups.items(), strict=True):
        for at, name in enumerate(OBSERVATIONS):
            scores, truth = _known(perceived, rows, at)
            if _enough(truth):
                label = f"{name} {auc(scores, truth.astype(np.float64)):.3f}"
                axis.plot(
                    *roc_points(scores, truth), color=_colour(at), linestyle="-" if at < 10 else "--", label=label
                )
        axis.plot([0, 1], [0, 1], color="#cccccc", linewidth=0.8)
        axis.set(title=f"{source}: {len(rows)} studies", xlabel="1 - specificity", ylabel="sensitivity", aspect="equal")
        _legend(axis, fontsize="x-small")
    return _png(figure)


def roc_points(scores: NDArray[np.float64], truth: NDArray[np.bool_]) -> tuple[NDArray[np.float64], ...]:
    """One minus specificity and sensitivity, from (0, 0) to (1, 1), at each distinct score.

    Args:
        scores: (K,).
        truth: bool (K,), with both classes.
    """
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)  # of equal scores only the last is a point
    found, false = (np.cumsum(which[order])[last] / which.sum() for which in (truth, ~truth))
    return np.append(0.0, false), np.append(0.0, found)


def reliability(perceived: Perceived) -> bytes:
    """Draw how often a clue is there against its calibrated probability, over all observations of a source.

    What had too few studies of either kind to be calibrated is left out.
    """
    everyone = np.arange(len(perceived.sources))
    calibrated = [at for at in range(len(OBSERVATIONS)) if _enough(_known(perceived, everyone, at)[1])]
    groups = rows_of(perceived.sources)
    figure, axes = _figure(1, width=5.0, height=4.6)
    for source, rows in groups.items():
        parts = [_known(perceived, rows, at) for at in calibrated]
        probability, truth = (np.concatenate([part[i] for part in parts] or [np.empty(0)]) for i in (0, 1))
        if len(truth):
            axes[0].plot(*reliability_points(probability, truth), marker="o", label=f"{source}: {len(truth)} labels")
    axes[0].plot([0, 1], [0, 1], color="#cccccc", linewidth=0.8)
    axes[0].set(xlabel="calibrated probability, mean of a tenth of the labels", ylabel="share that is present")
    _legend(axes[0], fontsize="small")
    return _png(figure)


def reliability_points(
    probability: NDArray[np.float64], truth: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean probability and share present in up to ten groups of equal size, both (G,), from (K,)."""
    groups = np.array_split(np.argsort(probability, kind="stable"), min(BINS, len(probability)))
    return np.array([probability[g].mean() for g in groups]), np.array([truth[g].mean() for g in groups])


def confusion(said: NDArray[np.bool_], truth: NDArray[np.float64]) -> bytes:
    """Draw a square of counts for each observation that is there at all.

    Args:
        said: (K, 14).
        truth: (K, 14), 1, 0 or NaN (left out).
    """
    shown = [at for at in range(len(OBSERVATIONS)) if (truth[:, at] == 1).any() or said[:, at].any()]
    figure, axes = _figure(len(shown), width=1.7, height=2.0, columns=7)
    for axis, at in zip(axes, shown, strict=True):
        square = confusion_counts(said[:, at], truth[:, at])
        axis.imshow(square / np.maximum(square.sum(axis=1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1)
        for row, column in np.ndindex(2, 2):
            dark = square[row, column] > 0.5 * square[row].sum()
            axis.text(column, row, str(square[row, column]), ha="center", va="center", color="w" if dark else "k")
        axis.set_title(OBSERVATIONS[at].replace(" ", "\n", 1), fontsize="small")
        axis.set_xticks([0, 1], ["said", "not"], fontsize="x-small")
        axis.set_yticks([0, 1], ["present", "absent"], fontsize="x-small")
    return _png(figure)


def confusion_counts(said: NDArray[np.bool_], truth: NDArray[np.float64]) -> NDArray[np.int64]:
    """Count studies: rows present and absent, columns said and not said; int64 (2, 2) from (K,)."""
    return np.array([[int((said & row).sum()), int((~said & row).sum())] for row in (truth == 1, truth == 0)])


def _known(perceived: Perceived, rows: NDArray[np.int64], at: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    labels = perceived.labels[rows, at]
    known = ~np.isnan(labels)
    return perceived.probabilities[rows, at][known], labels[known] > 0.5


def _enough(truth: NDArray[np.bool_]) -> bool:
    return bool(min(truth.sum(), (~truth).sum()) >= MIN_POSITIVES)


def _colour(at: int) -> str:
    return f"C{at % 10}"


def _legend(axis: Axes, *, fontsize: str) -> None:
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=fontsize, loc="lower right")


def _figure(panels: int, *, width: float, height: float, columns: int = 3) -> tuple[Figure, list[Axes]]:
    """A figure of so many panels, each of the given size in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = max(1, min(columns, panels))
    rows = max(1, -(-panels // columns))
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes[panels:]:
        axis.set_axis_off()
    return figure, axes[:panels]


def _png(figure: Figure) -> bytes:
    held = io.BytesIO()
    figure.savefig(held, format="png", dpi=110)
    return held.getvalue()
