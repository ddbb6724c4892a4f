"""Recording rounds of federated learning as files, whatever framework runs them."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor, nn

from ..copying import copy_model
from ..counters import settle_counters
from ..decisive import words_for_assumed
from ..errors import UpdateError
from ..facts import BatchNormMode, Fact, LocalFacts, local_names, read, require_facts, told
from ..hashing import weight_hash
from ..local_training import LocalTraining
from ..normalisation import Normalisation
from ..unwrap import unwrap
from ..update import CapturedUpdate
from ..weight_delta import capture_weight_delta
from ..weights import ModelError, fit_names
from .arrays import decode_array, name_arrays
from .facts import Said, local_facts, read_image_count, read_said, within
from .state_dicts import infer_batch_norm

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Weights:
    """Weights in transit: the bytes of one .npy file per array, with names or by their place."""

    contents: tuple[bytes, ...]
    names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Order:
    """What the server sent one client: the weights to start from, and settings."""

    client: str
    weights: Weights
    settings: Mapping[str, object]


@dataclass(frozen=True)
class Reply:
    """What one client sent back: its weights and metrics, or why it failed."""

    client: str
    weights: Weights | None
    metrics: Mapping[str, object]
    failure: str | None = None


class RoundRecorder:
    """Writes what chosen clients send in chosen rounds, one `CapturedUpdate` file each, into a folder.

    ``round-0003-client-ID.safetensors`` is the update and ``round-0003-server.safetensors`` are the weights that it
    belongs to: ``python run.py update=... client.weights=...`` attacks it. A round that cannot be recorded never stops
    the training: it becomes a sentence in ``problems`` and in the log.
    """

    def __init__(
        self,
        model: nn.Module,
        folder: str | Path,
        *,
        image_shape: tuple[int, int, int],
        client: int | str | Mapping[str, object] | None = None,
        rounds: Collection[int] | None = None,
        local: LocalTraining | LocalFacts | None = None,
        normalisation: Normalisation | tuple[Sequence[float], Sequence[float]] | None = None,
        batch_norm: BatchNormMode | str | None = None,
        model_id: str | None = None,
        count_key: str = "num-examples",
        run_config: Mapping[str, object] | None = None,
        stated: Mapping[str, Fact[Any]] | None = None,
    ) -> None:
        """What to record.

        Args:
            model: The architecture that server and clients train; a copy is taken, its weights do not matter.
            folder: Made if it is missing.
            image_shape: Channels, height, width of the clients' images.
            client: The framework's identifier of one client, or what its metrics must say, such as
                ``{"partition-id": 0}``; None for every client.
            rounds: Their numbers, from 1; None for every round.
            local: The clients' local training; None to read it from the settings and metrics, see `facts.KEYS`. What
                they do not say is assumed, and a sentence in ``problems`` says so.
            normalisation: Mean and deviation per channel; the model was fed ``(images - mean) / std``. None: nobody
                said, and ImageNet's is assumed.
            batch_norm: How clients run batch norm; None to infer it, see `infer_batch_norm`.
            model_id: What ``load_model`` takes to build the model; by default its class.
            count_key: Under which name the metrics hold the number of images.
            run_config: Settings of the whole run, such as Flower's ``context.run_config``. What the server sends to a
                client, and what the client sends back, win over them.
            stated: Further facts about the clients by their names in `ClientFacts` or `LocalFacts`, which win over
                whatever else is said; ``ToldConfig(dropout="false").facts()`` makes them from words.

        Raises:
            UpdateError: The folder cannot be made, or the facts cannot be.
        """
        self.files: list[Path] = []
        """The updates written so far."""
        self.problems: list[str] = []
        """What could not be recorded, and what of the recorded had to be assumed, one sentence each."""
        normalisation = None if normalisation is None else Normalisation.of(normalisation)
        if batch_norm is not None and batch_norm not in list(BatchNormMode):
            raise UpdateError(
                f"batch_norm is {batch_norm!r}; use one of {', '.join(BatchNormMode)}, or None to infer it"
            )
        means = image_shape[0] if normalisation is None else len(normalisation.mean)
        if len(image_shape) != 3 or means != image_shape[0]:
            raise UpdateError(
                f"image_shape is {tuple(image_shape)} and the normalisation is for {means} channels; "
                "give (channels, height, width), and one mean and deviation per channel"
            )
        self._model = copy_model(unwrap(model)).cpu()
        self._folder = Path(folder).expanduser()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UpdateError(f"the folder {str(folder)!r} cannot be made ({error}); give one that can") from None
        if not self._folder.is_absolute() and Path(sys.argv[0]).name.startswith("flwr-"):
            # Such a process runs where Flower's SuperLink was started, whoever typed `flwr run`, and wherever.
            _LOG.warning(
                "Captured updates go to %s, below the folder in which Flower's SuperLink was started: give an absolute "
                "path to have them elsewhere, as in flwr run . --run-config \"captured='$PWD/captured'\".",
                self._folder.absolute(),
            )
        self._image_shape = image_shape
        self._client = client if client is None or isinstance(client, Mapping) else str(client)
        self._rounds = None if rounds is None else frozenset(rounds)
        self._local = LocalFacts.told(local, "the user") if isinstance(local, LocalTraining) else local
        self._normalisation = normalisation
        self._batch_norm = batch_norm
        self._model_id = model_id or type(self._model).__name__
        self._count_key = count_key
        self._run_config = dict(run_config or {})
        require_facts(stated or {})
        self._stated = dict(stated or {})
        self._servers: dict[str, str] = {}

    def wants(self, number: int) -> bool:
        """Whether this round is to be recorded."""
        return self._rounds is None or number in self._rounds

    def record(self, number: int, orders: Sequence[Order], replies: Sequence[Reply]) -> None:
        """Write what the chosen clients of a round sent; never raises for what they sent.

        Args:
            number: Of the round, from 1.
            orders: To every client that was asked to train.
            replies: From those that answered.
        """
        asked = {order.client: order for order in orders}
        chosen = [reply for reply in replies if self._is_chosen(reply)]
        if not chosen:
            self._report(f"round {number}: {self._absence(asked, replies)}")
        assumed: dict[str, list[str]] = {}
        for reply in chosen:
            try:
                update, server = self._capture(asked.get(reply.client), reply)
                self._write(number, reply.client, server, update)
            except (UpdateError, ModelError, OSError) as error:
                self._report(f"round {number}, client {reply.client}: {error}")
            else:
                assumed.setdefault(words_for_assumed(update, server), []).append(reply.client)
        for words, clients in assumed.items():
            if words:
                who = f"client{'s' * (len(clients) > 1)} {', '.join(clients)}"
                self._report(f"round {number}, {who}: {words}")

    def _is_chosen(self, reply: Reply) -> bool:
        if isinstance(self._client, Mapping):
            return all(key in reply.metrics and reply.metrics[key] == value for key, value in self._client.items())
        return self._client in (None, reply.client)

    def _absence(self, asked: Mapping[str, Order], replies: Sequence[Reply]) -> str:
        """Why nobody who was chosen is among the replies."""
        failed = [f"client {reply.client} failed: {reply.failure}" for reply in replies if reply.failure]
        also = f" ({'; '.join(failed)})" if failed else ""
        if isinstance(self._client, Mapping):
            wanted = ", ".join(f"{key}={value}" for key, value in self._client.items())
            return f"none of the {len(replies)} replies has {wanted} in its metrics, so nothing was recorded{also}"
        if self._client is None:
            return "no client sent anything back, so nothing was recorded"
        if self._client in asked:
            return f"client {self._client} was asked to train and sent nothing back, so nothing was recorded{also}"
        listed = ", ".join(list(asked)[:8]) + (", ..." if len(asked) > 8 else "")
        return f"client {self._client} was not asked to train (asked: {listed or 'nobody'}), so nothing was recorded"

    def _capture(self, order: Order | None, reply: Reply) -> tuple[CapturedUpdate, nn.Module]:
        """The update, and the model that it belongs to."""
        if reply.failure is not None or reply.weights is None:
            raise UpdateError(f"it failed, so nothing was recorded: {reply.failure or 'it sent no weights'}")
        if order is None:
            raise UpdateError("the server did not ask it to train, so what it started from is not known")
        server = self._server(order)
        after = _named(reply.weights, server, "the client")
        count = read_image_count(reply.metrics, self._count_key)
        found = self._facts(order, reply)
        local = self._local or local_facts(found)
        others = {name: fact for name, fact in found.items() if name not in local_names()}
        own = {name: fact for name, fact in self._stated.items() if name in local_names()}
        update = capture_weight_delta(
            server,
            after,
            image_count=count,
            image_shape=self._image_shape,
            local=within(replace(local, **own), count),
            batch_norm=self._batch_norm or infer_batch_norm(server, after),
            model_id=self._model_id,
            stated={"clients": read(1, "one client's reply")} | others,
        )
        return update, server

    def _facts(self, order: Order, reply: Reply) -> dict[str, Fact[Any]]:
        """What settings and metrics tell, and what the user states of all clients."""
        said = (
            Said("the settings of the run", self._run_config),
            Said("the server's message to the client", order.settings),
            Said("the client's metrics", reply.metrics),
        )
        found = read_said(said, self._image_shape[0])
        if self._normalisation is not None:
            found["normalisation"] = told(self._normalisation, "the user")
        return found | self._stated

    def _server(self, order: Order) -> nn.Module:
        """The model with the weights that this client was sent."""
        server = copy_model(self._model)
        sent = _named(order.weights, server, "the server")
        unknown = sorted(sent.keys() - server.state_dict().keys())
        missing = sorted(dict(server.named_parameters()).keys() - sent.keys())
        if unknown or missing:
            wrong = f"{missing[0]!r} is missing" if missing else f"{unknown[0]!r} is not in the model"
            raise UpdateError(f"the server's weights do not fit the model: {wrong}; give the model that is trained")
        try:
            server.load_state_dict(settle_counters(sent), strict=False)
        except RuntimeError as error:
            raise UpdateError(f"the server's weights do not fit the model: {' '.join(str(error).split())}") from None
        return server

    def _write(self, number: int, client: str, server: nn.Module, update: CapturedUpdate) -> None:
        safe = re.sub(r"[^\w.-]", "_", client)[:80]
        path = self._folder / f"round-{number:04d}-client-{safe}.safetensors"
        weights = f"round-{number:04d}-server.safetensors"
        digest = weight_hash(server)
        if self._servers.setdefault(weights, digest) != digest:
            # A strategy may send every client weights of its own.
            weights = f"round-{number:04d}-client-{safe}-server.safetensors"
        self._servers[weights] = digest
        state = {name: value.contiguous().clone() for name, value in server.state_dict().items()}
        try:
            safetensors.torch.save_file(state, self._folder / weights)
        except safetensors.SafetensorError as error:
            raise UpdateError(f"the server's weights cannot be written ({error})") from None
        update.save(path)
        if path not in self.files:
            self.files.append(path)
        _LOG.info("Captured update: %s", path)

    def _report(self, problem: str) -> None:
        self.problems.append(problem)
        _LOG.warning("%s", problem)


def _named(weights: Weights, model: nn.Module, sender: str) -> dict[str, Tensor]:
    arrays = [decode_array(content, f"array {place} of {sender}") for place, content in enumerate(weights.contents)]
    if weights.names is None:
        return name_arrays(arrays, model, sender)
    return fit_names(dict(zip(weights.names, arrays, strict=True)), model.state_dict())
