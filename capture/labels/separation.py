"""The batch taken apart into its images, from the gradient of the final layer alone: repeats and training allowed.

With rows ``d_i = p_i - y_i`` and features ``f_i`` (a one appended, for the bias) the final layer's gradient is

    B [dL/dW, dL/db] = sum_i d_i f_i^T = D^T F,

a matrix of rank B while there are fewer images than classes. So each ``d_i`` lies in its column space (spanned by
``U``), each ``f_i`` in its row space (spanned by ``V``), and ``f_i = V c`` with B unknown numbers ``c`` must satisfy

    (I - U U^T) (softmax(W V c + b) - e_y) = 0.

These are about ``K - B`` equations for one image and one label, independent of all other images; for ``K > 2 B`` they
have few solutions besides the images of the batch. A solution is checked by what it was not fitted to: with
``U S V^T`` the gradient, ``c_i^T S^-1 U^T d_j`` is 1 for ``i = j`` and 0 otherwise.

Only relative sizes matter: an image that the model knows well has a tiny ``d_i``, but its direction (the softmax over
the other classes) is as good as any. Rows are divided by their rounding error, so that singular values are signal over
noise and an image is lost only where its share of every row is below float32's rounding.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .final_layer import FinalLayer
from .label_space import Space, label_rows, make_space
from .separation_descent import descend

# Rounding error of one row of a float32 gradient, relative to the row's norm (measured: the first singular value beyond
# the batch is 0.8e-7 to 1.6e-7).
_ROW_ROUNDING = 1e-7
# Singular values above this multiple of the noise count as an image.
_SIGNAL = 4.0
# What a solution may miss by: in units of the noise (measured on true images: 0.1 to 20), and in the check that it was
# not fitted to (measured: below 0.02 on trained networks; what is no image is mostly off by its size).
_LARGEST_MISFIT = 50.0
_LARGEST_SCALE_ERROR = 0.1
# Two different images pair to 0, an image with itself to 1.
_OVERLAP = 0.3
_FIRST_STEPS, _LAST_STEPS, _POLISH_STEPS = 10, 20, 10
_STARTS_PER_LABEL = 4
_MOST_STARTS, _MOST_POLISHED = 400, 60
_ROUNDS = 6
# Entries of all Jacobians together.
_ENTRIES = 2**25
MOST_IMAGES = 128
"""Beyond this many images one least-squares problem is too large to be worth it."""


@dataclass(frozen=True)
class Separation:
    """The images that could be told apart, in the order in which they were found. Float64, on the CPU."""

    labels: Int[Tensor, " image"]
    features: Float[Tensor, "image feature"]
    """The final layer's input for each of them."""
    misfit: Float[Tensor, " image"]
    """Distance of ``p - y`` from the gradient's column space, in units of the noise: about 1 for a true image."""
    scale: Float[Tensor, " image"]
    """The check that was not fitted: 1 for a true image."""
    rank: int
    """Images that stand out of the noise; at most the batch size."""
    left_over: Float[Tensor, " class"]
    """Per class, what the images found leave of the gradient along their mean feature, in units of the noise. Well
    below zero where images of that class were not found."""


def separable(layer: FinalLayer, image_count: int) -> bool:
    """Whether one image's equations can be enough: more than twice as many classes as images, and not too many."""
    return 2 * image_count < layer.weight.shape[0] and image_count <= MOST_IMAGES


def separate(layer: FinalLayer, image_count: int) -> Separation:
    """The images of the batch that can be told apart, by least squares from many starts; found ones are taken out.

    Args:
        layer: The final layer with its gradient.
        image_count: B.
    """
    gradient, weight = layer.weight_gradient * image_count, layer.weight
    if layer.bias_gradient is not None:
        gradient = torch.cat([gradient, image_count * layer.bias_gradient[:, None]], dim=1)
        weight = torch.cat([weight, layer.bias[:, None]], dim=1)
    shift = None if layer.bias_gradient is not None else layer.bias
    noise = 0.0 if layer.clean else image_count * layer.noise * gradient.shape[1] ** 0.5
    rounding = (_ROW_ROUNDING * gradient.norm(dim=1)).hypot(torch.tensor(noise).double())
    weights = torch.where(rounding > 0, 1 / rounding.clamp_min(1e-300), 0.0)
    left, sizes, right = torch.linalg.svd(gradient * weights[:, None], full_matrices=False)
    rank = min(int((sizes > _SIGNAL).sum()), image_count)
    whole = make_space(left[:, :rank], sizes[:rank], right[:rank].T, weight, weights, shift is None)
    generator = torch.Generator().manual_seed(0)
    found, space, failures = _none(gradient), whole, 0
    while len(found.labels) < rank and failures < _ROUNDS:
        points, labels = _search(space, shift, generator, first=failures == 0)
        points, labels = descend(whole, shift, points @ space.right.T @ whole.right, labels, _POLISH_STEPS)
        before = len(found.labels)
        found = _accept(whole, shift, points, labels, found)
        failures = 0 if len(found.labels) > before else failures + 1
        space = _take_out(whole, found, weight, shift)
    coordinates = found.features @ whole.right
    rest = gradient * weights[:, None] - label_rows(whole, shift, coordinates, found.labels).T @ found.features
    return replace(
        found,
        features=found.features[:, : layer.weight.shape[1]],
        rank=rank,
        left_over=rest @ _typical(layer, found, gradient.shape[1]),
    )


