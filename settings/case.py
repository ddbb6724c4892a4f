"""From settings to a case: which update is attacked on which model, and what it is of."""

from __future__ import annotations

import shlex
from dataclasses import replace

from ..audit.case import Case
from ..audit.decoder_photos import without_private
from ..audit.sending import like_the_client, simulated
from ..capture import CapturedUpdate, simulate_client
from ..capture.client.private_images import load_private
from ..capture.fitting import fit
from ..capture.server import load_checkpoints, load_server_model
from ..capture.told_config import apply_told
from .own_code import own_plugins
from .run import RunConfig, command_words, to_plain


def obtain(config: RunConfig) -> Case:
    """The update of a file, or between two checkpoints, with the truth where its owner tells it; or that of a simulated
    client.

    Args:
        config: Of the run. Where the update tells the number of classes, the case has that in place of the default.

    Raises:
        UpdateError, ModelError, ImageError, ClientError, DefenceError: What cannot be read, built or run, or does not
            belong together, in one sentence.
        PluginError: Code of the user's own that is not there or cannot be imported.
    """
    plugins = own_plugins(config)
    if config.before is not None and config.after is not None:
        update, model, classes = load_checkpoints(config.before, config.after, config.client, config.seed)
    elif config.update is not None:
        update = CapturedUpdate.load(config.update)
        model, classes = load_server_model(update, config.client, config.seed)
    else:
        return replace(_simulated(config), plugins=plugins)
    update, model = fit(update, model)
    update = apply_told(update, config.told)
    config = replace(config, client=replace(config.client, classes=classes))
    private = load_private(config.private, update, classes)
    trusted = [one.name for one in (*config.told.stated_defences, *config.client.defences)]
    send = like_the_client(update, model, config.seed, trusted)
    attack = replace(config, peeling=without_private(config.peeling, private, None))
    asked, command = to_plain(config), _command(config)
    return Case(
        update, model, attack, private, send, config.client, config.audit, asked, command, plugins, captured=True
    )


def _simulated(config: RunConfig) -> Case:
    update, model, private = simulate_client(config.client, config.seed)
    update, model = fit(update, model)
    send = simulated(config.client, config.seed)
    attack = replace(config, peeling=without_private(config.peeling, private, config.client.images))
    return Case(update, model, attack, private, send, config.client, config.audit, to_plain(config), _command(config))


def _command(config: RunConfig) -> str:
    """What begins this run anew, in another folder; a file that was its preset may say things of a grid too."""
    left = ("out=", "resume=", "restart=", "budget=", "sweep.")
    words = [word for word in command_words(config) if not word.startswith(left)]
    return shlex.join(["gradinversion", *words, "out=NEW_FOLDER"])
