from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gradinversion.audit import Leak, evaluate, write_report
from gradinversion.audit.feature_leak import FeatureLeak
from gradinversion.audit.network_diagram import draw_network
from gradinversion.audit.network_layout import rows_of
from gradinversion.audit.page import render_page
from gradinversion.audit.peeling_panel import SHOWN_PLACES, peeling_panel
from gradinversion.peeling.record import End, FoundImages, ImagesBy, NetworkNode, PeelingRecord, RecoveredPlace
from gradinversion.peeling.resolutions import resolution_sentence, resolutions
from gradinversion.peeling.wording import standing, summary, would_do


def node(name: str, kind: str, *inputs: str, known: float = 0.0) -> NetworkNode:
    return NetworkNode(name, kind, inputs, (8, 4, 4), known, known, 1e-6 if known else None)


def residual(known: float = 1.0) -> tuple[NetworkNode, ...]:
    """A stem of a convolution and a ReLU, a block with a convolution on its skip, one with a plain skip, and a head."""
    return (
        node("conv1", "convolution", "images"),
        node("relu", "rectifier", "conv1"),
        node("layer1.0.conv1", "convolution", "relu"),
        node("relu_1", "rectifier", "layer1.0.conv1"),
        node("layer1.0.conv2", "convolution", "relu_1", known=known / 2),
        node("layer1.0.down.0", "convolution", "relu"),
        node("add", "sum", "layer1.0.conv2", "layer1.0.down.0"),
        node("relu_2", "rectifier", "add", known=known),
        node("layer1.1.conv1", "convolution", "relu_2", known=known),
        node("add_1", "sum", "layer1.1.conv1", "relu_2", known=known),
        node("relu_3", "rectifier", "add_1", known=known),
        node("mean", "global mean", "relu_3", known=known),
        node("fc", "linear", "mean", known=known),
    )


def record(**changes: Any) -> PeelingRecord:
    place = RecoveredPlace(
        "relu_2",
        "the input of layer1.1.conv1",
        "layer1.1.conv1",
        (8, 4, 4),
        "taps",
        (1e-7, 4e-6),
        32,
        64,
        {"leak": 0.5},
    )
    end = End("relu_1", "the input of layer1.0.conv2", "taps", "few equations", "it has 9", 9, 4, None, 1, 8)
    values: dict[str, Any] = {
        "footholds": ("the taps of layer1.1.conv1",),
        "places": (place,),
        "ends": (end,),
        "nodes": residual(),
        "image_count": 2,
        "tolerance": 0.03,
    }
    return PeelingRecord(**(values | changes))


def test_a_block_is_a_row_with_its_skip() -> None:
    rows = rows_of(residual(), "images")
    assert [row.title for row in rows] == ["conv1", "layer1.0", "layer1.1.conv1", "fc"]
    stem, first, second, head = rows
    assert [one.name for one in stem.main] == ["conv1", "relu"]
    assert [one.name for one in first.main] == ["layer1.0.conv1", "relu_1", "layer1.0.conv2", "add", "relu_2"]
    (branch,) = first.branches
    assert ([one.name for one in branch.nodes], branch.start, branch.end) == (["layer1.0.down.0"], -1, 3)
    (skip,) = second.branches
    assert (skip.nodes, skip.start, skip.end) == ((), -1, 1)
    assert [one.name for one in head.main] == ["mean", "fc"]


def test_a_plain_network_has_a_row_for_each_convolution() -> None:
    nodes = [node("0", "convolution", "images")]
    for position in range(1, 12):
        kind = ("convolution", "batch norm", "rectifier")[position % 3]
        nodes.append(node(str(position), kind, str(position - 1)))
    assert [row.title for row in rows_of(nodes, "images")] == ["0", "3", "6", "9"]


def test_a_block_that_joins_everything_is_cut_by_its_modules() -> None:
    nodes = [node("stem", "convolution", "images")]
    for layer in range(12):
        before = ["stem", *(f"block.{one}.conv" for one in range(layer))]
        nodes += [
            node(f"cat_{layer}", "concatenation", *before),
            node(f"block.{layer}.conv", "convolution", f"cat_{layer}"),
        ]
    nodes.append(node("cat", "concatenation", "stem", *(f"block.{one}.conv" for one in range(12))))
    rows = rows_of(nodes, "images")
    assert not all(row.whole for row in rows)
    assert sum(len(row.main) for row in rows) == len(nodes)
    drawn = draw_network(record(nodes=tuple(nodes), places=(), ends=()))
    assert drawn is not None
    assert not drawn.whole


