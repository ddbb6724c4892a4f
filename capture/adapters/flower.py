"""Flower: a strategy that also records what chosen clients send. It needs ``pip install 'gradinversion[flower]'``."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from ..errors import UpdateError
from .rounds import Order, Reply, RoundRecorder, Weights

S = TypeVar("S")

_NUMPY = "numpy.ndarray"
_LONGEST_REASON = 300


class FlowerRecorder(RoundRecorder):
    """Records rounds of any Flower strategy; see `RoundRecorder` for what is written and for the arguments.

    ``recorder = FlowerRecorder(model, "captured", image_shape=(3, 32, 32), client={"partition-id": 0})``, then
    ``strategy = recorder.wrap(FedAvg(...))`` in place of ``FedAvg(...)``. Messages and results pass unchanged.

    In the layout of Flower's quickstart the clients read their local epochs, batch size and learning rate from the
    settings of the run and not from the server's message: give ``run_config=context.run_config`` of the server's
    context. What neither they nor a message nor a reply tells is assumed, and ``problems`` says so.

    ``client`` is the node id (the ``cid`` of a client proxy), or what the metrics of its reply must say. Weights of
    clients are taken as what Flower's own strategies take them for: the client's model after its local training.
    """

    def wrap(self, strategy: S) -> S:
        """The same strategy, which also records; the given one is left as it is.

        Args:
            strategy: Of ``flwr.serverapp.strategy`` (messages) or of ``flwr.server.strategy`` (fit and evaluate).

        Raises:
            UpdateError: It is neither.
        """
        # A copy with two methods of its own, so that whatever else the strategy's class overrides stays in force.
        recording = copy.copy(strategy)
        if hasattr(strategy, "configure_train") and hasattr(strategy, "aggregate_train"):
            self._wrap_messages(recording)
        elif hasattr(strategy, "configure_fit") and hasattr(strategy, "aggregate_fit"):
            self._wrap_fit(recording)
        else:
            raise UpdateError(
                f"a {type(strategy).__name__} is no Flower strategy; give one of flwr.serverapp.strategy or "
                "flwr.server.strategy"
            )
        return recording

    def _wrap_messages(self, strategy: Any) -> None:
        configure, aggregate = strategy.configure_train, strategy.aggregate_train
        orders: dict[int, list[Order]] = {}

        def configure_train(server_round: int, arrays: Any, config: Any, grid: Any) -> Iterable[Any]:
            messages = list(configure(server_round, arrays, config, grid))
            orders.clear()
            if self.wants(server_round):
                orders[server_round] = [_order_of(message, arrays) for message in messages]
            return messages

        def aggregate_train(server_round: int, replies: Iterable[Any]) -> Any:
            received = list(replies)
            if self.wants(server_round):
                self.record(server_round, orders.pop(server_round, []), [_reply_of(message) for message in received])
            return aggregate(server_round, received)

        strategy.configure_train, strategy.aggregate_train = configure_train, aggregate_train

    def _wrap_fit(self, strategy: Any) -> None:
        configure, aggregate = strategy.configure_fit, strategy.aggregate_fit
        orders: dict[int, list[Order]] = {}

        def configure_fit(server_round: int, parameters: Any, client_manager: Any) -> Any:
            asked = configure(server_round, parameters, client_manager)
            orders.clear()
            if self.wants(server_round):
                orders[server_round] = [
                    Order(str(proxy.cid), Weights(tuple(fit.parameters.tensors)), dict(fit.config))
                    for proxy, fit in asked
                ]
            return asked

        def aggregate_fit(server_round: int, results: Any, failures: Any) -> Any:
            if self.wants(server_round):
                replies = [_reply_of_fit(self._count_key, proxy, fit) for proxy, fit in results]
                replies += [_failure_of_fit(failure) for failure in failures]
                self.record(server_round, orders.pop(server_round, []), replies)
            return aggregate(server_round, results, failures)

        strategy.configure_fit, strategy.aggregate_fit = configure_fit, aggregate_fit


def _order_of(message: Any, arrays: Any) -> Order:
    record = _only(message.content.array_records)
    settings = _scalars(message.content.config_records)
    return Order(str(message.metadata.dst_node_id), _weights(arrays if record is None else record), settings)


def _reply_of(message: Any) -> Reply:
    client = str(message.metadata.src_node_id)
    if message.has_error():
        return Reply(client, None, {}, _reason(message.error.reason))
    record = _only(message.content.array_records)
    metrics = _scalars(message.content.metric_records)
    if record is None:
        return Reply(client, None, metrics, "its reply holds no weights")
    if any(array.stype != _NUMPY for array in record.values()):
        return Reply(client, None, metrics, "its weights are not NumPy arrays")
    return Reply(client, _weights(record), metrics)


def _reply_of_fit(count_key: str, proxy: Any, fit: Any) -> Reply:
    client, metrics = str(proxy.cid), {**fit.metrics, count_key: fit.num_examples}
    if fit.parameters.tensor_type != _NUMPY:
        return Reply(client, None, metrics, "its weights are not NumPy arrays")
    return Reply(client, Weights(tuple(fit.parameters.tensors)), metrics)


def _failure_of_fit(failure: Any) -> Reply:
    if isinstance(failure, BaseException):
        # Flower does not say whose it is.
        return Reply("of unknown id", None, {}, _reason(str(failure) or type(failure).__name__))
    proxy, fit = failure
    return Reply(str(proxy.cid), None, dict(fit.metrics), _reason(fit.status.message))


def _weights(record: Mapping[str, Any]) -> Weights:
    names = tuple(record)
    # Flower numbers the arrays of a list.
    numbered = names == tuple(str(place) for place in range(len(names)))
    return Weights(tuple(array.data for array in record.values()), None if numbered else names)


def _only(records: Mapping[str, Any]) -> Any:
    """The one record, or the one of Flower's default name."""
    return next(iter(records.values())) if len(records) == 1 else records.get("arrays")


def _scalars(records: Mapping[str, Mapping[str, Any]]) -> dict[str, object]:
    return {key: value for record in records.values() for key, value in record.items()}


def _reason(text: str | None) -> str:
    """The last line of a traceback, which says what went wrong."""
    lines = [line.strip() for line in (text or "").splitlines() if line.strip()]
    return lines[-1][:_LONGEST_REASON].rstrip("'>") if lines else "it gave no reason"
