"""From what the rules derived, or what the chain of the last layers gave, to the record that a reader is shown."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .chain import Link
from .descent import Passage, State
from .graph import Graph
from .kinds import AverageInFront, Kind
from .record import WHOLE_IMAGES, End, NetworkNode, PeelingRecord, RecoveredPlace, end_of
from .refusals import Refused
from .rules import Derivation, Knowledge, Step

_IMAGES = "images"


def record_derivation(
    derivation: Derivation, image_count: int, tolerance: float, local_steps: int = 0
) -> PeelingRecord:
    """What the rules found on the graph.

    Args:
        derivation: All of it.
        image_count: Of the batch.
        tolerance: The largest error that was believed.
        local_steps: Of a weight delta; then images are visits.
    """
    graph, known = derivation.graph, derivation.knowledge
    places = [_place(graph, known, steps) for steps in _by_value(derivation.steps)]
    whole = known.complete(graph.images)
    if whole is not None and all(one.value != graph.images for one in places):
        errors = tuple(float(one) for one in whole.error)
        places.append(RecoveredPlace(graph.images, WHOLE_IMAGES, "", graph.image_shape, whole.rule, errors))
    footholds = tuple(
        dict.fromkeys(f"{_BEGUN[one.rule]} {reader_of(graph, one.value)}" for one in _footholds(derivation))
    )
    order = {node.name: position for position, node in enumerate(graph.nodes)}
    # What is deepest stands in the way of all in front of it. Refused footholds matter only where none was found.
    refused = [one for one in derivation.refused if not derivation.steps or one.rule not in _BEGUN]
    if derivation.steps:
        refused.sort(key=lambda one: -order.get(one.value, -1))
    side = max(graph.image_shape[1:])
    return PeelingRecord(
        footholds=footholds,
        places=tuple(places),
        ends=tuple(
            end_of(one, place_words(graph, one.value), graph.shape(one.value), image_count, side) for one in refused
        ),
        nodes=tuple(_node(graph, known, name) for name in graph.by_name),
        images=graph.images,
        image_count=image_count,
        tolerance=tolerance,
        local_steps=local_steps,
        reason=_reason(derivation) if not refused else "",
        by_taps=True,
    )


def _reason(derivation: Derivation) -> str:
    """Why it ended where no rule refused anything."""
    if not derivation.steps:
        return _NO_TAPS
    graph, known = derivation.graph, derivation.knowledge
    means = (node for node in graph.nodes if isinstance(node.kind, AverageInFront))
    ended = (known.complete(one.name) is not None and known.complete(one.inputs[0]) is None for one in means)
    return _MEANS if any(ended) else ""


# What is taken apart, by the rule that begins.
_BEGUN = {"taps": "the taps of", "rows": "the rows of"}
_MEANS = (
    "It ended at the mean over windows that follows a 1x1 convolution: the gradient of that convolution tells the mean "
    "of its input and no more."
)
_NO_TAPS = "No convolution has few enough places for its channels, with a ReLU in front and gradients of its own."


def place_words(graph: Graph, value: str) -> str:
    """What a value is, for a reader."""
    if value == graph.images:
        return WHOLE_IMAGES
    reader = reader_of(graph, value)
    if reader:
        return f"{'the mean over windows of ' if _is_averaged(graph, value) else ''}the input of {reader}"
    behind = _behind(graph, value)
    if any(_is_averaged(graph, name) for name in graph.by_name[value].inputs):
        return f"the mean over windows of the output of {value}"
    return f"the output of {value}{f' (behind {behind})' if behind else ''}"


def _is_averaged(graph: Graph, value: str) -> bool:
    """Whether a value is a mean that the model takes behind the convolution that reads it here."""
    return value in graph.by_name and isinstance(graph.by_name[value].kind, AverageInFront)


def _behind(graph: Graph, value: str) -> str:
    """The last operation with weights before a value; empty where there is none, or the value is its output."""
    before = graph.before(value)
    last = next((node.name for node in reversed(graph.nodes) if node.name in before and "weight" in node.tensors), "")
    return "" if last == value else last


def reader_of(graph: Graph, value: str) -> str:
    """The first operation with weights that reads a value; empty where none does."""
    return next((node.name for node in graph.readers(value) if "weight" in node.tensors), "")


def _footholds(derivation: Derivation) -> list[Step]:
    return [step for step in derivation.steps if step.rule in _BEGUN]


def _by_value(steps: Sequence[Step]) -> list[list[Step]]:
    found: dict[str, list[Step]] = {}
    for step in steps:
        found.setdefault(step.value, []).append(step)
    return list(found.values())


def _place(graph: Graph, known: Knowledge, steps: Sequence[Step]) -> RecoveredPlace:
    """One place, with all steps that were about it: what gave it, and what made it better known."""
    first = steps[0]
    checks = {name: value for step in steps for name, value in step.checks.items()}
    unknowns, equations = (checks.pop(name, None) for name in ("places", "equations"))
    activations = known.activations[first.value]
    return RecoveredPlace(
        value=first.value,
        place=place_words(graph, first.value),
        # The model's module reads what the mean is of.
        reader="" if _is_averaged(graph, first.value) else reader_of(graph, first.value),
        shape=first.shape,
        rule=first.rule,
        errors=tuple(float(one) for one in activations.error),
        unknowns=None if unknowns is None else int(unknowns),
        equations=None if equations is None else int(equations),
        checks=checks,
        seconds=sum(step.seconds for step in steps),
    )


def _node(graph: Graph, known: Knowledge, name: str) -> NetworkNode:
    node = graph.by_name[name]
    activations, arriving = known.activations.get(name), known.arriving.get(name)
    return NetworkNode(
        name=name,
        kind=kind_words(node.kind),
        inputs=node.inputs,
        shape=node.shape,
        activations=0.0 if activations is None else float(activations.known.float().mean()),
        derivative=0.0 if arriving is None else float(arriving.known.float().mean()),
        error=None if activations is None else float(activations.error.max()),
    )


def kind_words(kind: Kind) -> str:
    """What a kind of operation is called: its class, in small words."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(kind).__name__).lower()


