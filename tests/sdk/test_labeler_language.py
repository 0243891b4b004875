"""What the rules of language do: each heading one rule, each line a sentence of our own and what it says."""

from __future__ import annotations

import pytest

from tests.sdk.test_labeler import expected
from trrg_sdk.labeler import label_report, label_sentence

RULES = """
# a denial goes along the list
No pleural effusion, no pneumothorax, no consolidation. · PE- PX- CO-
There is no evidence of focal consolidation, pneumothorax, or pleural effusion. · CO- PX- PE-
No focal consolidation, pleural effusion, pneumothorax. · CO- PE- PX-
Without effusion or pneumothorax. · PE- PX-
Nothing to suggest pneumonia. · PN-
No suspicious pulmonary nodules or masses are seen. · LL-
Findings are not consistent with pneumonia. · PN-
No acute bony abnormality or pneumothorax. · FX- PX-
No infiltrate/effusion. · LO- PE-

# a denial ends where something new begins
No pneumothorax, however a small effusion is present. · PX- PE+
There is no effusion, but atelectasis is seen at the left base. · PE- AT+
No effusion, and there is mild atelectasis. · PE- AT+
No effusion; however, mild atelectasis. · PE- AT+
No effusion although mild edema is suspected. · PE- ED?
No effusion is identified, though a small pneumothorax remains. · PE- PX+
Neither consolidation nor effusion, only mild atelectasis. · CO- PE- AT+
No focal consolidation, although early pneumonia cannot be excluded. · CO- PN?
Right effusion has resolved, left effusion persists. · PE+
The lungs are clear of consolidation, but there is cardiomegaly. · CO- CM+
Effusion on the left, none on the right. · PE+

# free of, without, clear of
Lungs free of consolidation, with a small left effusion. · CO- PE+
The lungs are clear and free of effusion. · LO- CO- PE-
The left base is now clear of consolidation. · CO-
Edema without effusion. · ED+ PE-
Small effusion with no pneumothorax. · PE+ PX-

# cleared and resolved, or not quite
Edema has cleared. · ED-
The consolidation has now resolved. · CO-
Interval clearing of the right base opacity. · LO-
Interval clearance of the effusion. · PE-
Near complete clearing of the consolidation. · CO+
Pneumonia has not cleared. · PN+
The pneumonia has almost cleared. · PN+
Resolving right effusion. · PE+
Resolved effusion and persistent atelectasis. · PE- AT+
Partially resolved consolidation. · CO+

# seen before, and now
Previously seen left effusion is no longer present. · PE-
The nodule, which was previously seen, is no longer present. · LL-
The effusion seen on the prior study is no longer evident. · PE-
There is no longer a pneumothorax. · PX-
Previously noted effusion has decreased. · PE+
The previously seen left effusion has decreased but not resolved. · PE+
Since the prior study, the effusion has resolved. · PE-

# no change denies nothing
No increase in the left effusion. · PE+
No interval increase in left pleural effusion. · PE+
No interval change in right pneumothorax. · PX+
No appreciable change in the left pleural effusion or atelectasis. · PE+ AT+
No change from prior, no effusion. · PE-
No improvement in the left base atelectasis. · AT+
Effusion without significant change. · PE+
The pneumothorax has not increased. · PX+
No interval change. ·
No increased opacity. · LO-

# two denials
Not without a small effusion. · PE+
There is no doubt of a pneumothorax. · PX+
Opacity without doubt represents pneumonia. · LO+ PN+
Effusion is not absent. · PE+
Cannot rule out a small pneumothorax. · PX?
Underlying pneumonia is not ruled out. · PN?
It is not possible to exclude pneumonia. · PN?
Does not exclude pneumonia. · PN?
Not excluding a small effusion. · PE?
Pneumonia cannot be confirmed. · PN?

# doubt
Findings concerning for pneumonia. · PN?
Opacity worrisome for pneumonia. · LO+ PN?
Question of a small pneumothorax. · PX?
Doubtful pneumonia. · PN?
Probable atelectasis. · AT?
Opacity likely representing atelectasis. · LO+ AT?
Appearance suggests edema. · ED?
Bronchopneumonia is in the differential. · PN?
Atypical infection is a consideration. · PN?
Raises the possibility of pneumonia. · PN?
Differential considerations include edema, infection, and hemorrhage. · ED? PN?
Opacity which in the appropriate clinical setting could be pneumonia. · LO+ PN?
In the right clinical context, this is consistent with infection. · PN?

# doubt leaves alone what stood before
Opacity, pneumonia cannot be excluded. · LO+ PN?
Opacity compatible with pneumonia in the appropriate clinical setting. · LO+ PN?
Effusion and pneumonia cannot be excluded. · PE? PN?
Edema, effusion, or pneumonia cannot be excluded. · ED? PE? PN?
Atelectasis, less likely pneumonia. · AT+ PN-
Atelectasis, pneumonia less likely. · AT+ PN-
Opacity, which may represent atelectasis, and a small effusion. · LO+ AT? PE+
Possible pneumonia, no effusion. · PN? PE-

# what is asserted in spite of a careful word
Opacity consistent with pneumonia. · LO+ PN+
Most consistent with atelectasis. · AT+
Findings consistent with edema. · ED+

# alternatives
Atelectasis versus scarring. · AT?
Scarring versus atelectasis. · AT?
Edema vs. pneumonia. · ED? PN?
Atelectasis more likely than pneumonia. · AT? PN?
Atelectasis is favored over pneumonia. · AT? PN?
Effusion and/or atelectasis. · PE? AT?
Pneumonia or aspiration. · PN?
Peripheral opacity reflects scar or a little pleural fluid. · LO+ PE?
Opacity compatible with scarring or atelectasis. · LO+ AT+
Linear atelectasis or scar. · AT+
Bibasilar atelectasis/airspace disease. · AT+ LO+

# asked of the reader, or of the past
Please correlate clinically for pneumonia. ·
Clinical correlation for infection is recommended. ·
Follow-up of pneumonia. ·
Calcified nodes suggest old histoplasmosis infection. ·
Sequela of prior infection. ·

# the heart
Stable cardiomegaly without effusion. · CM+ PE-
Borderline enlarged heart. · CM+
Heart size is borderline. · CM?
Cardiac size is top-normal. · CM-
Heart size is mildly increased. · CM+
Marked increase in size of the heart. · CM+
The heart remains enlarged. · CM+
The heart is not clearly enlarged. · CM-
Heart size normal, enlarged thyroid. · CM-
Heart size normal, increased interstitial markings. · CM-
Normal heart size, large effusion. · CM- PE+
Unchanged cardiomediastinal silhouette. ·
The heart is normal in size with a tortuous aorta. · CM-
The aorta is tortuous and calcified. ·

# bones
Mild degenerative changes without fracture. · FX-
Degenerative changes of the thoracic spine. ·
Old healed right rib fracture. · FX+
Vertebral compression deformity. ·
Sternotomy wires are intact. ·

# devices
Right-sided PICC line in good position without pneumothorax. · SD+ PX-
ETT in place. · SD+
Prosthetic aortic valve. · SD+
Pacemaker leads terminate in the right ventricle. · SD+
Interval removal of the right chest tube. · SD-
The feeding tube was removed, no pneumothorax. · SD- PX-
ET tube has been withdrawn. · SD+
Overlying EKG leads, no effusion. · PE-
No pneumothorax after removal of the chest tube. · PX- SD-

# removed words
No XXXX of a pleural effusion. · PE-
XXXX opacity, XXXX atelectasis. · LO+ AT+
The XXXX are clear of effusion. · PE-
Cardiac size XXXX large. · CM+
XXXX is normal. ·

# measures and comparisons
A 12 mm nodule is seen in the left upper lobe, previously 9 mm. · LL+
Compared with the prior study, the effusion is larger. · PE+
In comparison to the prior exam, there is a new pneumothorax. · PX+
Pneumothorax measures 2 cm, previously 3 cm. · PX+
Improved but persistent effusion. · PE+

# headings inside the sentence
LUNGS: Clear. · LO- CO-
Bones: No acute fracture. · FX-
Lungs/pleura: No focal consolidation, pleural effusion, or pneumothorax. · CO- PE- PX-

# a normal study
No acute pulmonary disease. · NF+
No significant abnormality. · NF+
Abnormal chest. · NF-
"""


def by_rule() -> list[tuple[str, str]]:
    rules = [block.strip().splitlines() for block in RULES.split("#") if block.strip()]
    return [(rule, line) for rule, *lines in rules for line in lines if line]


@pytest.mark.parametrize(("rule", "line"), by_rule())
def test_rule(rule: str, line: str) -> None:
    sentence, codes = line.split("·")
    assert label_sentence(sentence.strip()) == expected(codes), rule


@pytest.mark.parametrize("heading", ["REASON FOR EXAM", "Clinical indication", "COMPARISONS", "Recommendation"])
def test_what_stands_under_such_a_heading_is_not_about_the_image(heading: str) -> None:
    report = f"{heading}: Pneumothorax, nodule. FINDINGS: No effusion."
    assert label_report(report) == {"Pleural Effusion": "absent", "No Finding": "present"}
