"""The words that the sentence labeler knows, as tables to read and to correct.

Notation of a phrase: words with a space between; ``a|b`` is one of both, ``word?`` (or ``a|b?``) may be missing,
``word(s)`` has a plural. Hyphens in a text count as spaces, capitals as small letters. Of several phrases that
begin at a word the longest wins, so a longer phrase with the value ``None`` hides a shorter one.

The observation lists follow the idea of the CheXpert labeler (Irvin et al. 2019); words and choices are our own:

- "infiltrate" and "airspace disease" are Lung Opacity, "infection" is Pneumonia, heart failure is Edema;
  vascular congestion alone is not.
- "lungs are clear" denies Lung Opacity and Consolidation, "pleural spaces are clear" Pleural Effusion and
  Pneumothorax, "bones are intact" Fracture.
- A bare "effusion" is pleural.
"""

from __future__ import annotations

from collections.abc import Mapping

MENTIONS: Mapping[str, tuple[str, ...]] = {
    "Enlarged Cardiomediastinum": (
        "mediastinal widening|enlargement|prominence",
        "widening|enlargement of the mediastinum",
        "widening|enlargement of the mediastinal contour(s)|silhouette|shadow",
        "cardiomediastinal enlargement",
    ),
    "Cardiomegaly": (
        "cardiomegaly",
        "cardiac|heart enlargement",
        "enlargement of the heart",
        "enlargement of the cardiac silhouette|shadow|contour(s)",
        "enlargement of cardiac silhouette",
        "cardiac silhouette enlargement",
        "megalocardia",
    ),
    "Lung Opacity": (
        "opacity",
        "opacities",
        "opacification(s)",
        "opacified",
        "infiltrate(s)",
        "infiltration(s)",
        "airspace|airspaces disease|process",
        "air space disease|process",
        "parenchymal density|densities",
        "airspace density|densities",
        "basilar|basal|interstitial density|densities",
    ),
    "Lung Lesion": (
        "nodule(s)",
        "nodular density|densities|opacity|opacities|lesion(s)|shadow(s)",
        "nodularity",
        "mass",
        "masses",
        "masslike opacity|density",
        "mass like opacity|density",
        "lesion(s)",
        "neoplasm(s)",
        "tumor(s)",
        "carcinoma",
        "metastasis",
        "metastases",
    ),
    "Edema": (
        "edema",
        "heart failure",
        "cardiac failure|decompensation",
        "chf",
    ),
    "Consolidation": ("consolidation(s)", "consolidative opacity|opacities|process|changes", "consolidated"),
    "Pneumonia": ("pneumonia(s)", "bronchopneumonia", "infection", "infectious process|disease|etiology|infiltrate(s)"),
    "Atelectasis": (
        "atelectasis",
        "atelectases",
        "atelectatic",
        "collapse",
        "lobe|lobar|lung|segmental collapse",
    ),
    "Pneumothorax": ("pneumothorax", "pneumothoraces", "pneumothoraxes", "hydropneumothorax", "ptx"),
    "Pleural Effusion": (
        "effusion(s)",
        "pleural effusion(s)",
        "pleural fluid",
        "hydropneumothorax",
        "hemothorax",
        "empyema",
    ),
    "Pleural Other": (
        "pleural thickening(s)|plaque(s)|plaquing|scarring|fibrosis|calcification(s)|mass|masses|abnormality",
        "pleural parenchymal scarring",
        "pleuroparenchymal scarring",
        "thickening of the pleura",
        "apical pleural? cap(s)|capping",
        "fibrothorax",
    ),
    "Fracture": ("fracture(s)", "fractured", "fx"),
    "Support Devices": (
        "pacemaker(s)|pacer(s)|icd|aicd|defibrillator(s)|pacing",
        "pacemaker lead(s)|wire(s)|battery",
        "catheter(s)",
        "central venous? line(s)|catheter(s)",
        "jugular|subclavian|ij|picc|port line(s)|catheter(s)",
        "picc(s)",
        "line(s) and|or tube(s)",
        "tube(s)",
        "endotracheal|nasogastric|enteric|orogastric|feeding|tracheostomy|chest|thoracostomy tube(s)",
        "support device(s)|apparatus",
        "medical device(s)",
        "portacath",
        "mediport",
        "port a cath",
        "chest port",
        "infusion port",
        "drain(s)",
        "lead(s)",
        "stent(s)",
        "prosthetic|mechanical|artificial|replacement valve(s)",
        "valve replacement|prosthesis",
        "swan ganz catheter?",
        "stimulator",
    ),
}
"""Observation → phrases that name it."""

