"""The candidates of a round: what the agents say of them is here, their images stay where they were made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ray
import torch
from jaxtyping import Int
from ray.exceptions import RayError
from torch import Tensor

from ..agents import Account, Candidate
from ..coordinator import CandidatesLostError, form_consensus
from ..registration import Consensus, RegistrationConfig
from .registering import form_in_parts
from .transport import tensor


class Candidates:
    """The newest candidate of each agent: its account, and references to its images.

    Args:
        seeds: Of the agents, by position.
        parts: Places of the batch whose images travel together; with a single part, candidates are registered here.
    """

    def __init__(self, seeds: Sequence[int], parts: Sequence[tuple[int, ...]]) -> None:
        self._seeds = seeds
        self.parts = list(parts)
        self._accounts: dict[int, Account] = {}
        self._images: dict[int, Sequence[Any]] = {}

    def take(self, position: int, account: Account, images: Sequence[Any]) -> None:
        """A new one, with a reference to the images of each part."""
        before = self._accounts.get(position)
        self._accounts[position] = account.after(before) if before is not None else account
        self._images[position] = images

    def drop(self, position: int) -> None:
        """An agent takes part no more."""
        self._accounts.pop(position, None)
        self._images.pop(position, None)

    def tell(self, positions: Iterable[int]) -> dict[int, Account]:
        """The accounts of those that are there, of all that happened since they were told of last."""
        found = {position: self._accounts[position] for position in positions if position in self._accounts}
        for position, account in found.items():
            self._accounts[position] = account.told()
        return found

    def fetch(self, positions: Sequence[int]) -> list[Candidate]:
        """The candidates with their images.

        Raises:
            CandidatesLostError: Some are gone.
        """
        found, lost = [], []
        for position in positions:
            try:
                arrays = ray.get(list(self._images[position]))
            except RayError:
                lost.append(position)
                continue
            images = torch.empty(sum(map(len, self.parts)), *arrays[0].shape[1:])
            for part, array in zip(self.parts, arrays, strict=True):
                images[list(part)] = tensor(array)
            found.append(self._accounts[position].with_images(images))
        if lost:
            raise CandidatesLostError(lost)
        return found

    def form_consensus(
        self,
        positions: Sequence[int],
        workers: Mapping[int, Any],
        labels: Int[Tensor, " batch"],
        round: int,
        config: RegistrationConfig,
    ) -> tuple[Consensus, Int[Tensor, "seed batch"]]:
        """Register the candidates; see `coordinator.form_consensus`.

        Args:
            positions: Whose candidates.
            workers: Agents that have nothing else to do now, by position.
            labels: Of the batch.
            round: Index.
            config: How to register.

        Raises:
            CandidatesLostError: Some are gone.
        """
        seeds = [self._seeds[position] for position in positions]
        if len(self.parts) == 1:
            images = torch.stack([candidate.images for candidate in self.fetch(positions)])
            return form_consensus(images, seeds, labels, round, config)
        helpers = [workers[position] for position in positions if position in workers]
        shared = [self._images[position] for position in positions]
        try:
            return form_in_parts(self.parts, shared, helpers, seeds, labels, round, config)
        except RayError:
            self.fetch(positions)  # says which candidates are gone, if any
            return form_in_parts(self.parts, shared, [], seeds, labels, round, config)