def test_every_operation_is_a_box_that_shows_how_much_is_known() -> None:
    drawn = draw_network(record())
    assert drawn is not None
    assert len(drawn.boxes) == 1 + len(residual())
    by_note = {box.note.partition(",")[0]: box for box in drawn.boxes}
    assert by_note["relu_2"].state == "exact"
    assert by_note["relu_2"].known == by_note["relu_2"].derivative == drawn.box_width
    assert by_note["layer1.0.conv2"].state == "part"
    assert 0 < by_note["layer1.0.conv2"].known < drawn.box_width
    assert (by_note["conv1"].state, by_note["conv1"].known) == ("none", 0)
    assert [note for note, box in by_note.items() if box.ended] == ["relu_1"]
    assert "activations known: all (estimated error 1e-06)" in by_note["relu_2"].note
    assert all(
        box.x + drawn.box_width <= drawn.width and box.y + drawn.box_height <= drawn.height for box in drawn.boxes
    )


def test_what_passes_on_what_enters_is_no_box() -> None:
    nodes = (node("same", "identity", "images"), node("conv", "convolution", "same"))
    drawn = draw_network(record(nodes=nodes, places=(), ends=()))
    assert drawn is not None
    assert [box.text for box in drawn.boxes] == ["pixels", "conv"]


def test_the_panel_lists_places_from_the_images_on() -> None:
    deep = RecoveredPlace("mean", "the input of fc", "fc", (8,), "final layer", (1e-8, 1e-8))
    panel = peeling_panel(record(places=(deep, *record().places)), (32, 32))
    assert panel is not None
    assert [row["place"] for row in panel.places] == ["input of layer1.1.conv1", "input of fc"]
    assert panel.places[0]["error"] == "4e-06"
    assert panel.places[1]["unknowns"] == "–"
    assert (
        panel.ends[0]["would"] == "They would be enough for one image of this size, or for as many images of up to 8 px"
    )


def test_the_panel_says_what_is_known_at_which_resolution() -> None:
    fine = RecoveredPlace("relu", "the input of conv2", "conv2", (4, 8, 8), "gradient", (1e-3, 2e-3))
    vector = RecoveredPlace("mean", "the input of fc", "fc", (8,), "final layer", (1e-8, 1e-8))
    given = record(places=(*record().places, fine, vector))
    panel = peeling_panel(given, (32, 64))
    assert panel is not None
    assert [row["stride"] for row in panel.resolutions] == ["4 x 8", "8 x 16"]
    assert [row["error"] for row in panel.resolutions] == ["0.002", "4e-06"]
    better = RecoveredPlace("other", "the input of conv3", "conv3", (16, 4, 4), "gradient", (1e-8, 1e-7))
    one = resolutions(replace(given, places=(*given.places, better)), (32, 32))[1]
    assert (one.values, one.channels, one.grid, one.stride, one.error) == (2, 16, (4, 4), "8", 1e-7)


def test_the_sentence_on_resolutions_is_of_features_and_not_of_images() -> None:
    said = resolution_sentence(record(), (32, 32))
    assert said == (
        "Features of every place of every image are known at stride 8 (4 x 4 places, 8 numbers at each, "
        "estimated error 4e-06)."
    )
    assert "every visit" in resolution_sentence(record(local_steps=2), (32, 32))
    assert not resolution_sentence(record(found=FoundImages(ImagesBy.EQUATIONS, (1e-6,))), (32, 32))
    assert not resolution_sentence(record(places=()), (32, 32))


@pytest.mark.parametrize(
    ("found", "nodes", "titles", "word"),
    [
        (None, residual(), ["Exact", "Determined", "From a prior"], "do not see"),
        (FoundImages(ImagesBy.EQUATIONS, (1e-6,)), residual(), ["Exact"], "The images"),
        (FoundImages(ImagesBy.DESCENT, (1e-6,), True), residual(), ["Exact", "Determined"], "The images"),
        (FoundImages(ImagesBy.DESCENT, (1e-6,)), residual(), ["Exact", "Determined", "From a prior"], "do not see"),
        (None, (node("max", "max pool", "images"), *residual()[2:]), ["Exact", "Determined", "From a prior"], "losers"),
    ],
)
def test_exact_determined_and_guessed_are_told_apart(
    found: FoundImages | None, nodes: tuple[NetworkNode, ...], titles: list[str], word: str
) -> None:
    if nodes[0].kind == "max pool":
        # The first block reads what was pooled.
        nodes = tuple(
            NetworkNode(**(vars(one) | {"inputs": tuple("max" if name == "relu" else name for name in one.inputs)}))
            for one in nodes
        )
    said = standing(record(found=found, nodes=nodes))
    assert [title for title, _ in said] == titles
    assert word in said[-1][1]


