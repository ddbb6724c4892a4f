from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from gradinversion.capture import capture_gradient
from gradinversion.capture.models import convnet
from gradinversion.peeling import PeelingConfig, peel
from gradinversion.peeling.cut import photo_crops, public_photos
from gradinversion.peeling.record import AVERAGED, End, PeelingRecord, RecoveredPlace, joined
from gradinversion.peeling.recovery import recover_images
from gradinversion.peeling.refusals import Why
from gradinversion.peeling.wording import ended, reached
from torch import nn
from torchvision.models.resnet import BasicBlock


def residual(stem: int = 8) -> nn.Module:
    """A stem with too few channels for its places, and a block whose taps are enough."""
    torch.manual_seed(0)
    down = nn.Sequential(nn.Conv2d(stem, 128, 1, 4, bias=False), nn.BatchNorm2d(128))
    block = BasicBlock(stem, 128, 4, down)
    return nn.Sequential(
        nn.Conv2d(3, stem, 3, padding=1), nn.ReLU(), block, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10)
    ).eval()


def recorded(model: nn.Module, count: int = 2, taps: bool = True) -> PeelingRecord:
    images, labels = photo_crops(list(public_photos().values()), (16, 16), count, 3), torch.arange(count)
    update = capture_gradient(model, images, labels)
    chain = peel(update, model, labels).record
    found = joined(recover_images(update, model).record if taps else None, chain)
    assert found is not None
    return found


def test_a_residual_network_has_both_footholds_and_its_end() -> None:
    record = recorded(residual(1))
    assert record.footholds == ("the taps of 2.conv2", "the final layer (5)")
    first, last = record.places[0], record.places[-1]
    assert (first.place, first.shape, first.rule) == ("the input of 2.conv2", (128, 4, 4), "taps")
    assert (first.unknowns, first.equations, first.numbers) == (32, 128, 2048)
    assert len(first.errors) == 2
    assert first.error_median <= first.error_max < 1e-3
    assert (last.place, last.rule, last.shape) == ("the input of 5", "final layer", (128,))
    known = {node.name: node.activations + node.derivative for node in record.nodes}
    assert known["2.conv2"] == 2
    assert known["0"] < 2


def test_where_it_ended_says_what_would_have_been_enough() -> None:
    # Of each of sixteen images 64 places at the block's taps, whose 128 channels tell 128 places apart.
    model = residual()
    images, labels = torch.rand(16, 3, 32, 32), torch.arange(16) % 10
    record = recover_images(capture_gradient(model, images, labels), model).record
    assert record is not None
    (end,) = record.ends
    assert (end.place, end.why, end.unknowns, end.equations) == ("the input of 2.conv2", "few equations", 1024, 128)
    assert (end.most_images, end.largest_side) == (2, 8)
    assert reached(record) == (
        "Peeling found no foothold: the input of 2.conv2: it has 1,024 unknowns, and equations for at most 128; they "
        "would be enough for 2 images of this size, or for as many images of up to 8 px."
    )
    # The same of the visits of a client that trained.
    assert reached(replace(record, local_steps=4)).endswith(
        "would be enough for 2 visits of images of this size, or for as many visits of up to 8 px."
    )


def test_a_plain_network_fills_the_same_record() -> None:
    model = convnet(10, 16).eval()
    record = recorded(model, taps=False)
    assert record.footholds == ("the final layer (13)",)
    assert [one.place for one in record.places][:2] == ["the input of 13", "the input of 9"]
    assert [node.name for node in record.nodes] == [str(position) for position in range(14)]
    assert record.nodes[0].inputs == (record.images,)
    assert record.nodes[-1].kind == "linear"
    assert record.whole == (record.nearest is not None and record.nearest.place == "the images")


def test_a_chain_behind_what_cannot_be_taken_apart_begins_there() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sigmoid(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    record = recorded(model, taps=False)
    assert (record.nodes[0].kind, record.nodes[0].inputs) == ("opaque", (record.images,))
    assert record.nearest is not None
    assert not record.whole
    assert ended(record) != ""


def test_images_that_follow_are_the_nearest_place() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 64), nn.ReLU(), nn.Linear(64, 10)).eval()
    record = recorded(model, taps=False)
    assert record.nearest is not None
    assert record.nearest.error_max < 1e-2
    assert record.nearest.place == "the images"
    assert record.whole
    assert (record.ends, record.reason, ended(record)) == ((), "", "")


@pytest.mark.parametrize("side", [16, 24])
def test_words_are_two_sentences_at_most(side: int) -> None:
    model = residual()
    update = capture_gradient(model, torch.rand(2, 3, side, side), torch.arange(2))
    message = recover_images(update, model).message
    assert message.count(". ") <= 1
    assert message.endswith(".")


def end(why: Why) -> End:
    return End("relu", "the input of conv", "taps", why.value, "", 32, 8, None, None, None)


def test_none_is_a_number_of_places_only_where_all_was_tried() -> None:
    place = RecoveredPlace("relu", "the input of conv", "conv", (8, 4, 4), "taps", (1e-6,))
    tried = PeelingRecord((), (), (), (), by_taps=True)
    assert tried.exact_places == 0
    assert replace(tried, ends=(end(Why.FEW_EQUATIONS),)).exact_places == 0
    for why in (Why.COST, Why.LARGE):
        limited = replace(tried, ends=(end(Why.FEW_EQUATIONS), end(why)))
        assert limited.exact_places is None
        assert replace(limited, places=(place,)).exact_places == 1
    # The chain of the last layers alone.
    assert replace(tried, by_taps=False).exact_places is None


def test_whether_taps_were_tried_stands_in_the_record() -> None:
    model = residual()
    images, labels = torch.rand(16, 3, 32, 32), torch.arange(16) % 10
    update = capture_gradient(model, images, labels)
    record = recover_images(update, model).record
    assert record is not None
    assert record.exact_places == 0
    chain = peel(update, model, labels).record
    assert chain is not None
    assert not chain.by_taps
    both = joined(record, chain)
    assert both is not None
    assert both.by_taps
    costly = recover_images(update, model, PeelingConfig(operations=1.0)).record
    assert costly is not None
    assert costly.by_taps


def averaged() -> nn.Module:
    """A mean behind a 1x1 convolution, with a plain stem in front that layer peeling knows, were it told."""
    torch.manual_seed(0)
    means = (nn.Conv2d(16, 32, 1), nn.AvgPool2d(2), nn.ReLU())
    body = (nn.Conv2d(32, 64, 3, 1, 1), nn.ReLU(), nn.Conv2d(64, 64, 3, 1, 1), nn.ReLU())
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    return nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), *means, *body, *head).eval()


def test_what_the_chain_knows_is_not_the_mean_that_the_graph_takes_in_front() -> None:
    model = averaged()
    record = recover_images(capture_gradient(model, torch.rand(2, 3, 16, 16), torch.tensor([1, 3])), model).record
    assert record is not None
    (mean,) = [node for node in record.nodes if node.kind == AVERAGED]
    assert "mean over windows" in record.reason
    (place,) = [one for one in record.places if one.value == mean.name]
    assert (place.place, place.reader) == ("the mean over windows of the input of 2", "")
    of_chain = RecoveredPlace("1", "the input of 2", "2", (16, 8, 8), "convolution input", (1e-6, 1e-6))
    both = joined(record, PeelingRecord((), (of_chain,), (), ()))
    assert both is not None
    assert both.places[-1].value == mean.inputs[0]
    known = {node.name: node.activations for node in both.nodes}
    assert known[mean.inputs[0]] == 1
    assert both.reason == ""