DENY_ONLY: Mapping[str, tuple[str, ...]] = {
    "Fracture": (
        "acute? osseous|bony|bone|skeletal|rib abnormality|abnormalities|finding(s)|injury|injuries|pathology",
        "osseous|bony thoracic abnormality|abnormalities",
        "acute abnormality|abnormalities of the bones",
    ),
    "Pleural Effusion": ("pleural disease", "blunting of the costophrenic angle(s)"),
    "Pneumothorax": ("pleural disease",),
}
"""Observation → general phrases that say nothing about it unless they are denied."""

ABNORMALITY: tuple[str, ...] = (
    "acute|active radiographic|visible|visualized|radiographically? cardiopulmonary|cardiothoracic|intrathoracic|"
    "thoracic|chest? abnormality|abnormalities|disease|process|processes|finding(s)|pathology|disorder",
    "acute|active cardiac or|and pulmonary abnormality|abnormalities|disease|process|finding(s)",
    "acute|active cardiac or|and|/ pulmonary abnormality|abnormalities|disease|process|finding(s)",
    "acute|active heart|cardiac or|and lung disease|abnormality",
    "acute? cardiopulmonary abnormality|abnormalities|disease|process|finding(s)|pathology",
    "abnormality of the chest",
)
"""Denied they call the study normal (No Finding present), asserted abnormal (No Finding absent)."""

IGNORED: tuple[str, ...] = (
    "pericardial effusion(s)",
    "joint effusion(s)",
    "soft tissue edema|swelling|mass",
    "subcutaneous|ankle|leg edema",
    "mediastinal|hilar|bony|bone|osseous|lytic|sclerotic|blastic|breast|rib|vertebral mass|masses|lesion(s)",
    "bony|bone|osseous destructive|metastatic lesion(s)",
    "lytic or|and|/ blastic|sclerotic lesion(s)",
    "destructive lesion(s)",
    "aggressive lesion(s)",
    "vertebral|disc|disk|compression body? collapse",
    "mass effect",
    "tube like",
    "leads to",
    "lead(s) projected|projecting|overlie|overlying",
    "ekg|ecg|eeg|cardiac|monitor|monitoring|telemetry monitor|monitoring? lead(s)",
    "hiatal|hiatus hernia",
    "no|without significant|interval|definite|appreciable|acute|substantial? interval|significant? change(s)",
    "no|without change|increase|decrease|improvement|progression|worsening",
    "not significantly|substantially|appreciably? changed|increased|decreased|progressed",
    "not well|optimally|fully|completely|entirely seen|visualized|evaluated|demonstrated|included",
    "nearly|almost|partially|incompletely completely? resolved|cleared",
    "not yet? resolved|cleared",
    "otherwise clear|normal|unremarkable",
    "normal|abnormal variant",
)
"""Phrases that say nothing about the observation their words would name."""

