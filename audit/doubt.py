"""When "no leak shown" is not earned: an attack that rests on a fact nobody knows shows nothing by finding nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..capture import Provenance
from ..capture.stated import StatedFact
from ..coordinator import Reconstruction
from .assumptions import as_sentence
from .image_result import ImageResult
from .results import CONFIRMED_GAP
from .verdict import Leak, Verdict

LARGEST_GAP = 0.02
"""Relative distance between the captured update and the one that the facts make of the private images, above which a
fact is wrong: rounding to 16 bits leaves a tenth of it."""

_MOST_NAMED = 4


@dataclass(frozen=True)
class Doubt:
    """One reason why finding nothing shows nothing."""

    subject: str
    """What is in doubt, in two or three words."""
    reason: str
    """In one sentence, with a full stop."""
    remedy: str = ""
    """What to give, in one sentence; empty where nothing helps."""
    of_the_attack: bool = False
    """Whether it is the attack that falls short, and no fact about the client."""


def find_doubts(reconstruction: Reconstruction, truth_gap: float | None = None) -> tuple[Doubt, ...]:
    """Every doubt about what the attack took for granted, the most decisive first.

    Args:
        reconstruction: the result of the attack, with the facts that it believed.
        truth_gap: relative distance between the captured update and the one that the facts make of the private images;
            None where it is not known, or where a defence is meant to make it large.
    """
    found = []
    if truth_gap is not None and not truth_gap <= LARGEST_GAP:
        found.append(
            Doubt(
                "the facts together",
                f"At the private images themselves the update that the facts describe is {truth_gap:.0%} off the "
                "captured one, so a fact about the client is wrong, or these are not its images.",
                "Compare the facts below with the client's code.",
            )
        )
    found += [
        Doubt("what the attack can do", as_sentence(limit), of_the_attack=True) for limit in reconstruction.limits
    ]
    confirmed = truth_gap is not None and truth_gap <= CONFIRMED_GAP
    doubtful = [fact for fact in reconstruction.facts if fact.doubtful]
    found += [_doubt_of(fact) for fact in doubtful if fact.contradiction or not confirmed]
    return tuple(found)


def _doubt_of(fact: StatedFact) -> Doubt:
    subject = fact.title.lower()
    if fact.contradiction:
        text = fact.contradiction.strip().rstrip(".")
        reason = f"{fact.title} ({fact.words}, {fact.provenance}): {text}."
        return Doubt(subject, reason, f"Give the right one, such as {fact.remedy}.")
    assert fact.provenance is Provenance.ASSUMED
    return Doubt(subject, f"{fact.title}: nobody told, {fact.words} was assumed.", f"Give it, such as {fact.remedy}.")


def withhold_from_images(images: Sequence[ImageResult], doubts: Sequence[Doubt]) -> tuple[ImageResult, ...]:
    """The results, where no image is called safe on the strength of a doubtful fact."""
    if not doubts:
        return tuple(images)
    return tuple(
        replace(image, verdict=_withheld(image.verdict, doubts)) if image.verdict.leak is Leak.NONE else image
        for image in images
    )


def _withheld(verdict: Verdict, doubts: Sequence[Doubt]) -> Verdict:
    reason = f"{verdict.headline[0].upper()}{verdict.headline[1:]}. {verdict.detail}".strip()
    return Verdict(Leak.UNKNOWN, f"cannot be told: {_shortcoming(doubts)}", reason)


def withhold(verdict: Verdict, unshown: int, doubts: Sequence[Doubt]) -> Verdict:
    """The verdict on the batch: "cannot be told" in place of "no leak shown" where something was doubtful.

    Args:
        verdict: as the numbers alone have it.
        unshown: images of which nothing was shown to leak.
        doubts: what speaks against the facts that the attack rests on.
    """
    if not doubts or verdict.leak is Leak.FAILED:
        return verdict
    if verdict.leak is Leak.NONE:
        return Verdict(
            Leak.UNKNOWN,
            f"Cannot be told: nothing was recovered, but {_shortcoming(doubts)}",
            f"{verdict.detail} {in_sentences(doubts)}",
        )
    if unshown:
        subject = "one image" if unshown == 1 else f"{unshown} images"
        said = f"Of {subject} nothing was shown, and nothing can be told. {in_sentences(doubts)}"
        return replace(verdict, detail=f"{verdict.detail} {said}")
    if verdict.leak is Leak.WEAK:
        said = f"That is the least that leaks: {_shortcoming(doubts)}, and more may show. {in_sentences(doubts)}"
        return replace(verdict, headline=f"{verdict.headline} at least", detail=f"{verdict.detail} {said}")
    return verdict


def _shortcoming(doubts: Sequence[Doubt]) -> str:
    limits = sum(doubt.of_the_attack for doubt in doubts)
    facts = len(doubts) - limits
    unknown = "a fact about the client is" if facts == 1 else "facts about the client are"
    if not limits:
        return f"{unknown} not known"
    blind = "the attack could not search as it should"
    return f"{blind}, and {unknown} not known" if facts else blind


def in_sentences(doubts: Sequence[Doubt]) -> str:
    """The doubts that matter most, each with what would end it."""
    named = doubts[:_MOST_NAMED]
    more = len(doubts) - len(named)
    rest = f" So it is with {more} more fact{'s' * (more != 1)}: see “What is known of the client”." if more else ""
    return " ".join(" ".join(filter(None, (doubt.reason, doubt.remedy))) for doubt in named) + rest