@pytest.mark.parametrize(
    ("errors", "confirmed", "words"),
    [
        ((1e-6, 3e-6), True, "makes the gradient that was sent (estimated error 3e-06 at most)"),
        ((1e-6, math.inf), False, "met the features of 1 of 2 images; nothing confirms"),
    ],
)
def test_what_became_of_the_images_is_in_the_summary(errors: tuple[float, ...], confirmed: bool, words: str) -> None:
    said = summary(record(found=FoundImages(ImagesBy.DESCENT, errors, confirmed)))
    assert words in said
    assert words not in summary(record())


def test_where_one_image_is_too_many_that_is_said() -> None:
    end = End("x", "the input of x", "taps", "few equations", "it has 9", 9, 4, None, 0, 0)
    assert would_do(end) == "one image alone is too large"


@pytest.mark.parametrize("places", [1, SHOWN_PLACES + 3])
def test_page_and_json_hold_the_record(attack: Callable[..., Any], tmp_path: Path, places: int) -> None:
    many = tuple(record().places[0] for _ in range(places))
    reconstruction, private = attack(batch=2, peeling=record(places=many))
    report = evaluate(reconstruction, private)
    page = render_page(report, reconstruction, private)
    assert "What the gradient determines" in page
    assert "Known at which resolution" in page
    assert "leak of its own" in page
    assert page.count("<details><summary>The other 3 places") == (places > 1)
    assert "<script" not in page
    assert page.count('<g class="box') == 1 + len(residual())
    write_report(report, reconstruction, private, tmp_path)
    facts = json.loads((tmp_path / "report.json").read_text())["peeling"]
    assert len(facts["places"]) == places
    assert facts["places"][0]["error_max"] == 4e-06
    assert facts["places"][0]["numbers"] == 128
    assert facts["ends"][0] | {"most_images": 1, "largest_side": 8} == facts["ends"][0]
    assert {one["name"] for one in facts["nodes"]} == {one.name for one in residual()}
    height, width = private.images.shape[-2:]
    (known,) = facts["resolutions"]
    assert known["grid"] == [4, 4]
    assert known["pixels"] == [height / 4, width / 4]
    assert (known["values"], known["channels"], known["value"], known["error"]) == (places, 8, "relu_2", 4e-06)
    assert re.fullmatch(r"By the taps of .*\. It ended at .* 8 px\.", facts["summary"])


@pytest.mark.parametrize("pictured", [True, False])
def test_the_verdict_says_at_which_resolution(attack: Callable[..., Any], pictured: bool) -> None:
    reconstruction, private = attack(batch=2, peeling=record())
    if not pictured:
        flat = torch.full_like(private.images, 0.5)
        reconstruction = replace(reconstruction, images=flat, consensus=flat)
    height = private.images.shape[-2]
    said = f"known at stride {height // 4} (4 x 4 places"
    leak = FeatureLeak("the input of layer1.1.conv1", "the taps of layer1.1.conv1", (1e-6,) * 2, (0.4,) * 2)
    verdicts = [evaluate(reconstruction, private, features=leak).verdict, evaluate(reconstruction, private).verdict]
    # A picture of every image says more than its features.
    assert [said in one.detail for one in verdicts] == [not pictured, not pictured]
    if not pictured:
        assert [one.leak for one in verdicts] == [Leak.LEAKED, Leak.UNKNOWN]
    assert said in evaluate(reconstruction, None).verdict.detail


def test_without_a_record_there_is_no_panel(attack: Callable[..., Any]) -> None:
    reconstruction, private = attack(batch=2)
    page = render_page(evaluate(reconstruction, private), reconstruction, private)
    assert "What the gradient determines" not in page


def test_names_of_a_strangers_modules_are_escaped(attack: Callable[..., Any]) -> None:
    nodes = (node("<b>conv</b>", "convolution", "images", known=1.0),)
    reconstruction, private = attack(batch=2, peeling=record(nodes=nodes, places=(), ends=()))
    page = render_page(evaluate(reconstruction, private), reconstruction, private)
    assert "<b>conv</b>" not in page
    assert "&lt;b&gt;conv&lt;/b&gt;" in page