SUBJECTS: Mapping[str, tuple[str, ...]] = {
    "heart": (
        "heart",
        "heart size",
        "cardiac silhouette|size|contour(s)|shadow",
        "cardiac silhouette size",
        "size of the heart",
        "cardiac",
    ),
    "mediastinum": (
        "mediastinum",
        "mediastinal",
        "mediastinal contour(s)|silhouette(s)|shadow|structures|width|size|borders",
        "superior? mediastinum",
    ),
    "heart and mediastinum": (
        "cardiomediastinal silhouette|contour(s)|shadow|structures|size|borders",
        "cardio mediastinal silhouette|contour(s)",
        "cardiac mediastinal silhouette|contour(s)",
        "cardiomediastinal",
        "cardiomediastinum",
        "cardiopulmonary silhouette",
    ),
    "lungs": (
        "lungs",
        "lung fields|parenchyma|zones",
        "both lungs|lung",
        "lung",
        "pulmonary parenchyma",
        "hemithoraces",
    ),
    "pleura": ("pleural spaces|space|surfaces", "pleura"),
    "angles": ("costophrenic angle(s)|sulci|sulcus|recesses",),
    "bones": (
        "bones",
        "ribs",
        "osseous|bony|skeletal structures|thorax|elements|skeleton",
        "skeleton",
        "visualized? osseous|bony",
        "bony thorax",
    ),
    "study": (
        "chest",
        "chest x ray|film|radiograph|radiographs|xray|examination|exam|study",
        "chest x",
        "frontal|lateral chest",
        "exam",
        "examination",
        "radiograph(s)",
    ),
    "other": (
        "aorta",
        "thoracic aorta",
        "aortic",
        "vascularity",
        "vasculature",
        "pulmonary vascularity|vasculature|vessels|arteries",
        "pulmonary vascular markings",
        "hila",
        "hilar",
        "hilum",
        "trachea",
        "airway",
        "diaphragm(s)",
        "hemidiaphragm(s)",
        "spine",
        "thoracic spine",
        "soft tissues",
        "upper abdomen",
        "lung volumes|apices|bases",
        "right|left|remaining|remainder|rest|upper|lower lung(s)",
        "remaining|remainder|rest of the lung(s)",
        "chest wall",
        "heart rate",
        "lung cancer",
    ),
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
    "study": (),
    "other": (),
}
"""Subject → what is absent when it is normal; a normal study is No Finding."""

WHEN_ENLARGED: Mapping[str, tuple[str, ...]] = {
    "heart": ("Cardiomegaly",),
    "mediastinum": ("Enlarged Cardiomediastinum",),
    "heart and mediastinum": ("Cardiomegaly", "Enlarged Cardiomediastinum"),
}
"""Subject → what is present when it is enlarged."""

PREDICATES: Mapping[str, tuple[str, ...]] = {
    "normal": (
        "normal",
        "within normal limits|limit|range",
        "wnl",
        "unremarkable",
        "clear",
        "cleared",
        "sharp",
        "intact",
        "negative",
        "upper limits|limit of? normal",
        "upper normal",
        "top normal",
        "high normal",
        "not grossly|significantly? widened|enlarged",
    ),
    "enlarged": (
        "enlarged",
        "widened",
        "enlargement",
        "enlarging",
        "increased in size",
        "is|appears large",
        "widening",
    ),
    "borderline": (
        "borderline",
        "borderline enlarged|enlargement|prominent|large|size|normal",
        "slightly|mildly prominent",
        "prominent",
        "upper limits of normal to mildly enlarged",
    ),
    "neutral": ("stable", "unchanged", "obscured", "tortuous", "similar", "calcified", "not changed"),
}
"""How something is. Borderline makes the enlargement uncertain; neutral says neither."""

