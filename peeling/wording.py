"""What a record of peeling says in one or two sentences."""

from __future__ import annotations

from .record import WHOLE_IMAGES, End, PeelingRecord


def reached(record: PeelingRecord) -> str:
    """How far it came, in one sentence."""
    nearest = record.nearest
    if nearest is None:
        return f"Peeling found no foothold: {went_wrong(record)}"
    begun = " and ".join(record.footholds)
    many = f"{len(record.places)} places" if len(record.places) > 1 else "one place"
    shape = " x ".join(map(str, nearest.shape))
    which = "of the network for every image, nearest to the images" if len(record.places) > 1 else "of the network:"
    whole = nearest.place == WHOLE_IMAGES
    where = "the images themselves" if whole else f"{which} {nearest.place}"
    gave = where if whole else f"{many} {where}"
    return f"By {begun} the gradient determines {gave} ({shape}, estimated error {nearest.error_max:.1g} at most)."


def went_wrong(record: PeelingRecord) -> str:
    """Why it ended, as the end of a sentence with a full stop."""
    if not record.ends:
        return (record.reason[:1].lower() + record.reason[1:]) or "nothing more follows."
    end = record.ends[0]
    would = would_do(end)
    return f"{end.place}: {end.words}{f'; {would}' if would else ''}."


def ended(record: PeelingRecord) -> str:
    """Why it went no further, in one sentence; empty where it came to the images."""
    if record.nearest is None or record.nearest.place == WHOLE_IMAGES:
        return ""
    if not record.ends:
        return record.reason
    return f"It ended at {went_wrong(record)}"


def would_do(end: End) -> str:
    """What would have let it go on, as a clause; empty where the number and the size of the images are not in the
    way."""
    if end.most_images is None or end.largest_side is None:
        return ""
    images = "one image" if end.most_images == 1 else f"{end.most_images} images"
    ways = [f"for {images} of this size"] if end.most_images else []
    ways += [f"for as many images of up to {end.largest_side} px"] if end.largest_side else []
    return f"they would be enough {', or '.join(ways)}" if ways else "one image alone is too large"