def _typical(layer: FinalLayer, found: Separation, size: int) -> Float[Tensor, " feature"]:
    """The direction of the mean feature: of the images found, or of the probes."""
    features = found.features
    if not len(features):
        features = torch.cat([layer.prior_features, torch.ones_like(layer.prior_features[:, :1])], dim=1)[:, :size]
    mean = features.mean(dim=0)
    return mean / mean.norm().clamp_min(1e-300)


def _none(gradient: Tensor) -> Separation:
    empty, labels = gradient.new_zeros(0), torch.zeros(0, dtype=torch.long)
    return Separation(labels, gradient.new_zeros(0, gradient.shape[1]), empty, empty, 0, empty)


def _take_out(space: Space, found: Separation, weight: Tensor, shift: Tensor | None) -> Space:
    """The space without these images: its rank falls by their number."""
    coordinates = found.features @ space.right
    rows = label_rows(space, shift, coordinates, found.labels)
    rest = torch.diag(space.sizes) - (rows @ space.left).T @ coordinates
    left, sizes, right = torch.linalg.svd(rest)
    kept = max(len(sizes) - len(found.labels), 0)
    return make_space(
        space.left @ left[:, :kept],
        sizes[:kept],
        space.right @ right[:kept].T,
        weight,
        space.weights,
        shift is None,
    )


def _search(
    space: Space, shift: Tensor | None, generator: torch.Generator, first: bool
) -> tuple[Float[Tensor, "start rank"], Int[Tensor, " start"]]:
    """Where a least-squares search arrives from rows of the gradient, or from random mixtures of them."""
    points, labels = _starts(space, shift, generator, first)
    points, labels = descend(space, shift, points, labels, _FIRST_STEPS)
    kept = len(points) // 3
    points, labels = descend(space, shift, points[:kept], labels[:kept], _LAST_STEPS)
    return points[:_MOST_POLISHED], labels[:_MOST_POLISHED]


def _starts(
    space: Space, shift: Tensor | None, generator: torch.Generator, first: bool
) -> tuple[Float[Tensor, "start rank"], Int[Tensor, " start"]]:
    """Features to start from, each with the labels that fit it best: a row of the gradient is a weighted sum of
    features, and few images make up most of it."""
    rows = space.left * space.sizes
    if not first:
        mixing = torch.randn(max(len(rows), 100), len(rows), generator=generator, dtype=rows.dtype) ** 3
        rows = mixing @ (rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-300))
    if shift is None:
        last = rows @ space.right[-1]
        usable = last.abs() > 1e-9 * rows.norm(dim=1)
        rows = rows[usable] / last[usable, None]
    else:
        length = space.sizes.new_tensor(1.0) * space.logits.norm(dim=0).max().clamp_min(1e-300)
        rows = 5 * rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-300) / length
    outputs = (rows @ space.logits.T + (0.0 if shift is None else shift)).softmax(dim=1) * space.weights
    # For every label at once: the share of R softmax, without the label's own entry, that lies outside.
    outside = outputs - (outputs @ space.left) @ space.left.T
    missed = outside.square().sum(dim=1, keepdim=True) - outside.square() * space.inverse_heights
    length = outputs.square().sum(dim=1, keepdim=True) - outputs.square()
    misfit = (missed / length.clamp_min(1e-300)).nan_to_num(1.0)
    # For each label the best starts: no image is left out because another one is easier to find.
    values, starts = misfit.topk(min(_STARTS_PER_LABEL, len(misfit)), dim=0, largest=False)
    labels = torch.arange(misfit.shape[1]).expand_as(starts)
    most = min(_MOST_STARTS, max(_MOST_POLISHED, _ENTRIES // space.left.numel()))
    order = values.flatten().argsort()[:most]
    return rows[starts.flatten()[order]], labels.flatten()[order]


def _accept(
    space: Space,
    shift: Tensor | None,
    points: Float[Tensor, "start rank"],
    labels: Int[Tensor, " start"],
    found: Separation,
) -> Separation:
    """Those found, and those points that are further images: they fit to the noise, and pair to 1 with themselves and
    to 0 with every other."""
    points = torch.cat([found.features @ space.right, points])
    labels = torch.cat([found.labels, labels])
    rows = label_rows(space, shift, points, labels)
    inside = rows @ space.left
    lever = (inside / space.sizes).norm(dim=1).clamp_min(1e-300)
    misfit = (rows - inside @ space.left.T).norm(dim=1) / lever
    pairs = (points / space.sizes) @ inside.T
    scale = pairs.diagonal()
    good = (misfit < _LARGEST_MISFIT) & ((scale - 1).abs() < _LARGEST_SCALE_ERROR)
    chosen = list(range(len(found.labels)))
    for index in misfit.argsort().tolist():
        if not good[index] or index in chosen or len(chosen) == len(space.sizes):
            continue
        if not chosen or float(pairs[index, chosen].abs().max().minimum(pairs[chosen, index].abs().max())) < _OVERLAP:
            chosen.append(index)
    return Separation(labels[chosen], points[chosen] @ space.right.T, misfit[chosen], scale[chosen], 0, found.left_over)