def record_chain(
    chain: Sequence[Link],
    states: Sequence[State],
    passage: Passage | None,
    refused: Refused | None,
    reason: str,
    tolerance: float,
    image_shape: tuple[int, ...],
) -> PeelingRecord:
    """What the chain of the last layers gave.

    Args:
        chain: Its layers, in the order in which they are run.
        states: That were believed, from the final layer on.
        passage: In front of the last state; None without one.
        refused: Why the next layer was not solved; None where no layer was tried.
        reason: Why it ended otherwise; empty where a layer was refused.
        tolerance: The largest error that was believed.
        image_shape: Channels, height and width.
    """
    images = 0 if not states else len(states[0].activations)
    names = [_entering(chain, position) for position in range(len(chain))]
    footholds = (f"the final layer ({chain[-1].name})",) if states else ()
    ends: tuple[End, ...] = ()
    if states and names[states[-1].index] == _IMAGES:
        refused, reason = None, ""
    if refused is not None:
        position = next(index for index, link in enumerate(chain) if link.name == refused.value)
        place = WHOLE_IMAGES if names[position] == _IMAGES else f"the input of {refused.value}"
        ends = (end_of(refused, place, chain[position].input_shape, max(images, 1), max(image_shape[1:])),)
    return PeelingRecord(
        footholds=footholds,
        places=tuple(_chain_place(chain, state, images, names) for state in states),
        ends=ends,
        nodes=_chain_nodes(chain, states, passage, names),
        images=_IMAGES,
        image_count=images,
        tolerance=tolerance,
        reason=reason,
    )


def _entering(chain: Sequence[Link], position: int) -> str:
    """Name of the value that enters a layer. What is the images in another shape is the images."""
    if position > 0 and not (chain[0].reads_images and all(link.kind.keeps_numbers for link in chain[:position])):
        return chain[position - 1].name
    return _IMAGES if chain[0].reads_images else f"all before {chain[0].name}"


def _chain_place(chain: Sequence[Link], state: State, images: int, names: Sequence[str]) -> RecoveredPlace:
    link = chain[state.index]
    return RecoveredPlace(
        value=names[state.index],
        place=WHOLE_IMAGES if names[state.index] == _IMAGES else f"the input of {link.name}",
        reader=link.name,
        shape=link.input_shape,
        rule="final layer" if state.index == len(chain) - 1 else f"{kind_words(link.kind)} input",
        errors=(state.error,) * images,
        unknowns=state.unknowns,
        equations=state.equations,
    )


def _chain_nodes(
    chain: Sequence[Link], states: Sequence[State], passage: Passage | None, names: Sequence[str]
) -> tuple[NetworkNode, ...]:
    reached = min((state.index for state in states), default=len(chain))
    errors = {state.index: state.error for state in states}
    nodes = []
    if names and names[0] != _IMAGES:
        known = float(reached == 0)
        nodes.append(NetworkNode(names[0], "opaque", (_IMAGES,), chain[0].input_shape, known, known, errors.get(0)))
    worst = errors.get(reached)
    for position, link in enumerate(chain):
        known = float(position >= reached - 1)
        activations = known
        if not known and passage is not None and position >= max(passage.index, 0):
            # In front of the ReLU it is known where that was open.
            activations = float((passage.units.is_open & passage.passed).float().mean())
        error = errors.get(position + 1, worst) if activations else None
        nodes.append(
            NetworkNode(
                link.name, kind_words(link.kind), (names[position],), link.output_shape, activations, known, error
            )
        )
    return tuple(nodes)
