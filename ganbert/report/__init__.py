"""The report of a run: `write_report(RUN)` writes RUN/report.html, one self-contained page.

Reading order, and order of imports: `run` (what a run folder holds), `scores` (what the numbers
say), `panels` and `charts` (how it looks), `agreement` (what they say of subjects), `pictures`
(which subjects are shown), `page`.
"""

from ganbert.report.page import write_report

__all__ = ["write_report"]
