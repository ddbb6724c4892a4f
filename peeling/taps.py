"""The taps of a convolution: its input at every place of every image, from its weight gradient alone.

The weight gradient of a stride-1 convolution with padding that keeps the size is one matrix for each tap d of the
kernel, ``G_d = Delta^T T_d A``: A (N x C_in) the input at all ``N = B H W`` places of the batch, Delta (N x C_out) the
derivative of the loss by the output, and T_d the shift of the grid by d, known and the same for every image. Where ``N
<= min(C_in, C_out)`` the ranges of the G_d have N dimensions, and in them shifts are all that is left. Shifts by one
place to either side, added up, have known eigenvalues (sums and products of ``2 cos(pi j / (W + 1))`` and ``2 cos(pi l
/ (H + 1))``, the sine transform diagonalises them), so that the pencil of the outer taps against the middle one falls
apart into one eigenspace of B dimensions for each place. The other taps align these spaces. What is left open is one B
x B mixing of the images, since every image has the same grid; `unmixing` undoes it, where the input comes out of a
ReLU. It needs no labels, no final layer and no knowledge of what lies behind the layer.

Everything is checked: the rank, the eigenvalues, and what the factors leave of the gradient.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .layers import relative

# Pencils that are tried for the widest gap between eigenvalues, and inverse iterations on each eigenspace.
_PENCILS, _ITERATIONS = 400, 4
# Rounds of averaging the alignment over all pairs of places, and of alternating least squares over all taps.
_SYNCHRONISED, _REFINED = 30, 3
# Singular values beyond the N-th, relative to it, above which the gradient is not made of N places. Rounding to
# bfloat16 leaves 0.13 of them where places come out to a thousandth; what is made of others fails the later checks.
_LARGEST_LEAK = 0.3
MOST_PLACES = 512
"""Of all images together; the time grows with the fourth power of the grid's side."""


@dataclass(frozen=True)
class Factors:
    """Input and cotangent of the convolution, up to one mixing of the images. Float64, on the CPU."""

    inputs: Float[Tensor, "image place input"]
    cotangents: Float[Tensor, "image place output"]
    misfit: float
    """What they leave of the weight gradient, relative."""
    leak: float
    """The largest singular value that N places cannot explain, over the smallest one that they do; 0 where there is no
    further one."""


def factor_taps(
    weight_gradient: Float[Tensor, "output input height width"], image_count: int, size: tuple[int, int]
) -> Factors | None:
    """Input and cotangent of a stride-1 convolution whose output has the size of its input.

    Args:
        weight_gradient: captured; an odd kernel, without dilation or groups.
        image_count: B.
        size: height and width of the layer's input.

    Returns:
        None where there are more places than channels or than are affordable, or where the gradient is not that of so
        many places.
    """
    gradient = weight_gradient.detach().cpu().double()
    outputs, inputs = gradient.shape[:2]
    places = image_count * size[0] * size[1]
    if places > min(outputs, inputs, MOST_PLACES) or not bool(torch.isfinite(gradient).all()):
        return None
    within = compressed(gradient, places, places)
    if within is None:
        return None
    left, small, leak = within.left, within.taps, within.leak
    try:
        basis = _places(small, image_count, size)
        cotangents = (left @ (small[0, 0] @ basis)).T
        found = refine(gradient, cotangents, image_count, size)
    except RuntimeError:  # singular: the places do not span the gradient
        return None
    if found is None:
        return None
    own, theirs, misfit = found
    grid = (image_count, size[0] * size[1])
    return Factors(own.reshape(*grid, inputs), theirs.reshape(*grid, outputs), misfit, leak)


@dataclass(frozen=True)
class Compressed:
    """The taps between the directions that all of them have in common."""

    left: Tensor
    taps: dict[tuple[int, int], Tensor]
    """By shift, between these directions of the cotangents and of the inputs."""
    leak: float
    """See `Factors`."""


