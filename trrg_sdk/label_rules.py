"""The words that the sentence labeler knows, as tables to read and to correct.

Notation: phrases with a comma between; ``a|b`` is one of both, ``word?`` (or ``a|b?``) may be missing, ``word(s)``
has a plural. In a text, hyphens and digits count as spaces and capitals as small letters. Of several phrases that
begin at a word the longest wins, so a phrase of ``IGNORED`` hides the shorter ones inside it.

Which words belong to an observation follows the idea of the CheXpert labeler (Irvin et al. 2019); the lists and these
choices are our own:

- "infiltrate" and "airspace disease" are Lung Opacity, "infection" is Pneumonia, heart failure is Edema; vascular
  congestion alone is not.
- "lungs are clear" denies Lung Opacity and Consolidation, "pleural spaces are clear" Pleural Effusion and
  Pneumothorax, "bones are intact" Fracture.
- A bare "effusion" is pleural. A heart "at the upper limits of normal" is not enlarged, a "borderline heart size" is
  uncertain; "borderline cardiomegaly" names the disease, with a degree, and is present.
- "possible", "probable", "likely", "may", "suggests" are all uncertain, "consistent with" and "compatible with" assert.
  "A versus B" and "A or B" make both uncertain; "atelectasis or scarring" and "opacity/atelectasis" do not, as they
  give one finding two names.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

MENTIONS: Mapping[str, str] = {
    "Enlarged Cardiomediastinum": """
        mediastinal widening|enlargement|prominence, widening|enlargement of the? mediastinum,
        widening|enlargement of the? mediastinal contour(s)|silhouette|shadow, cardiomediastinal enlargement""",
    "Cardiomegaly": """
        borderline? cardiomegaly, borderline? cardiac|heart enlargement, increased heart|cardiac size,
        increase in heart|cardiac size, heart|cardiac size xxxx? large,
        increase in size of the? heart|cardiac silhouette?,
        enlargement of|in the? heart, enlargement of|in the? cardiac silhouette|shadow|contour(s),
        cardiac silhouette enlargement""",
    "Lung Opacity": """
        opacity, opacities, opacification(s), opacified, infiltrate(s), infiltration(s),
        airspace|airspaces disease|process, air space disease|process, parenchymal|airspace density|densities,
        basilar|basal|interstitial density|densities""",
    "Lung Lesion": """
        nodule(s), nodular density|densities|opacity|opacities|lesion(s)|shadow(s), nodularity, mass, masses, masslike,
        masslike|mass opacity|opacification|density, mass like opacity|opacification|density, lesion(s), neoplasm(s),
        tumor(s), carcinoma, metastasis, metastases""",
    "Edema": "edema, heart|cardiac failure, cardiac decompensation, chf",
    "Consolidation": """
        consolidation(s), consolidative opacity|opacities|process|changes?, consolidated, consolidating""",
    "Pneumonia": """
        pneumonia(s), bronchopneumonia, pneumonitis, infection,
        infectious process|processes|disease|etiology|infiltrate(s),
        infectious and|or|/ inflammatory process|processes|disease|etiology|etiologies""",
    "Atelectasis": "atelectasis, atelectases, atelectatic, collapse, lobe|lobar|lung|segmental collapse",
    "Pneumothorax": "pneumothorax, pneumothoraces, pneumothoraxes, hydropneumothorax, hemopneumothorax, ptx",
    "Pleural Effusion": """
        effusion(s), pleural effusion(s)|fluid, hydropneumothorax, hemopneumothorax, hemothorax, empyema""",
    "Pleural Other": """
        pleural thickening(s)|plaque(s)|plaquing|scarring|fibrosis|calcification(s)|mass|masses|abnormality,
        pleural parenchymal scarring, pleuroparenchymal scarring, thickening of the? pleura|fissure(s),
        fissural|fissure thickening, apical pleural? cap(s)|capping, fibrothorax""",
    "Fracture": "fracture(s), fractured, fx",
    "Support Devices": """
        pacemaker(s)|pacer(s)|icd|aicd|defibrillator(s)|pacing, pacemaker lead(s)|wire(s)|battery, catheter(s),
        central venous? line(s)|catheter(s), jugular|subclavian|ij|picc|port line(s)|catheter(s), picc(s),
        line(s) and|or|/ tube(s), tube(s), chest tube(s),
        endotracheal|nasogastric|enteric|orogastric|feeding|tracheostomy|thoracostomy tube(s), ett, tracheostomy,
        support|medical device(s), support apparatus, portacath, mediport, port a cath, chest|infusion port, drain(s),
        lead(s), stent(s), prosthetic|mechanical|artificial|replacement aortic|mitral|heart? valve(s),
        valve replacement|prosthesis, swan ganz catheter?, stimulator""",
}
"""Observation → phrases that name it."""

OTHER: Mapping[str, str] = {
    "scar": "scar(s), scarring, fibrosis, fibrotic change(s)",
    "other": """
        granuloma(s), artifact(s), nipple shadow(s), emphysema, copd, bronchovascular|vascular? crowding, contusion(s),
        hemorrhage, aspiration, inflammation, malignancy, tuberculosis, lymph node(s), vessel(s), bronchitis,
        bronchiolitis, eventration, hernia, fat pad(s)""",
}
"""What is none of the 14 but stands beside them in lists and alternatives."""

ONE_FINDING = frozenset({"scar", "Atelectasis"})
"""Names that "or" may give to one finding without a doubt ("scarring or atelectasis")."""

DENY_ONLY: Mapping[str, str] = {
    "Fracture": """
        acute? osseous|bony|bone|skeletal|rib abnormality|abnormalities|finding(s)|injury|injuries|pathology,
        osseous|bony thoracic abnormality|abnormalities, acute? abnormality|abnormalities of the bones""",
    "Pleural Effusion": "pleural disease, blunting of the costophrenic angle(s)",
    "Pneumothorax": "pleural disease",
}
"""Observation → general phrases that say nothing about it unless they are denied."""

ABNORMALITY = """
    acute|active radiographic|visible|visualized|radiographically? cardiopulmonary|cardiothoracic|intrathoracic
        abnormality|abnormalities|disease|process|processes|finding(s)|pathology|disorder,
    acute|active|significant radiographic|visible|visualized|radiographically? thoracic|chest|pulmonary|lung?
        abnormality|abnormalities|disease|process|processes|finding(s)|pathology|disorder,
    acute|active heart|cardiac or|and|/ lung|pulmonary abnormality|abnormalities|disease|process|finding(s),
    cardiopulmonary abnormality|abnormalities|disease|process|finding(s)|pathology,
    abnormality of the chest, abnormal chest|study|examination"""
"""Denied they call the study normal (No Finding present), asserted abnormal (No Finding absent)."""

IGNORED = """
    pericardial effusion(s), joint effusion(s), soft tissue edema|swelling|mass, subcutaneous|ankle|leg edema,
    mediastinal|hilar|bony|bone|osseous|lytic|sclerotic|blastic|breast|rib|vertebral|thyroid mass|masses|lesion(s),
    bony|bone|osseous destructive|metastatic lesion(s), lytic or|and|/ blastic|sclerotic lesion(s),
    destructive lesion(s), aggressive lesion(s), vertebral|disc|disk|compression body? collapse, mass effect,
    granulomatous|histoplasmosis|tuberculosis|tuberculous|tb infection, signs|symptoms of infection, leads to,
    prior|previous|old|remote|healed granulomatous|histoplasmosis|tuberculous|fungal? infection|pneumonia,
    prior|previous|old|remote|healed pulmonary|lung infection,
    sequela|sequelae|residua of prior|previous|old|remote? infection|pneumonia, old|prior|previous empyema, not without,
    no|without doubt, no question,
    lead(s) projected|projecting|overlie|overlying, monitor|monitoring lead(s),
    ekg|ecg|eeg|cardiac|telemetry monitor|monitoring? lead(s), hiatal|hiatus hernia, nodular prominence,
    not significantly|substantially|appreciably? changed|increased|decreased|progressed,
    not well|optimally|fully|completely|entirely seen|visualized|evaluated|demonstrated|included,
    near|partial|incomplete|almost complete? resolution|clearing|clearance of,
    nearly|almost|partially|incompletely completely? resolved|cleared, not yet? resolved|cleared,
    otherwise clear|normal|unremarkable, normal|abnormal variant, lung volumes|apices|bases, chest wall, heart rate,
    lung cancer, cardiac device"""
"""Phrases that say nothing about the observation their words would name."""

SUBJECTS: Mapping[str, str] = {
    "heart": """
        heart, heart size|silhouette|contour(s)|shadow|border(s), cardiac silhouette|size|contour(s)|shadow,
        cardiac silhouette size, size of the heart, cardiac""",
    "mediastinum": """
        superior? mediastinum, mediastinal,
        mediastinal contour(s)|silhouette(s)|shadow|structures|width|size|borders""",
    "heart and mediastinum": """
        cardiomediastinal, cardiomediastinum, cardiomediastinal silhouette|contour(s)|shadow|structures|size|borders,
        cardio mediastinal silhouette|contour(s), cardiac and|/? mediastinal silhouette(s)|contour(s)|structures,
        cardiopulmonary silhouette""",
    "lungs": "lung(s), lung fields|parenchyma|zones, both lungs|lung, pulmonary parenchyma, hemithoraces",
    "pleura": "pleural spaces|space|surfaces, pleura",
    "angles": "costophrenic angle(s)|sulci|sulcus|recesses",
    "bones": "bones, ribs, skeleton, osseous|bony, osseous|bony|skeletal structures|thorax|elements|skeleton",
    "study": """
        chest, chest x ray?, chest film|radiograph|radiographs|xray|examination|exam|study, frontal|lateral chest, exam,
        examination, radiograph(s)""",
    "other": """
        aorta, thoracic aorta, aortic, vascularity, vasculature, pulmonary vascularity|vasculature|vessels|arteries,
        pulmonary vascular markings, hila, hilar, hilum, trachea, airway, diaphragm(s), hemidiaphragm(s), spine,
        thoracic spine, soft tissues, upper abdomen, right|left|remaining|remainder|rest|upper|lower lung(s),
        remaining|remainder|rest of the lung(s)""",
}
"""What a predicate such as "normal" or "enlarged" can be said of."""

WHEN_NORMAL: Mapping[str, tuple[str, ...]] = {
    "heart": ("Cardiomegaly",),
    "mediastinum": ("Enlarged Cardiomediastinum",),
    "heart and mediastinum": ("Cardiomegaly", "Enlarged Cardiomediastinum"),
    "lungs": ("Lung Opacity", "Consolidation"),
    "pleura": ("Pleural Effusion", "Pneumothorax"),
    "angles": ("Pleural Effusion",),
    "bones": ("Fracture",),
}
"""Subject → what is absent when it is normal; a normal study is No Finding."""

WHEN_ENLARGED: Mapping[str, tuple[str, ...]] = {
    "heart": ("Cardiomegaly",),
    "mediastinum": ("Enlarged Cardiomediastinum",),
    "heart and mediastinum": ("Cardiomegaly", "Enlarged Cardiomediastinum"),
}
"""Subject → what is present when it is enlarged."""

PREDICATES: Mapping[str, str] = {
    "normal": """
        normal, within normal limits|limit|range, wnl, unremarkable, clear, cleared, sharp, intact, negative,
        upper limits|limit of? normal, upper|top|high normal""",
    "enlarged": """
        enlarged, widened, enlargement, enlarging, widening, increased in size, is|are|appears|remains large,
        slightly|mildly|moderately|markedly large, borderline enlarged|enlargement,
        is|are|appears|remains mildly|slightly|moderately|markedly? increased""",
    "borderline": """
        borderline, borderline prominent|large|size|normal, slightly|mildly prominent, prominent,
        upper limits of? normal or|to slightly|mildly? enlarged|large""",
    "neutral": "stable, unchanged, obscured, tortuous, similar, calcified, not changed",
}
"""How something is. Borderline makes the enlargement uncertain; neutral says neither."""

CUES: Mapping[str, str] = {
    "deny": """
        no, not, nothing, without, free of|from, otherwise? clear of, negative for,
        absence|lack|resolution|clearing|clearance|removal of, neither, nor, never, rather than, denies, excludes,
        rules out, unlikely to represent|be,
        not show|demonstrate|reveal, neither lung shows?, w / o""",
    "deny before": """
        not clearly|definitely|currently|convincingly? seen|identified|present|visualized|evident|appreciated,
        not clearly|definitely|currently|convincingly? demonstrated|detected|noted|apparent|visible|suspected|found,
        no longer clearly? seen|identified|present|visualized|evident|appreciated|demonstrated|visible|apparent,
        has|have completely|since|now|also? resolved|cleared, resolved, is|are absent, ruled out, is|are excluded,
        removed, is|are unlikely|less likely""",
    "deny last": "unlikely, less likely",
    "doubt": """
        may, maybe, might, could, would, possible, possibly, possibility of, probable, probably, presumed, presumably,
        perhaps, likely, suspicious, suspicion, suspected, suspect, concern, concerning, worrisome, suggest(s),
        suggested, suggesting, suggestive, suggestion, doubtful, questionable, question, questioned, equivocal,
        favor(s), favored, favoring, if, potential, potentially, consider, considered,
        in the appropriate|correct|proper|right clinical setting|context which|this|it? may|might|could|would""",
    "doubt surely": """
        cannot|can't completely|entirely? exclude, can not completely|entirely? exclude,
        not completely|entirely? exclude, difficult|hard to completely|entirely? exclude, could not exclude,
        to exclude, not excluding, rule out, cannot confirm""",
    "doubt list": "differential, considerations include",
    "doubt before": """
        cannot|can't be completely|entirely|definitely? excluded, can|could not be completely|entirely? excluded,
        not be? completely|entirely|definitely? excluded, not completely|entirely? ruled out, cannot be ruled out,
        cannot be confirmed,
        in the appropriate|correct|proper|right clinical setting|context, in the differential diagnosis?,
        is|are a|an|another|also|the? consideration(s),
        difficult to completely|entirely? exclude, may|might|could also? be present,
        is|are also? possible|questionable|likely|probable|suspected|questioned|considered|favored|equivocal""",
    "skip": """
        history of, h / o, evaluate|evaluation|assess|assessment|evaluated for, status post, indication,
        sensitive for|in, correlation|correlate clinically? for, clinical correlation, follow up of""",
    "break": """
        but, however, although, though, except, other|apart|aside than|from, while, whereas, despite,
        after, following""",
    "join": "and, with, w /, plus, as well as",
    "or": "or, and / or",
    "versus": "versus, vs, more|less likely than, is|are? favored over",
    "slash": "/",
    "no change": """
        no|without significant|interval|definite|appreciable|acute|substantial? interval|significant? change(s),
        no|without interval|significant|appreciable? change|increase|decrease|improvement|progression|worsening""",
    "there": "there is|are|remains|has|have, show(s), demonstrate(s), reveal(s)",
    "verb": "is, are, was, were, has, have, appear(s), remain(s), seen, noted, again",
}
"""Words that turn or end what is said.

