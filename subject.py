"""What a run attacks, and what the audit holds the result against: from settings to update, model and truth."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn

from .audit.controls import Send, like_the_client, simulated
from .audit.truth import believed_update, describe_truth_gap, measure_truth_gap
from .capture import CapturedUpdate, PrivateBatch, simulate_client
from .capture.client.real_client import load_checkpoints, load_private, load_server_model
from .capture.fitting import fit
from .capture.told_config import apply_told
from .settings.run import RunConfig


@dataclass(frozen=True)
class Subject:
    """One client's update with its model; and, for the audit alone, what it is of."""

    update: CapturedUpdate
    model: nn.Module
    private: PrivateBatch | None
    config: RunConfig
    """Of the run, with what was read off the update in place of defaults."""
    send: Send
    """What the same client would have sent for other images."""
    evidence: str = ""
    """Whether the private images are those behind the update, in a sentence; empty where they must be, or there are
    none."""


def obtain(config: RunConfig) -> Subject:
    """The update of a file, or between two checkpoints, with the truth where its owner tells it; or that of a simulated
    client.

    Raises:
        UpdateError, ModelError, ImageError, ClientError, DefenceError: What cannot be read, built or run, or does not
            belong together, in one sentence.
    """
    if config.before is not None and config.after is not None:
        update, model, classes = load_checkpoints(config.before, config.after, config.client, config.seed)
    elif config.update is not None:
        update = CapturedUpdate.load(config.update)
        model, classes = load_server_model(update, config.client, config.seed)
        update, model = fit(update, model)
    else:
        update, model, private = simulate_client(config.client, config.seed)
        return Subject(update, model, private, config, simulated(config.client, config.seed))
    update = apply_told(update, config.told)
    config = replace(config, client=replace(config.client, classes=classes))
    truth = load_private(config.private, update, classes)
    evidence = ""
    if truth is not None:
        believed = believed_update(model, truth, update)
        evidence = describe_truth_gap(measure_truth_gap(model, truth, believed), believed)
    return Subject(update, model, truth, config, like_the_client(update, model, config.seed), evidence)
