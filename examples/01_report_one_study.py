"""Report on one radiograph and say what each sentence rests on.

python examples/01_report_one_study.py [STUDY]
"""

from __future__ import annotations

import sys
from pathlib import Path

from trrg_sdk import InputError, Reporter

DATA = Path(__file__).parent / "data"


def main() -> int:
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else next(DATA.glob("*.dcm"))
    reporter = Reporter()  # the embedded bundle on the best device that works
    try:
        report = reporter.report(source)
    except InputError as error:
        print(f"no report ({error.code}): {error}", file=sys.stderr)
        return error.exit_code
    for sentence in report.sentences:
        support = ", ".join(f"{item.clue} {item.probability:.2f}" for item in sentence.evidence)
        print(f"{sentence.verdict:>13}  {sentence.text}  ({support or 'nothing to check'})")
    for omission in report.omissions:
        print(f"{'not said':>13}  {omission.clue} {omission.probability:.2f}")
    print(f"made by {report.provenance.bundle_id} on {report.provenance.device}; a draft, not for clinical use")
    return 0


if __name__ == "__main__":
    sys.exit(main())
