"""Settings of the grid that `audit` runs."""

from __future__ import annotations

from dataclasses import dataclass

from ..refusal import Checked


@dataclass(frozen=True)
class SweepConfig(Checked):
    """The grid of `audit`; every other key holds in all of its cells."""

    batch_sizes: tuple[int, ...] = (1, 4, 8)
    """Images that the client averages over."""
    defences: tuple[str, ...] = ("none", "noise:0.1", "noise:1", "prune:0.9")
    """Defences as name:strength; after a plus sign another one that is applied next, as in clip:0.5+noise:0.1, or a
    further key, as in noise:1+client.bn=eval."""
    bn: tuple[str, ...] = ("eval", "train_shared", "train_private")
    """Batch-norm modes of the client."""
    states: tuple[str, ...] = ()
    """Weight files of the model, and "untrained" for random weights; with none given the state is client.weights."""
    axes: tuple[str, ...] = ()
    """Further keys to vary, each with its values, as in client.local_epochs:0,1,agents.count:1,4; by what is no setting
    of the client, such as agents.count, no change is recommended: the worst of its levels counts. So of published
    attacks: preset:gradinversion,inverting_gradients, where what you set yourself holds in all."""
    side_by_side: int = 0
    """Cells that run at once; 0: as many as there are CPUs or GPUs for their agents."""
    train_images: str | None = None
    """Folder with one folder of images per class; with it the cost of each defence in accuracy is measured."""
    train_steps: int = 300
    """Training steps for that."""

    def problems(self) -> list[str]:
        """Every value that cannot be carried out, one sentence each."""
        found = [
            f"sweep.{name}= is empty: give at least one value."
            for name in ("batch_sizes", "defences", "bn")
            if not getattr(self, name)
        ]
        if self.side_by_side < 0:
            found.append(f"sweep.side_by_side={self.side_by_side}: give a whole number, 0 or more.")
        if self.train_steps < 1:
            found.append(f"sweep.train_steps={self.train_steps}: give a whole number of at least 1.")
        return found