def compressed(gradient: Tensor, left_rank: int, right_rank: int) -> Compressed | None:
    """In as many directions of cotangents and inputs; None where the gradient has more."""
    taps = by_tap(gradient)
    left, left_leak = leading_range(torch.cat(list(taps.values()), dim=1), left_rank)
    right, right_leak = leading_range(torch.cat([tap.T for tap in taps.values()], dim=1), right_rank)
    leak = max(left_leak, right_leak)
    if not leak < _LARGEST_LEAK:
        return None
    return Compressed(left, {shift: left.T @ tap @ right for shift, tap in taps.items()}, leak)


def by_tap(gradient: Tensor) -> dict[tuple[int, int], Tensor]:
    """One matrix for each place of the kernel, by its shift from the middle."""
    height, width = gradient.shape[2:]
    return {
        (row - height // 2, column - width // 2): gradient[:, :, row, column]
        for row in range(height)
        for column in range(width)
    }


def leading_range(matrix: Tensor, rank: int) -> tuple[Tensor, float]:
    """An orthonormal basis of the leading directions, and what lies beyond them, relative to the weakest."""
    values, vectors = torch.linalg.eigh(matrix @ matrix.T)
    sizes = values.clamp_min(0).sqrt().flip(0)
    weakest = float(sizes[rank - 1])
    if weakest <= 1e-12 * float(sizes[0]):
        return vectors[:, -rank:], math.inf
    return vectors[:, -rank:], float(sizes[rank]) / weakest if rank < len(sizes) else 0.0


def _sines(length: int) -> tuple[Tensor, Tensor]:
    """The sine transform of a line, and the eigenvalues of the sum of its shifts to either side."""
    index = torch.arange(1, length + 1, dtype=torch.float64)
    transform = math.sqrt(2 / (length + 1)) * torch.sin(math.pi * index[:, None] * index / (length + 1))
    return transform, 2 * torch.cos(math.pi * index / (length + 1))


def _shift(size: tuple[int, int], by: tuple[int, int]) -> Tensor:
    """``T_d`` on one image's grid: place p reads place p + d, and zero outside."""
    grid = torch.eye(size[0] * size[1], dtype=torch.float64).reshape(*size, -1)
    return _moved(grid, by).reshape(-1, size[0] * size[1])


def _moved(values: Tensor, by: tuple[int, int]) -> Tensor:
    """Values on a grid ``(height, width, ...)`` as their neighbours at this distance see them."""
    moved = torch.zeros_like(values)
    height, width = values.shape[:2]
    rows, columns = by
    if abs(rows) >= height or abs(columns) >= width:
        return moved
    to_rows, to_columns = slice(max(0, -rows), height - max(0, rows)), slice(max(0, -columns), width - max(0, columns))
    from_rows, from_columns = (
        slice(max(0, rows), height + min(0, rows)),
        slice(max(0, columns), width + min(0, columns)),
    )
    moved[to_rows, to_columns] = values[from_rows, from_columns]
    return moved


def _pencil(size: tuple[int, int]) -> tuple[tuple[float, float, float], Tensor]:
    """Weights of the taps beside, above and across for which the eigenvalues lie farthest apart, and these."""
    rows, columns = _sines(size[0])[1], _sines(size[1])[1]
    generator = torch.Generator().manual_seed(0)
    best: tuple[float, tuple[float, float, float], Tensor] | None = None
    for beside, above, across in torch.rand(_PENCILS, 3, generator=generator, dtype=torch.float64).tolist():
        weights = (0.3 + 0.7 * beside, 0.3 + 0.7 * above, across - 0.5)
        eigenvalues = weights[1] * rows[:, None] + weights[0] * columns + weights[2] * rows[:, None] * columns
        ordered = eigenvalues.flatten().sort().values
        gap = float(ordered.diff().min() / ordered.abs().max()) if len(ordered) > 1 else 1.0
        if best is None or gap > best[0]:
            best = gap, weights, eigenvalues.flatten()
    assert best is not None
    return best[1], best[2]


def _places(small: dict[tuple[int, int], Tensor], image_count: int, size: tuple[int, int]) -> Tensor:
    """In the gradient's own coordinates the vectors of each image's places, ``(N, N)``, images outermost."""
    places = size[0] * size[1]
    spaces = _eigenspaces(small, image_count, size)
    aligned = _align(small, spaces, size)
    transform = torch.kron(_sines(size[0])[0], _sines(size[1])[0])
    waves = torch.einsum("qna,qab->nqb", spaces, aligned)
    found = torch.einsum("nqb,pq->nbp", waves, transform)
    return found.reshape(len(found), image_count * places)


def _eigenspaces(small: dict[tuple[int, int], Tensor], image_count: int, size: tuple[int, int]) -> Tensor:
    """For each eigenvalue of the pencil B vectors that span its space, ``(place, N, B)``, by inverse iteration."""
    (beside, above, across), eigenvalues = _pencil(size)
    middle = small[0, 0]

    def tap(row: int, column: int) -> Tensor:
        return small.get((row, column), torch.zeros_like(middle))

    outer = (
        beside * (tap(0, 1) + tap(0, -1))
        + above * (tap(1, 0) + tap(-1, 0))
        + across * (tap(1, 1) + tap(1, -1) + tap(-1, 1) + tap(-1, -1))
    )
    generator = torch.Generator().manual_seed(0)
    eye = 1e-13 * float(torch.linalg.matrix_norm(middle, 2)) * torch.eye(len(middle), dtype=middle.dtype)
    found = []
    for eigenvalue in eigenvalues:
        factors = torch.linalg.lu_factor(outer - eigenvalue * middle + eye)
        space = torch.randn(len(middle), image_count, dtype=middle.dtype, generator=generator)
        for _ in range(_ITERATIONS):
            space = torch.linalg.qr(torch.linalg.lu_solve(*factors, middle @ space))[0]
        found.append(space)
    return torch.stack(found)


def _align(small: dict[tuple[int, int], Tensor], spaces: Tensor, size: tuple[int, int]) -> Tensor:
    """For each place the change of basis that makes its B vectors belong to the same images as the others'.

    In the sine transform every tap is a known number for each pair of places; what the gradient has in its stead is
    that number times the change of basis between the two. A spanning tree over the largest numbers gives a start,
    averages over all pairs the rest.
    """
    places, full, image_count = spaces.shape
    transform = torch.kron(_sines(size[0])[0], _sines(size[1])[0])
    flat = spaces.permute(1, 0, 2).reshape(full, places * image_count)
    factors = torch.linalg.lu_factor(small[0, 0] @ flat)
    links = spaces.new_zeros(places, places, image_count, image_count)
    strength = spaces.new_zeros(places, places)
    for shift, tap in small.items():
        if shift == (0, 0):
            continue
        known = transform.T @ _shift(size, shift) @ transform
        seen = torch.linalg.lu_solve(*factors, tap @ flat).reshape(places, image_count, places, image_count)
        links += known[:, :, None, None] * seen.permute(0, 2, 1, 3)
        strength += known.square()
    bases = spaces.new_zeros(places, image_count, image_count)
    bases[0] = torch.eye(image_count, dtype=spaces.dtype)
    reached = torch.zeros(places, dtype=torch.bool)
    reached[0] = True
    while not bool(reached.all()):
        open_strength = torch.where(~reached[:, None] & reached[None], strength, -1.0)
        place, origin = divmod(int(open_strength.argmax()), places)
        bases[place] = links[place, origin] / strength[place, origin].clamp_min(1e-300) @ bases[origin]
        reached[place] = True
    total = strength.sum(dim=1).clamp_min(1e-300)[:, None, None]
    for _ in range(_SYNCHRONISED if places > 1 else 0):
        bases = 0.5 * (torch.einsum("qrab,rbc->qac", links, bases) / total + bases)
        bases = bases @ torch.linalg.inv(bases[0])
    return bases


def refine(
    gradient: Tensor, cotangents: Tensor, image_count: int, size: tuple[int, int], groups: int = 1
) -> tuple[Tensor, Tensor, float] | None:
    """Inputs and cotangents in turn by least squares over all taps, and what they leave, relative; None where they are
    singular.

    Args:
        gradient: Of the weight, in float64.
        cotangents: ``(N, output)``, from which to start.
        image_count: Of the batch.
        size: Height and width of the layer's input.
        groups: That the channels are in; each is solved by itself.
    """
    if groups > 1:
        pairs = zip(gradient.chunk(groups), cotangents.chunk(groups, dim=1), strict=True)
        parts = [part for one, rows in pairs if (part := refine(one, rows, image_count, size)) is not None]
        if len(parts) < groups:
            return None
        own = torch.cat([part[0] for part in parts], dim=1)
        theirs = torch.cat([part[1] for part in parts], dim=1)
        return own, theirs, max(part[2] for part in parts)
    inputs = _solve(gradient, cotangents, image_count, size, transposed=False)
    for _ in range(_REFINED):
        if inputs is None:
            return None
        solved = _solve(gradient, inputs, image_count, size, transposed=True)
        if solved is None:
            return None
        cotangents = solved
        inputs = _solve(gradient, cotangents, image_count, size, transposed=False)
    if inputs is None:
        return None
    return inputs, cotangents, relative(without(gradient, inputs, cotangents, image_count, size), gradient)


def without(
    gradient: Tensor, inputs: Tensor, cotangents: Tensor, image_count: int, size: tuple[int, int], groups: int = 1
) -> Float[Tensor, "output input height width"]:
    """What inputs ``(N, input)`` and cotangents ``(N, output)`` leave of a weight gradient."""
    if groups > 1:
        sides = (gradient.chunk(groups), inputs.chunk(groups, dim=1), cotangents.chunk(groups, dim=1))
        return torch.cat([without(*part, image_count, size) for part in zip(*sides, strict=True)])
    left = gradient.clone()
    for row, column in by_tap(gradient):
        shifted = over_images(inputs, (row, column), image_count, size)
        left[:, :, row + gradient.shape[2] // 2, column + gradient.shape[3] // 2] -= cotangents.T @ shifted
    return left


def _solve(
    gradient: Tensor, known: Tensor, image_count: int, size: tuple[int, int], *, transposed: bool
) -> Tensor | None:
    """The inputs by the cotangents, or (``transposed``) the cotangents by the inputs."""
    normal = known.new_zeros(len(known), len(known))
    right = known.new_zeros(len(known), gradient.shape[0] if transposed else gradient.shape[1])
    for (row, column), tap in by_tap(gradient).items():
        by = (row, column) if transposed else (-row, -column)
        shifted = over_images(known, by, image_count, size)
        normal.addmm_(shifted, shifted.T)
        right.addmm_(shifted, tap.T if transposed else tap)
    factor, failed = torch.linalg.cholesky_ex(normal)
    if int(failed) or not bool(torch.isfinite(factor).all()):
        return None
    solution = torch.cholesky_solve(right, factor)
    # Once more for what rounding left: the condition of the normal matrix is that of the equations squared.
    return solution + torch.cholesky_solve(right - normal @ solution, factor)


def over_images(rows: Tensor, by: tuple[int, int], image_count: int, size: tuple[int, int]) -> Tensor:
    """Rows ``(N, channels)`` shifted on the grid of each image."""
    grid = rows.reshape(image_count, *size, -1).permute(1, 2, 0, 3)
    return _moved(grid, by).permute(2, 0, 1, 3).reshape(len(rows), -1)
