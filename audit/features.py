"""Whether the features that the gradient determines are those of the private images: then they leaked, picture or not.

Who holds an image can push it through the server's model and see whether its features are among those recovered; at
errors of 1e-6 that is certain. Only who holds the private images can say that it is so, and the audit does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import scipy
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..capture import CapturedUpdate, PrivateBatch, client_mode
from ..capture.labels.final_layer import natural_noise
from ..coordinator import Reconstruction
from ..peeling import KnownFeatures
from ..peeling.resolutions import resolution_sentence
from ..peeling.wording import loosely, reached
from ..target.second_derivative import forward_to
from .feature_leak import FeatureLeak
from .image_result import ImageResult
from .matching import same_images
from .pool import Pool
from .verdict import Leak, Verdict

# Images of noise that stand in for other images where there is no pool.
_STAND_INS = 32

FEATURE_RULE = (
    " An image also counts as leaked when the activations that the gradient gives are its own and no other image's "
    "come within ten times that distance."
)


def measure_feature_leak(
    model: nn.Module, private: PrivateBatch, update: CapturedUpdate, known: KnownFeatures, pool: Pool | None
) -> FeatureLeak:
    """The recovered features held against those of the private images and of other images.

    Args:
        model: in the state that the client started from; it is left as it was.
        private: the true images in [0, 1].
        update: that was attacked.
        known: what the attack recovered.
        pool: other images; None has images of noise stand in for them.
    """
    noise = update.normalisation.invert(natural_noise(_STAND_INS, update.image_shape))
    parts = _parts(private.images, noise if pool is None else pool.images)
    like = next(model.parameters())
    with torch.no_grad(), client_mode(model, update.batch_norm):
        reached_by = [
            forward_to(model, update.normalisation.apply(part.to(like)), known.module, output=known.output)[:count]
            for part, count in parts
        ]
    features = torch.cat(reached_by).flatten(1).double().cpu()
    features = features.clamp_min(0) if known.rectified else features
    found = known.activations.flatten(1).double().cpu()
    own = features[: len(private.images)]
    distances = torch.cdist(own, found) / own.norm(dim=1, keepdim=True).clamp_min(1e-300)
    order = _partners(distances)
    rows = found[list(order)]
    others = torch.cdist(rows, features) / own.norm(dim=1, keepdim=True).clamp_min(1e-300)
    # An image that is in the batch twice is no other image.
    others[:, : len(own)][same_images(private.images)] = torch.inf
    return FeatureLeak(
        known.words,
        known.way,
        tuple(float(distances[image, row]) for image, row in enumerate(order)),
        tuple(others.min(dim=1).values.tolist()),
    )


def _partners(distances: Float[Tensor, "image found"]) -> list[int]:
    """Which of those found is held against each image; where images repeat, fewer are found, each of them once."""
    if distances.shape[1] < distances.shape[0]:
        return [int(one) for one in distances.argmin(dim=1)]
    return [int(one) for one in scipy.optimize.linear_sum_assignment(distances.numpy())[1]]


def _parts(own: Tensor, rest: Tensor) -> list[tuple[Tensor, int]]:
    """The private batch, then other images in batches as large, each part with how many of it count: with the batch's
    own statistics the private images must be among themselves, as in the client, and some models take one size."""
    others = torch.split(rest.to(own), len(own))
    filled = [torch.cat([part, own[: len(own) - len(part)]]) for part in others]
    return [(own, len(own)), *zip(filled, map(len, others), strict=True)]


def with_feature_leaks(images: Sequence[ImageResult], leak: FeatureLeak | None) -> tuple[ImageResult, ...]:
    """The results, where an image of which no picture was recovered counts as leaked by its features."""
    if leak is None:
        return tuple(images)
    return tuple(
        replace(image, verdict=_of_image(image.verdict, leak, image.index), by_features=True)
        if leak.recognised[image.index] and image.verdict.leak is not Leak.LEAKED
        else image
        for image in images
    )


def _of_image(verdict: Verdict, leak: FeatureLeak, index: int) -> Verdict:
    reason = f"{verdict.headline[0].upper()}{verdict.headline[1:]}. {verdict.detail}".strip()
    picture = "weak picture" if verdict.leak is Leak.WEAK else "no picture"
    return Verdict(Leak.LEAKED, f"features leaked: known to {leak.errors[index]:.0e}, {picture}", reason)


def resolution_note(reconstruction: Reconstruction) -> str:
    """At which resolution features are known, in one sentence; empty where none are."""
    record = reconstruction.peeling
    height, width = reconstruction.images.shape[-2:]
    return "" if record is None else resolution_sentence(record, (height, width))


def with_features(verdict: Verdict, leak: FeatureLeak | None, pictures: int, note: str = "") -> Verdict:
    """The verdict on the batch, which calls no image safe whose features are known.

    Args:
        verdict: by the pictures, and by what is doubtful about them.
        leak: None where the attack recovered no features.
        pictures: of how many images a picture leaked.
        note: at which resolution they are known.
    """
    if leak is None:
        return verdict
    known, total = sum(leak.recognised), len(leak.recognised)
    if not known:
        return verdict
    whose = "the private image" if total == 1 else f"all {total} images" if known == total else f"{known} of {total}"
    largest = max(error for error, recognised in zip(leak.errors, leak.recognised, strict=True) if recognised)
    detail = (
        f"By {leak.way} the gradient gives {leak.place} of {whose} away, to {largest:.0e}: whoever holds an image can "
        "tell with it that it was in the batch."
    )
    detail = f"{detail} {note}".rstrip()
    if verdict.leak is Leak.LEAKED:
        if pictures == total:
            return verdict
        headline = f"{verdict.headline}, and the features of {whose}"
        return replace(verdict, headline=headline, detail=f"{verdict.detail} {detail}")
    whose = whose if known == total else f"{whose} images"
    picture = "Only a weak picture" if verdict.leak is Leak.WEAK else "No picture"
    return Verdict(Leak.LEAKED, f"{picture}, but the features of {whose} leaked", f"{detail} {verdict.detail}")


def with_record(verdict: Verdict, reconstruction: Reconstruction, leak: FeatureLeak | None, truth: bool) -> Verdict:
    """The verdict on the batch, which is not calm either where the gradient determines features or images that were not
    held against the private ones.

    Args:
        verdict: by all else.
        reconstruction: with the record of peeling.
        leak: None where the features were not held against the private images.
        truth: whether there are private images.
    """
    record = reconstruction.peeling
    if record is None or leak is not None or verdict.leak not in (Leak.NONE, Leak.UNKNOWN):
        return verdict
    if record.nearest is None and record.loose is None:
        return verdict
    what = "the images" if record.whole else "features of every image"
    if record.nearest is None:
        what = "features of single places of its visits"
    start = "No picture" if truth else "No ground truth"
    at = resolution_note(reconstruction)
    told = "Whoever holds an image can tell by these numbers whether it was in the batch."
    if record.nearest is None:
        # What an image has there is computed with the weights of its step, of which those that were sent are the first.
        told = (
            "Whoever holds an image that was in the first step can tell by these numbers that it was, if the places of "
            "its visit are among them: that step had the weights that were sent. Of later steps these numbers tell as "
            "much to those alone who know or find the weights that had changed by then."
        )
    sent = "weight delta" if record.local_steps else "gradient"
    headline = f"{start}, but the {sent} determines {what}"
    detail = " ".join(filter(None, (reached(record), loosely(record), at, told, verdict.detail)))
    return Verdict(Leak.UNKNOWN, headline, detail)
