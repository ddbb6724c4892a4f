"""The page's words and rows on labels: how they were found, and how right they are."""

from __future__ import annotations

from collections import Counter

from ..coordinator import Reconstruction
from .assumptions import GIVEN_LABELS
from .results import AuditReport


def label_sentence(report: AuditReport, run: Reconstruction) -> str:
    """How many labels are right, and whether they were read off the update at all."""
    given, total = run.labels.method == GIVEN_LABELS, len(report.images)
    if report.label_accuracy is None:
        start = "Labels were given to the attack" if given else "Labels were inferred from the update"
        return f"{start}; without ground truth nobody can say how many are right."
    right = round(report.label_accuracy * total)
    if given:
        return f"Labels were given to the attack, not read off the update: {right} of {total} are those of the batch."
    return f"Labels: {right} of {total} recovered from the update ({report.label_accuracy:.0%})."


def label_tile(report: AuditReport, run: Reconstruction) -> tuple[str, str, str]:
    """Name, value and note of the headline number on labels."""
    total, given = len(report.images), run.labels.method == GIVEN_LABELS
    if report.label_accuracy is None:
        confidence = sum(image.confidence for image in report.images) / total
        if given:
            return "Labels", f"{total}", "given to the attack; not checked against the truth"
        return "Label confidence", f"{confidence:.0%}", "mean; not checked against the truth"
    right = round(report.label_accuracy * total)
    return "Labels", f"{right} of {total}", "right; they were given" if given else "recovered"


def label_scores(report: AuditReport) -> list[tuple[str, str, str]]:
    """Name, value and meaning of each score of the labels; empty without ground truth."""
    scores = report.label_scores
    if scores is None:
        return []
    return [
        ("Class presence, precision", f"{scores.precision:.0%}", "of the classes recovered, those in the batch"),
        ("Class presence, recall", f"{scores.recall:.0%}", "of the classes in the batch, those recovered"),
        ("Class count", f"{scores.class_count:.0%}", "of all classes on either side, those with the right count"),
        ("Instances", f"{scores.instances:.0%}", "of the private labels, those recovered"),
    ]


def label_rows(report: AuditReport, run: Reconstruction) -> list[tuple[int, int, str, int | None]]:
    """Class, its recovered count, the confidence in it, and the true count; classes that were missed come last."""
    known = report.label_scores is not None
    true = Counter(image.true_label for image in report.images)
    rows: list[tuple[int, int, str, int | None]] = [
        (found.label, found.count, f"{found.confidence:.0%}", true[found.label] if known else None)
        for found in run.labels.class_counts
    ]
    recovered = {row[0] for row in rows}
    missed = sorted(label for label in true if label is not None and label not in recovered)
    return rows + [(label, 0, "–", true[label]) for label in missed]
