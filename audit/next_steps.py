"""What to try next, after this verdict: each a sentence with the words to add to the command."""

from __future__ import annotations

from ..coordinator import Reconstruction
from .controls import NULL_CONTROLS
from .results import AuditReport
from .verdict import Leak

_MOST_FACTS = 3


def next_steps(report: AuditReport, reconstruction: Reconstruction) -> list[str]:
    """Sentences, the most urgent first: what would make the verdict surer, or what it asks for.

    Args:
        report: The audit.
        reconstruction: That it is of.
    """
    found = []
    doubtful = [fact for fact in reconstruction.facts if fact.doubtful]
    for fact in doubtful[:_MOST_FACTS]:
        found.append(f"Tell what the client did, for the verdict hangs on it: {fact.title} ({fact.remedy}).")
    if report.verdict.leak is Leak.UNKNOWN and report.matching is None:
        found.append("Give the images behind the update, if you own them, to have it measured: private=FOLDER.")
    if report.verdict.leak in (Leak.LEAKED, Leak.WEAK):
        found.append("Ask which change of settings stops it: the verb audit with budget=10m and the same words.")
    if report.matching is not None and not any(control.name in NULL_CONTROLS for control in report.controls):
        found.append(
            "Hold it against attacks that saw nothing of these images: "
            "audit.controls=constant_image,no_gradient,other_images audit.pool=photos."
        )
    if report.verdict.leak is Leak.NONE:
        found.append(
            "Attack with more effort before you rely on it: more seeds (agents.count=8), more steps "
            f"(agents.iterations={2 * max(1, reconstruction.iterations)}), and the weights of early and late training."
        )
    if report.verdict.leak is Leak.FAILED:
        found.append("Take smaller steps: agents.learning_rate=0.01; the messages below say what happened.")
    return found
