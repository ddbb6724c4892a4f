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
_LEAST_HEIGHT = 1e-10
_FIRST_STEPS, _LAST_STEPS, _POLISH_STEPS = 10, 20, 10
_STARTS_PER_LABEL = 4
_MOST_STARTS, _MOST_POLISHED = 400, 60
_ROUNDS = 6
# Entries of all Jacobians together, and of those that are computed side by side.
_ENTRIES, _ENTRIES_AT_ONCE = 2**25, 2**22
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


@dataclass(frozen=True)
class _Space:
    """What is left to explain: the weighted gradient is ``left @ diag(sizes) @ right.T``."""

    left: Float[Tensor, "class rank"]
    sizes: Float[Tensor, " rank"]
    right: Float[Tensor, "feature rank"]
    logits: Float[Tensor, "class rank"]
    """``W V``."""
    weights: Float[Tensor, " class"]
    """What the rows were multiplied with."""
    origin: Float[Tensor, " rank"]
    """A point where the appended feature is one; zeros without a bias."""
    free: Float[Tensor, "rank free"]
    """Directions that leave it one."""
    inverse_heights: Float[Tensor, " class"]
    """``1 / |(I - U U^T) e_k|^2``; 0 where the unit vector lies inside the column space."""

    def outside(
        self, rows: Float[Tensor, "start class"], labels: Int[Tensor, " start"]
    ) -> Float[Tensor, "start class"]:
        """The part of each row outside the span of the column space and of its label's unit vector.

        The label's own entry, ``p_y - 1``, has lost digits in float32 wherever the model is sure. The error is a
        multiple of ``e_y f^T``, so that the entry counts as unknown and nothing else changes.
        """
        rest = rows - (rows @ self.left) @ self.left.T
        return rest - (self.entries(rest, labels) * self.inverse_heights[labels])[:, None] * self.towards(labels)

    def towards(self, labels: Int[Tensor, " start"]) -> Float[Tensor, "start class"]:
        """``(I - U U^T) e_y``."""
        one_hot = torch.zeros(len(labels), len(self.left), dtype=self.left.dtype).scatter(1, labels[:, None], 1.0)
        return one_hot - self.left[labels] @ self.left.T

    def corrected(
        self, rows: Float[Tensor, "start class"], labels: Int[Tensor, " start"]
    ) -> Float[Tensor, "start class"]:
        """The rows with the label's entry as it was rounded."""
        rest = rows - (rows @ self.left) @ self.left.T
        correction = self.entries(rest, labels) * self.inverse_heights[labels]
        return rows.scatter_add(1, labels[:, None], -correction[:, None])

    @staticmethod
    def entries(rows: Float[Tensor, "start class"], labels: Int[Tensor, " start"]) -> Float[Tensor, " start"]:
        """Each row's entry at its label."""
        return rows.gather(1, labels[:, None])[:, 0]


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
    whole = _space(left[:, :rank], sizes[:rank], right[:rank].T, weight, weights, shift is None)
    generator = torch.Generator().manual_seed(0)
    found, space, failures = _none(gradient), whole, 0
    while len(found.labels) < rank and failures < _ROUNDS:
        points, labels = _search(space, shift, generator, first=failures == 0)
        points, labels = _descend(whole, shift, points @ space.right.T @ whole.right, labels, _POLISH_STEPS)
        before = len(found.labels)
        found = _accept(whole, shift, points, labels, found)
        failures = 0 if len(found.labels) > before else failures + 1
        space = _take_out(whole, found, weight, shift)
    coordinates = found.features @ whole.right
    rest = gradient * weights[:, None] - _rows(whole, shift, coordinates, found.labels).T @ found.features
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


def _space(left: Tensor, sizes: Tensor, right: Tensor, weight: Tensor, weights: Tensor, has_bias: bool) -> _Space:
    rank = len(sizes)
    if has_bias and rank:
        last = right[-1]
        origin = last / last.square().sum().clamp_min(1e-300)
        free = torch.linalg.qr(torch.cat([last[:, None], torch.eye(rank, dtype=last.dtype)], dim=1)).Q[:, 1:rank]
    else:
        origin, free = right.new_zeros(rank), torch.eye(rank, dtype=right.dtype)
    heights = (1 - left.square().sum(dim=1)).clamp_min(0)
    inverse = torch.where(heights > _LEAST_HEIGHT, 1 / heights.clamp_min(_LEAST_HEIGHT), 0.0)
    return _Space(left, sizes, right, weight @ right, weights, origin, free, inverse)


def _take_out(space: _Space, found: Separation, weight: Tensor, shift: Tensor | None) -> _Space:
    """The space without these images: its rank falls by their number."""
    coordinates = found.features @ space.right
    rows = _rows(space, shift, coordinates, found.labels)
    rest = torch.diag(space.sizes) - (rows @ space.left).T @ coordinates
    left, sizes, right = torch.linalg.svd(rest)
    kept = max(len(sizes) - len(found.labels), 0)
    return _space(
        space.left @ left[:, :kept],
        sizes[:kept],
        space.right @ right[:kept].T,
        weight,
        space.weights,
        shift is None,
    )


