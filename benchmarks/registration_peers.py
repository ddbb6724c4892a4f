"""The methods that the benchmark of registration compares: ours, and OpenCV's on our own schedule.

The peers get the same schedule as ours: three rounds, the target averaged again each round by the same robust mean,
homographies in the first rounds, the warp that all candidates share removed. ECC and SIFT know homographies alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from gradinversion.registration import RegistrationConfig, register
from gradinversion.registration.consensus import average
from gradinversion.registration.contrast import gray
from gradinversion.registration.warp import base_grid, inside, remove_shared_displacement, sample
from torch import Tensor

from .registration_measures import Method

Flow = Callable[[Any, Any, Any], Any]
"""Target and candidate (8 bit) and a flow to start from, to a flow `(H, W, 2)` in pixels."""

_ROUNDS = 3


def ours(**settings: Any) -> Method:
    """Our registration with some settings changed."""
    config = RegistrationConfig(**settings)

    def run(candidates: Tensor) -> tuple[Tensor, Tensor]:
        consensus = register(candidates, config=config)
        if consensus.displacement is None:
            return consensus.images, torch.zeros(*candidates.shape[:2], *candidates.shape[-2:], 2)
        half = torch.tensor([candidates.shape[-1] / 2, candidates.shape[-2] / 2])
        return consensus.images, consensus.displacement.movedim(2, -1) / half

    return run


def methods() -> dict[str, Method]:
    """Every method by name; the peers where OpenCV is installed (pip install opencv-python-headless)."""
    known: dict[str, Method] = {
        "none": ours(method="none"),
        "coarse": ours(method="coarse"),
        "ours huber": ours(consensus="huber"),
        "ours wiener": ours(consensus="wiener"),
    }
    try:
        import cv2
    except ImportError:
        print("OpenCV is not installed, so there are no peers: pip install opencv-python-headless")
        return known
    cv2.setNumThreads(1)
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    known["dis"] = partial(on_our_schedule, flow_of=dis.calc, homography_rounds=2)
    known["dis wiener"] = partial(
        on_our_schedule, flow_of=dis.calc, homography_rounds=2, consensus="wiener", mode="bicubic"
    )
    known["ecc"] = partial(on_our_schedule, flow_of=ecc)
    known["sift"] = partial(on_our_schedule, flow_of=sift_magsac)
    return known


def on_our_schedule(
    candidates: Tensor, flow_of: Flow, homography_rounds: int = 0, consensus: str = "huber", mode: str = "bilinear"
) -> tuple[Tensor, Tensor]:
    """Consensus and displacement by a pairwise matcher between the robust mean and each candidate.

    Args:
        candidates: `(N, B, C, H, W)` in [0, 1].
        flow_of: The matcher.
        homography_rounds: In this many first rounds a homography is fitted to the matcher's flow.
        consensus: How the aligned candidates are averaged at the end.
        mode: How they are sampled then.
    """
    size = candidates.shape[-1]
    weights = torch.full((len(candidates),), 1 / len(candidates))
    plain = gray(candidates)
    images = _eight_bit(plain[:, :, 0])
    base = base_grid(size, size, candidates)
    field = torch.zeros(*candidates.shape[:2], size, size, 2)
    for turn in range(_ROUNDS):
        grid = base + field
        targets = _eight_bit(average(sample(plain, grid), inside(grid), weights, "huber")[:, 0])
        for i, b in np.ndindex(*candidates.shape[:2]):
            flow = flow_of(targets[b], images[i, b], (field[i, b] * (size / 2)).numpy().copy())
            if turn < homography_rounds:
                flow = _homography_flow(flow)
            field[i, b] = torch.from_numpy(flow) * (2 / size)
        field = remove_shared_displacement(field)
    grid = base + field
    return average(sample(candidates, grid, mode), inside(grid), weights, consensus), field


def ecc(target: Any, image: Any, start: Any) -> Any:
    """Enhanced correlation coefficient (Evangelidis & Psarakis, TPAMI 2008), homography, 50 iterations."""
    import cv2

    size = target.shape[0]
    last = size - 1
    corners = np.array([[0, 0], [last, 0], [last, last], [0, last]], dtype=np.float32)
    moved = corners + start[corners[:, 1].astype(int), corners[:, 0].astype(int)]
    matrix = cv2.getPerspectiveTransform(corners, moved.astype(np.float32)).astype(np.float32)
    until = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 50, 1e-4)
    try:
        _, matrix = cv2.findTransformECC(target, image, matrix, cv2.MOTION_HOMOGRAPHY, until, None, 5)
    except cv2.error:  # it did not converge
        return start
    return _flow_of_matrix(matrix, size)


def sift_magsac(target: Any, image: Any, start: Any) -> Any:
    """SIFT matches with the ratio test and a homography by MAGSAC++ (Barath et al., CVPR 2020)."""
    import cv2

    finder = cv2.SIFT_create()
    points, features = finder.detectAndCompute(target, None)
    other_points, other_features = finder.detectAndCompute(image, None)
    if features is None or other_features is None or len(other_points) < 2:
        return start
    pairs = [pair for pair in cv2.BFMatcher().knnMatch(features, other_features, k=2) if len(pair) == 2]
    good = [first for first, second in pairs if first.distance < 0.8 * second.distance]
    if len(good) < 6:
        return start
    source = np.array([points[match.queryIdx].pt for match in good], dtype=np.float32)
    place = np.array([other_points[match.trainIdx].pt for match in good], dtype=np.float32)
    matrix, _ = cv2.findHomography(source, place, cv2.USAC_MAGSAC, 2.0)
    return start if matrix is None else _flow_of_matrix(matrix, target.shape[0])


def _eight_bit(image: Tensor) -> Any:
    return (image.clamp(0, 1) * 255).byte().numpy()


def _homography_flow(flow: Any) -> Any:
    """The flow of the homography that fits a flow best (RANSAC on a grid of points)."""
    import cv2

    size = flow.shape[0]
    axis = np.arange(2, size, max(1, size // 28), dtype=np.float32)
    points = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    moved = points + flow[points[:, 1].astype(int), points[:, 0].astype(int)]
    matrix, _ = cv2.findHomography(points, moved, cv2.RANSAC, 1.5 * size / 224 + 0.5)
    return flow if matrix is None else _flow_of_matrix(matrix, size)


def _flow_of_matrix(matrix: Any, size: int) -> Any:
    import cv2

    full = np.stack(np.meshgrid(np.arange(size), np.arange(size)), -1).reshape(-1, 1, 2).astype(np.float32)
    return (cv2.perspectiveTransform(full, matrix.astype(np.float64)) - full).reshape(size, size, 2).astype(np.float32)
