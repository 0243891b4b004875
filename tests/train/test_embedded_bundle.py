"""What the embedded bundle shows, on phantoms of a new seed and on real patients that it was not trained on.

The limits stand a little below what was measured on larger sets (README), so that a change which loses it is noticed.
"""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.torch, pytest.mark.slow]

from trrg_train.data.annotation_json import read_annotation_json
from trrg_train.data.labelled_images import read_labelled_images
from trrg_train.data.phantom import write_dataset
from trrg_train.data.study import label_matrix
from trrg_train.evaluate import clue_auc, forced_figures, laterality, report_figures
from trrg_train.evaluation.clinical import SENTENCE_LABELER, asserted
from trrg_train.writers import BundleWriter

MINI = Path(__file__).parents[2] / "trrg_sdk" / "bundles" / "mini"
SEED, COUNT = 90210, 120


@pytest.fixture(scope="module")
def writer():
    return BundleWriter(MINI)


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms")
    write_dataset(folder, count=COUNT, seed=SEED, size=320)
    return read_annotation_json(folder, source="phantom")


def test_reports_on_new_phantoms_are_right_and_listen_to_the_image(writer, phantoms):
    written = writer.write(phantoms)
    refused = [study.study_id for study, w in zip(phantoms, written, strict=True) if w is None]
    assert len(refused) <= COUNT // 50, f"the gate refuses phantoms: {refused}"
    kept = [(study, w) for study, w in zip(phantoms, written, strict=True) if w is not None]
    labels = label_matrix([study for study, _ in kept]).astype(np.float64)
    figures = report_figures(asserted([w.text for _, w in kept], SENTENCE_LABELER, uncertain="absent"), labels)
    assert figures["macro_f1"] >= 0.8
    assert figures["macro_f1_images_shuffled"] < figures["macro_f1"] / 2
    views = np.array([study.view for study, _ in kept])
    assert clue_auc(np.stack([w.probabilities for _, w in kept]), labels, views)["macro"] >= 0.97
    sides = laterality([w.text for _, w in kept], [study.report for study, _ in kept])
    assert sides["findings"] >= 30
    assert sides["same"] >= 0.8
    assert sides["other"] <= 0.12


def test_reports_follow_forced_clues(writer, phantoms):
    followed = forced_figures(writer, phantoms[:6])
    assert followed["tries_each"] == 6 * 13
    assert followed["asserted_when_forced_up"] >= 0.75
    assert followed["not_asserted_when_forced_down"] >= 0.9


def test_clues_on_held_out_real_patients(writer, shared_data):
    """NIH labels are mined from text and go with the view; the README gives the figures within AP and PA too."""
    studies = read_labelled_images(shared_data / "images", source="nih", prefix="nih512/")
    studies = [study for study in studies if study.split == "test"]
    written = writer.write(studies)
    kept = [(study, w) for study, w in zip(studies, written, strict=True) if w is not None]
    assert len(kept) >= 0.97 * len(studies)
    labels = label_matrix([study for study, _ in kept]).astype(np.float64)
    views = np.array([study.view for study, _ in kept])
    each = clue_auc(np.stack([w.probabilities for _, w in kept]), labels, views)["each"]
    assert each["Pneumonia"]["auc"] >= 0.83
    assert each["Pleural Effusion"]["auc"] >= 0.76
    assert each["Edema"]["auc"] >= 0.88
