"""What a record of peeling says in one or two sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .record import WHOLE_IMAGES, Contrast, End, ImagesBy, PeelingRecord


def listed(words: Sequence[str]) -> str:
    """One after another: ``a, b and c``."""
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def reached(record: PeelingRecord) -> str:
    """How far it came, in one sentence."""
    nearest = record.nearest
    if nearest is None:
        return f"Peeling found no foothold: {went_wrong(record)}"
    begun = " and ".join(record.footholds)
    many = f"{len(record.places)} places" if len(record.places) > 1 else "one place"
    shape = " x ".join(map(str, nearest.shape))
    every = f"every visit of its {record.local_steps} local steps" if record.local_steps else "every image"
    which = f"of the network for {every}, nearest to the images" if len(record.places) > 1 else "of the network:"
    whole = nearest.place == WHOLE_IMAGES
    where = "the images themselves" if whole else f"{which} {nearest.place}"
    gave = where if whole else f"{many} {where}"
    sent = "weight delta" if record.local_steps else "gradient"
    return f"By {begun} the {sent} determines {gave} ({shape}, estimated error {nearest.error_max:.1g} at most)."


def summary(record: PeelingRecord) -> str:
    """How far it came, why it went no further, and what became of the images."""
    said = (reached(record), loosely(record), repeated(record), ended(record), _images(record))
    return " ".join(filter(None, said))


def loosely(record: PeelingRecord) -> str:
    """What is known of single places, in one sentence; empty where nothing is."""
    loose = record.loose
    if loose is None:
        return ""
    some = f"all {loose.places:,}" if loose.count == loose.places else f"{loose.count:,} of the {loose.places:,}"
    return (
        f"At {loose.place} the weight delta determines the {loose.shape[0]:,} features of {some} places that the "
        f"visits of all local steps have there, each up to its length (estimated error {max(loose.errors):.1g} at "
        "most); of which visit, image and place each is does not show, nor which step's weights made it."
    )


def repeated(record: PeelingRecord) -> str:
    """That the gradient shows fewer images than the facts state, and how often each is there; empty where it does
    not."""
    repeats = record.repeats
    if repeats is None:
        return ""
    shown, stated = len(repeats.times), repeats.stated
    some = f"{shown} different images" if shown > 1 else "one image alone"
    text = f"The gradient shows {some} where the facts state {stated}"
    if not repeats.counted:
        return (
            f"{text}: which of them are there more than once, or whether an image has no part in the gradient, does "
            "not show."
        )
    more = [_times(*one) for one in zip(repeats.times, repeats.labels, strict=True) if one[0] > 1]
    said = [text]
    if more:
        said = [
            f"{text}: by the derivative of each image's loss {' and '.join(more)} (an image that is there once and "
            "whose loss counts as often makes the same gradient)"
        ]
    if not repeats.sure and not repeats.unseen:
        said.append("other numbers of copies and another factor would do as well")
    if repeats.unseen and not repeats.sure:
        was = "image may be a copy" if repeats.unseen == 1 else "images may be copies"
        said.append(
            f"{repeats.unseen} more {was} of these, as other numbers of copies would do as well (where the network is "
            "very sure of an image the gradient does not tell), or have no part in the gradient that rises above "
            "rounding"
        )
    elif repeats.unseen:
        was = "image has" if repeats.unseen == 1 else "images have"
        said.append(
            f"{repeats.unseen} more {was} no part in the gradient that rises above rounding, or a faint one alone, as "
            "where the network is very sure"
        )
    return f"{'; '.join(said)}."


def _times(times: int, labels: Sequence[int]) -> str:
    """How often an image is there, by its labels."""
    often = "twice" if times == 2 else f"{times} times"
    if len(set(labels)) == 1:
        return f"that of label {labels[0]} is there {often}"
    return f"one is there {often} with the labels {', '.join(map(str, labels[:-1]))} and {labels[-1]}"


def _images(record: PeelingRecord) -> str:
    """What a descent on the features made of the images, in one sentence; empty where there was none."""
    if record.found is None or record.found.by is not ImagesBy.DESCENT:
        return ""
    met = [error for error in record.found.errors if math.isfinite(error)]
    if record.found.confirmed:
        return (
            "A descent on these features leads to the images: what it found makes the gradient that was sent "
            f"(estimated error {max(met):.1g} at most)."
        )
    return (
        f"A descent met the features of {len(met)} of {len(record.found.errors)} images; nothing confirms that these "
        "are the private ones and not others with the same features."
    )


def went_wrong(record: PeelingRecord) -> str:
    """Why it ended, as the end of a sentence with a full stop."""
    if not record.ends:
        return (record.reason[:1].lower() + record.reason[1:]) or "nothing more follows."
    end = record.ends[0]
    would = would_do(end, visits=record.local_steps > 0)
    return f"{end.place}: {end.words}{f'; {would}' if would else ''}."


def ended(record: PeelingRecord) -> str:
    """Why it went no further, in one sentence; empty where it came to the images."""
    if record.nearest is None or record.nearest.place == WHOLE_IMAGES:
        return ""
    if not record.ends:
        return record.reason
    return f"It ended at {went_wrong(record)} {record.reason}".rstrip()


def would_do(end: End, *, visits: bool = False) -> str:
    """What would have let it go on, as a clause; empty where the number and the size of the images are not in the
    way.

    Args:
        end: Where it ended.
        visits: Whether what is counted are visits of local steps.
    """
    if end.most_images is None or end.largest_side is None:
        return ""
    what, many = ("visits of images", "visits") if visits else ("images", "images")
    images = (
        ("one visit of an image" if visits else "one image") if end.most_images == 1 else f"{end.most_images} {what}"
    )
    ways = [f"for {images} of this size"] if end.most_images else []
    ways += [f"for as many {many} of up to {end.largest_side} px"] if end.largest_side else []
    alone = "one visit alone is too much" if visits else "one image alone is too large"
    return f"they would be enough {', or '.join(ways)}" if ways else alone


def standing(record: PeelingRecord) -> tuple[tuple[str, str], ...]:
    """What is exact, what is determined and what comes from a prior: a title and a sentence for each."""
    nearest = record.nearest
    if nearest is None and record.loose is not None:
        some = "Up to the estimated errors and the length of each, features of single places; whose they are is open."
        return ("Exact", some), ("From a prior", "All that these do not tell of an image.")
    if nearest is None:
        return (("From a prior", "All that the gradient alone does not tell: no activations are known."),)
    if record.whole and (record.found is None or record.found.by is ImagesBy.EQUATIONS):
        return (("Exact", "The images, up to the estimated error: they follow from equations, without a prior."),)
    many = f"the activations at {len(record.places)} places" if len(record.places) > 1 else "the activations there"
    exact = (
        "Exact",
        f"Up to the estimated errors, {many}: {nearest.numbers:,} numbers of each image at the one nearest to the "
        "images. They follow from equations, without a prior.",
    )
    if record.whole:
        text = "The images: a descent met these features, and the images found make the gradient that was sent."
        return exact, ("Determined", text)
    determined = "What those activations see of the pixels: a picture with others is not of this batch."
    rest = "All that they do not see."
    if _behind_max_pool(record):
        determined = (
            "In front of the max-pooling, the winner of each window and an upper bound of all others, as far as those "
            "activations see them."
        )
        rest = "What only losers of the max-pooling see, and all else that those activations do not."
    if record.contrast is Contrast.HIDDEN:
        rest += " The contrast of the whole batch, which batch norm on its own statistics hides."
    guess = "Where the pictures show more, it is guessed"
    guess += ", as a decoder has it that was fitted on public photos." if record.decoded else "."
    return exact, ("Determined", determined), ("From a prior", f"{rest} {guess}")


def _behind_max_pool(record: PeelingRecord) -> bool:
    """Whether max-pooling lies between the images and all that is known."""
    by_name = {node.name: node for node in record.nodes}
    left = [record.nearest.value] if record.nearest is not None else []
    while left:
        node = by_name.get(left.pop())
        if node is not None:
            if node.kind == "max pool":
                return True
            left += node.inputs
    return False