def _rows(
    space: _Space, shift: Tensor | None, points: Float[Tensor, "start rank"], labels: Int[Tensor, " start"]
) -> Float[Tensor, "start class"]:
    """``R (softmax(z) - e_y)``, the label's entry as the client's float32 must have had it."""
    logits = points @ space.logits.T + (0.0 if shift is None else shift)
    outputs = logits.softmax(dim=1).scatter(1, labels[:, None], 0.0)
    exact = outputs.scatter(1, labels[:, None], -outputs.sum(dim=1, keepdim=True))
    return space.corrected(exact * space.weights, labels)


def _search(
    space: _Space, shift: Tensor | None, generator: torch.Generator, first: bool
) -> tuple[Float[Tensor, "start rank"], Int[Tensor, " start"]]:
    """Where a least-squares search arrives from rows of the gradient, or from random mixtures of them."""
    points, labels = _starts(space, shift, generator, first)
    points, labels = _descend(space, shift, points, labels, _FIRST_STEPS)
    kept = len(points) // 3
    points, labels = _descend(space, shift, points[:kept], labels[:kept], _LAST_STEPS)
    return points[:_MOST_POLISHED], labels[:_MOST_POLISHED]


def _starts(
    space: _Space, shift: Tensor | None, generator: torch.Generator, first: bool
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


def _descend(
    space: _Space, shift: Tensor | None, points: Float[Tensor, "start rank"], labels: Int[Tensor, " start"], count: int
) -> tuple[Float[Tensor, "start rank"], Int[Tensor, " start"]]:
    """Levenberg-Marquardt on the share of ``softmax - e_y`` outside the column space, side by side; best first."""
    chunk = max(1, _ENTRIES_AT_ONCE // (len(space.left) * max(len(space.sizes), 1)))
    steps, values = [], []
    for some, of in zip(
        *(torch.split(part, chunk) for part in ((points - space.origin) @ space.free, labels)), strict=True
    ):
        arrived, value = _levenberg_marquardt(space, shift, some, of, count)
        steps.append(arrived)
        values.append(value)
    order = torch.cat(values).argsort()
    return (space.origin + torch.cat(steps) @ space.free.T)[order], labels[order]


def _levenberg_marquardt(
    space: _Space, shift: Tensor | None, steps: Float[Tensor, "start free"], labels: Int[Tensor, " start"], count: int
) -> tuple[Float[Tensor, "start free"], Float[Tensor, " start"]]:
    damping = steps.new_full((len(steps),), 1e-2)
    slopes = space.logits @ space.free
    towards, inverse = space.towards(labels), space.inverse_heights[labels][:, None, None]

    def evaluate(at: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        logits = (space.origin + at @ space.free.T) @ space.logits.T + (0.0 if shift is None else shift)
        # The direction of the other entries does not depend on the label's own logit.
        shares = logits.scatter(1, labels[:, None], -torch.inf).softmax(dim=1)
        row = shares * space.weights
        length = row.norm(dim=1, keepdim=True).clamp_min(1e-300)
        return shares, row / length, length, space.outside(row / length, labels)

    state = evaluate(steps)
    value = state[3].square().sum(dim=1)
    # Where one image is left there is nothing to search: its feature is a row of the gradient.
    for _ in range(count if steps.numel() else 0):
        shares, unit, length, outside = state
        jacobian = shares[:, :, None] * (slopes - (shares @ slopes)[:, None, :])
        jacobian = jacobian * (space.weights / length)[:, :, None]
        jacobian = jacobian - unit[:, :, None] * (unit[:, None, :] @ jacobian)
        jacobian = jacobian - space.left @ (space.left.T @ jacobian)
        own = jacobian.gather(1, labels[:, None, None].expand(-1, 1, jacobian.shape[2])) * inverse
        jacobian = jacobian - towards[:, :, None] * own
        normal = jacobian.transpose(1, 2) @ jacobian
        diagonal = normal.diagonal(dim1=1, dim2=2)
        ridge = damping[:, None] * diagonal + 1e-14 * diagonal.amax(dim=1, keepdim=True)
        slope = (outside[:, None, :] @ jacobian)[:, 0, :, None]
        move = torch.linalg.solve_ex(normal + torch.diag_embed(ridge), slope).result[:, :, 0]
        trial = steps - move.nan_to_num(0.0, 0.0, 0.0)
        new_state = evaluate(trial)
        new_value = new_state[3].square().sum(dim=1)
        better = new_value < value
        steps = torch.where(better[:, None], trial, steps)
        keep = better[:, None]
        state = (
            torch.where(keep, new_state[0], state[0]),
            torch.where(keep, new_state[1], state[1]),
            torch.where(keep, new_state[2], state[2]),
            torch.where(keep, new_state[3], state[3]),
        )
        value = torch.where(better, new_value, value)
        damping = torch.where(better, damping / 5, damping * 4).clamp(1e-9, 1e6)
    return steps, value


def _accept(
    space: _Space,
    shift: Tensor | None,
    points: Float[Tensor, "start rank"],
    labels: Int[Tensor, " start"],
    found: Separation,
) -> Separation:
    """Those found, and those points that are further images: they fit to the noise, and pair to 1 with themselves and
    to 0 with every other."""
    points = torch.cat([found.features @ space.right, points])
    labels = torch.cat([found.labels, labels])
    rows = _rows(space, shift, points, labels)
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