CUES: Mapping[str, tuple[str, ...]] = {
    "deny": (
        "no",
        "not",
        "without",
        "free of|from",
        "clear of",
        "negative for",
        "absence of",
        "lack of",
        "neither",
        "nor",
        "never",
        "rather than",
        "resolution of",
        "clearing of",
        "removal of",
        "denies",
        "excludes",
        "rules out",
        "unlikely to represent|be",
        "not show|demonstrate|reveal",
    ),
    "deny before": (
        "not clearly|definitely|currently|convincingly? seen|identified|present|visualized|evident|appreciated|"
        "demonstrated|detected|noted|apparent|visible|suspected|found|observed",
        "no longer clearly? seen|identified|present|visualized|evident|appreciated|demonstrated|visible|apparent",
        "has|have completely|since|now|also? resolved|cleared",
        "resolved",
        "is|are absent",
        "ruled out",
        "is|are excluded",
        "removed",
        "unlikely",
        "less likely",
    ),
    "doubt": (
        "may",
        "might",
        "could",
        "would",
        "possible",
        "possibly",
        "possibility of",
        "probable",
        "probably",
        "presumed",
        "presumably",
        "perhaps",
        "likely",
        "suspicious",
        "suspicion",
        "suspected",
        "suspect",
        "concern",
        "concerning",
        "worrisome",
        "suggest(s)",
        "suggested",
        "suggesting",
        "suggestive",
        "suggestion",
        "questionable",
        "question",
        "questioned",
        "equivocal",
        "favor(s)",
        "favored",
        "if",
        "potential",
        "potentially",
        "versus",
        "vs",
        "differential",
        "consider",
        "considered",
    ),
    "doubt surely": (
        "cannot|can't completely|entirely? exclude",
        "can not completely|entirely? exclude",
        "not completely|entirely? exclude",
        "difficult|hard to completely|entirely? exclude",
        "could not exclude",
        "rule out",
        "not ruled out",
    ),
    "doubt before": (
        "cannot|can not|not|could be completely|entirely|definitely? excluded|ruled",
        "cannot|can|could not? be completely|entirely|definitely? excluded|ruled",
        "not completely|entirely|definitely? excluded",
        "difficult to completely|entirely? exclude",
        "is|are possible|questionable|likely|probable|suspected|questioned|considered|favored|equivocal",
        "may|might|could be present",
        "not completely|entirely ruled out",
    ),
    "skip": (
        "history of",
        "h / o",
        "evaluate|evaluation|assess|assessment|evaluated for",
        "status post",
        "prior|previous|old pneumonia",
        "indication",
    ),
    "break": (
        "but",
        "however",
        "although",
        "though",
        "except",
        "other|apart|aside than|from",
        "while",
        "whereas",
        "despite",
        ";",
    ),
    "join": (",", "and", "with", "plus", "as well as"),
    "or": ("or", "/", "versus", "vs", "and / or"),
    "there": ("there is|are|remains|has|have", "show(s)", "demonstrate(s)", "reveal(s)"),
    "verb": (
        "is",
        "are",
        "was",
        "were",
        "has",
        "have",
        "appear(s)",
        "remain(s)",
        "seen",
        "noted",
        "again",
    ),
}
"""Words that turn or end what is said.

``deny``, ``doubt`` and ``skip`` reach forward over a list, the ``… before`` ones reach back; ``doubt surely`` wins
over a denial ("cannot exclude"); ``skip`` means that the image is not spoken of.
"""

STARTERS = frozenset(
    "a an the there small mild mildly moderate moderately minimal trace tiny left right bilateral bibasilar stable "
    "unchanged persistent low streaky patchy scattered increased worsening new mild subtle some interval "
    "probable possible likely questionable redemonstrated chronic old healed severe lungs heart".split()
)
"""Words that begin something new after a comma, "and" or "with", so that a denial before it ends."""

NOT_THE_IMAGE = frozenset(
    ("indication", "history", "clinical history", "clinical information", "comparison", "technique", "examination")
)
FINDINGS = frozenset(("findings", "finding"))
IMPRESSION = frozenset(("impression", "impressions", "conclusion", "conclusions"))
"""Headings, without the colon; what stands under the first kind is not about the image."""

ABBREVIATIONS = frozenset(
    "dr mr mrs ms st vs approx resp fig no. e.g i.e e.t.c etc cf incl lat ant post inf sup p.a a.p".split()
)
"""Words whose full stop ends no sentence."""