``deny``, ``doubt`` and ``skip`` reach forward over a list, the ``… before`` ones reach back; ``doubt surely`` wins
over a denial ("cannot exclude"), ``doubt list`` reaches over commas; ``skip`` means that the image is not spoken of.
``deny last`` and ``doubt before`` reach back over the last list only, ``deny before`` over the whole clause. ``no
change`` denies nothing: what follows is there.
"""

PUNCTUATION: Mapping[str, str] = {",": "join", ";": "break"}

GOES_ON = frozenset({",", ";", "and", "but", "with", "without", "in", "since", "compared", "from"})
"""What may follow "enlarged" where it is said of a subject further back ("unchanged and mildly enlarged since")."""

LINKS: Mapping[str, str] = {",": ",", "with": "with", "w": "with"}
"""How a "join" ties two findings; every other one makes a list. What reaches back over a list stops elsewhere."""

STARTERS = frozenset(
    """
    a an the there small mild mildly moderate moderately minimal trace tiny left right bilateral bibasilar stable
    unchanged persistent only low streaky patchy scattered increased worsening new subtle some interval probable
    possible likely questionable definite chronic old healed severe lungs heart
    """.split()
)
"""Words that begin something new after a comma, "and" or "with", so that a denial before it ends."""

NOT_THE_IMAGE = frozenset(
    {
        *("indication", "indications", "history", "clinical history", "clinical information", "clinical indication"),
        *("reason for exam", "reason for examination", "reason for study", "comparison", "comparisons", "technique"),
        *("recommendation", "recommendations"),
    }
)
FINDINGS = frozenset({"findings", "finding"})
IMPRESSION = frozenset({"impression", "impressions", "conclusion", "conclusions"})
"""Headings, without the colon; what stands under the first kind is not about the image."""

ABBREVIATIONS = frozenset({"dr", "mr", "mrs", "ms", "st", "vs", "approx", "fig", "e.g", "i.e", "etc", "cf", "incl"})
"""Words whose full stop ends no sentence."""


def _phrases(listed: str) -> Iterator[tuple[str, ...]]:
    """All word sequences of phrases in the notation of the tables."""
    for phrase in listed.split(","):
        slots: list[list[str]] = []
        for slot in phrase.split():
            options = slot.removesuffix("?").split("|")
            words = [w for o in options for w in ([o[:-3], f"{o[:-3]}s"] if o.endswith("(s)") else [o])]
            slots.append([*words, ""] if slot.endswith("?") else words)
        yield from (tuple(filter(None, choice)) for choice in itertools.product(*slots))


Node = dict[str, Any]
"""A trie over words: word → node; under the empty word the kind and value of the phrase that ends here."""


@functools.cache
def lexicon() -> Node:
    """All phrases of the tables as one trie; made on first use. Later tables overrule earlier ones."""
    root: Node = {}
    tables: list[tuple[str, str, str]] = [(kind, "", listed) for kind, listed in CUES.items()]
    tables += [("subject", value, listed) for value, listed in SUBJECTS.items()]
    tables += [("predicate", value, listed) for value, listed in PREDICATES.items()]
    tables += [("deny only", value, listed) for value, listed in DENY_ONLY.items()]
    tables += [("mention", value, listed) for value, listed in MENTIONS.items()]
    tables += [("abnormality", "No Finding", ABNORMALITY), ("ignored", "", IGNORED)]
    tables += [("other", value, listed) for value, listed in OTHER.items()]
    for kind, value, listed in tables:
        for words in _phrases(listed):
            node = functools.reduce(lambda node, word: node.setdefault(word, {}), words, root)
            known = node.get("", ("", ()))
            several = known[1] if known[0] == kind and kind in ("mention", "deny only") else ()
            node[""] = (kind, tuple(dict.fromkeys((*several, value))))
    for mark, kind in PUNCTUATION.items():
        root[mark] = {"": (kind, ("",))}
    return root


class Item(NamedTuple):
    """A phrase that was found: its kind, what it stands for, its first word and the word after it."""

    kind: str
    value: tuple[str, ...]
    start: int
    end: int


def find_phrases(words: Sequence[str]) -> list[Item]:
    """Find the phrases of the tables, left to right, the longest first, none overlapping.

    Args:
        words: Small letters; a comma, a semicolon and a slash are words of their own.

    Returns:
        In order.
    """
    tree, items = lexicon(), []
    position, count = 0, len(words)
    while position < count:
        node = tree.get(words[position])
        position += 1
        if node is None:
            continue
        start, stop, best = position - 1, position, None
        while node is not None:
            if "" in node:
                best, position = node[""], stop
            node = node.get(words[stop]) if stop < count else None
            stop += 1
        if best is not None:
            items.append(Item(best[0], best[1], start, position))
    return items
