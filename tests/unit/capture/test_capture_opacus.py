"""The update of real DP-SGD steps by Opacus."""

from __future__ import annotations

import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gradinversion.capture import (
    IMAGENET,
    BatchNormMode,
    CapturedUpdate,
    Defence,
    Provenance,
    Sampling,
    UpdateError,
    as_mean,
    assumed,
    capture_gradient,
    read,
    told,
    weight_hash,
)
from gradinversion.capture.adapters.opacus import PrivateSteps, record_private_steps
from gradinversion.target.defence_evidence import allow_for_defence
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

opacus = pytest.importorskip("opacus", reason="opacus is not installed: pip install 'gradinversion[opacus]'")

# Opacus says that its random numbers are not cryptographic, and torch that the images need no gradient.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Secure RNG turned off:UserWarning"),
    pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning"),
    pytest.mark.filterwarnings("ignore:Optimal order is the:UserWarning"),
]


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)).train()


def batch() -> tuple[Tensor, Tensor]:
    return torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(8)


def private(model: nn.Module, noise: float, norm: float | list[float], **options: Any) -> tuple[Any, ...]:
    """The engine, and what it made of the model, an optimiser and a loader of one whole batch."""
    engine = opacus.PrivacyEngine(accountant="rdp")
    settings = {"poisson_sampling": False} | options
    made = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=DataLoader(TensorDataset(*batch()), batch_size=8),
        noise_multiplier=noise,
        max_grad_norm=norm,
        noise_generator=torch.Generator().manual_seed(4),
        **settings,
    )
    return engine, *made


def step(model: nn.Module, optimizer: Any, images: Tensor, labels: Tensor) -> None:
    optimizer.zero_grad()
    F.cross_entropy(model(IMAGENET.apply(images)), labels).backward()
    optimizer.step()


def record(noise: float, norm: float | list[float], steps: int = 1, **options: Any) -> PrivateSteps:
    engine, model, optimizer, _ = private(network(), noise, norm, **options)
    with record_private_steps(model, optimizer, engine, image_shape=(3, 8, 8), most_steps=steps) as recorded:
        for _ in range(steps + 1):
            step(model, optimizer, *batch())
    return recorded


def norm(gradients: dict[str, Tensor]) -> float:
    return float(torch.cat([g.flatten() for g in gradients.values()]).norm())


def test_without_noise_and_clipping_it_is_the_plain_gradient() -> None:
    recorded = record(0.0, 1e6)
    expected = capture_gradient(network(), *batch())
    assert recorded.update.gradients.keys() == expected.gradients.keys()
    for name, value in expected.gradients.items():
        torch.testing.assert_close(recorded.update.gradients[name], value, rtol=1e-4, atol=1e-6)
    assert recorded.update.batch_norm is BatchNormMode.EVAL
    assert "epsilon infinite" in recorded.update.facts.privacy
    recorded.update.require_match(network())


def test_each_image_is_clipped_before_the_average() -> None:
    assert norm(record(0.0, 0.05).update.gradients) <= 0.05 * 1.001 < norm(record(0.0, 1e6).update.gradients)


def test_the_noise_is_of_the_size_that_opacus_promises() -> None:
    clean, noisy = record(0.0, 1.0).update.gradients, record(2.0, 1.0).update.gradients
    difference = torch.cat([(noisy[name] - value).flatten() for name, value in clean.items()])
    # Deviation 2.0 * 1.0 on the sum, over 8 images.
    assert float(difference.std()) == pytest.approx(2.0 / 8, rel=0.05)


def test_the_facts_are_told_and_survive_the_file(tmp_path: Path) -> None:
    recorded = record(1.5, 0.7)
    recorded.update.save(tmp_path / "u.safetensors")
    update = CapturedUpdate.load(tmp_path / "u.safetensors")
    engine, model, optimizer, _ = private(network(), 1.5, 0.7)
    step(model, optimizer, *batch())
    assert update.facts == recorded.update.facts
    assert update.defences == (Defence("dp_sgd", 1.5, (0.7,)),)
    assert update.facts.privacy == f"epsilon {engine.get_epsilon(1e-5):.3g} at delta 1e-05 after 1 step"
    provenance = {name: fact.provenance for name, fact in update.facts.items()}
    assert {name for name, found in provenance.items() if found is Provenance.READ} == {"batch_norm", "dropout"}
    # Of the loss, the data loader and the pixels Opacus knows nothing.
    assumed = {"normalisation", "loss", "loss_scale", "label_smoothing", "sampling"}
    assert {name for name, found in provenance.items() if found is Provenance.ASSUMED} == assumed


def test_recording_leaves_the_training_as_it_is() -> None:
    """The same weights and the same epsilon as without, and nothing stays behind."""
    results = []
    for recording in (False, True):
        plain = network()
        engine, model, optimizer, _ = private(plain, 1.0, 1.0)
        hook = optimizer.step_hook
        if recording:
            with record_private_steps(model, optimizer, engine, image_shape=(3, 8, 8)):
                step(model, optimizer, *batch())
        else:
            step(model, optimizer, *batch())
        assert optimizer.step_hook is hook
        results.append((weight_hash(plain), engine.get_epsilon(1e-5)))
    assert results[0] == results[1]


def test_each_step_belongs_to_the_weights_before_it() -> None:
    recorded = record(1.0, 1.0, steps=2)
    assert len(recorded.updates) == 2
    for update, state in zip(recorded.updates, recorded.servers, strict=True):
        plain = network()
        plain.load_state_dict(state)
        update.require_match(plain)
    assert recorded.updates[0].weight_hash != recorded.updates[1].weight_hash


def test_a_sum_is_recorded_as_an_average() -> None:
    engine, model, optimizer, _ = private(network(), 0.0, 1e6, loss_reduction="sum")
    with record_private_steps(model, optimizer, engine, image_shape=(3, 8, 8)) as recorded:
        images, labels = batch()
        optimizer.zero_grad()
        F.cross_entropy(model(IMAGENET.apply(images)), labels, reduction="sum").backward()
        optimizer.step()
    for name, value in capture_gradient(network(), images, labels).gradients.items():
        torch.testing.assert_close(recorded.update.gradients[name], value, rtol=1e-4, atol=1e-6)


def test_poisson_batches_keep_their_own_count() -> None:
    engine, model, optimizer, _ = private(network(), 1.0, 1.0, poisson_sampling=True)
    images, labels = batch()
    with record_private_steps(model, optimizer, engine, image_shape=(3, 8, 8), most_steps=2) as recorded:
        step(model, optimizer, images[:0], labels[:0])
        step(model, optimizer, images[:5], labels[:5])
    assert recorded.problems == ["the batch of the step is empty, as Poisson sampling allows; take another step"]
    assert recorded.update.image_count == 5
    assert recorded.update.facts.sampling == assumed(Sampling(False, 8.0), "nobody gave the data loader")


def test_a_poisson_batch_is_attacked_as_the_mean_over_the_images_that_came() -> None:
    """Opacus divides by the expected number of images, so that five of eight give 5/8 of their mean."""
    engine, model, optimizer, loader = private(network(), 0.0, 1e6, poisson_sampling=True)
    images, labels = batch()
    with record_private_steps(model, optimizer, engine, image_shape=(3, 8, 8), loader=loader) as recorded:
        step(model, optimizer, images[:5], labels[:5])
    assert recorded.update.facts.sampling == read(Sampling(True, 8.0), "the sampler of the data loader")
    found, expected = as_mean(recorded.update), capture_gradient(network(), images[:5], labels[:5])
    for name, value in expected.gradients.items():
        torch.testing.assert_close(found.gradients[name], value, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(recorded.update.gradients[name], value * 5 / 8, rtol=1e-4, atol=1e-6)
    assert found.facts.sampling.value == Sampling(True)
    assert as_mean(found) is found


def test_gradients_that_wait_for_a_step_are_divided_by_all_their_batches() -> None:
    engine, model, optimizer, loader = private(network(), 0.0, 1e6)
    images, labels = batch()
    with record_private_steps(model, optimizer, engine, image_shape=(3, 8, 8), loader=loader) as recorded:
        optimizer.zero_grad()
        for part in (slice(0, 3), slice(3, 8)):
            F.cross_entropy(model(IMAGENET.apply(images[part])), labels[part]).backward()
        optimizer.step()
    assert recorded.update.facts.sampling.value == Sampling(False, 16.0)
    found, expected = as_mean(recorded.update), capture_gradient(network(), images, labels)
    for name, value in expected.gradients.items():
        torch.testing.assert_close(found.gradients[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("poisson", [True, False])
def test_how_batches_are_drawn_is_read_off_the_loader_or_told(poisson: bool) -> None:
    from opacus.utils.batch_memory_manager import wrap_data_loader

    engine, model, optimizer, loader = private(network(), 1.0, 1.0, poisson_sampling=poisson)
    split = wrap_data_loader(data_loader=loader, max_batch_size=2, optimizer=optimizer)
    expected = Sampling(poisson, 8.0 if poisson else None)
    for options, fact in (
        ({"loader": loader}, read(expected, "the sampler of the data loader")),
        ({"loader": split}, read(expected, "the sampler of the data loader")),
        ({"poisson": poisson}, told(expected, "the user")),
        ({}, assumed(Sampling(), "nobody gave the data loader")),
        ({"stated": {"sampling": told(expected, "me")}}, told(expected, "me")),
    ):
        with record_private_steps(model, optimizer, engine, image_shape=(3, 8, 8), **options) as recorded:
            step(model, optimizer, *batch())
        assert recorded.update.facts.sampling == fact


def test_clipping_by_layer_keeps_each_norm_in_the_order_of_the_model() -> None:
    norms = [0.1 * place for place in range(1, 7)]
    recorded = record(1.0, norms, clipping="per_layer")
    assert recorded.update.defences == (Defence("dp_sgd", 1.0, tuple(norms)),)
    for (name, value), largest in zip(
        record(0.0, norms, clipping="per_layer").update.gradients.items(), norms, strict=True
    ):
        assert float(value.norm()) <= largest * 1.001, name


def test_adaptive_clipping_tells_the_norm_and_the_noise_of_this_step() -> None:
    settings = {
        "target_unclipped_quantile": 0.5,
        "clipbound_learning_rate": 0.2,
        "max_clipbound": 10.0,
        "min_clipbound": 0.1,
        "unclipped_num_std": 2.0,
    }
    first, second = record(1.0, 1.0, steps=2, clipping="adaptive", **settings).updates
    # Theorem 1 of Andrew et al.: (1^-2 - (2 * 2)^-2)^(-1/2).
    (defence,) = first.defences
    assert defence.strength == pytest.approx((1 - 1 / 16) ** -0.5)
    assert defence.clip == (1.0,)
    # The norm has been adapted after the first step.
    assert second.defences[0].clip != (1.0,)


def test_the_same_step_is_allowed_for_as_that_of_the_simulated_client() -> None:
    """The facts tell the attack all that the simulated client's own record of such a step would."""
    recorded = record(0.01, 0.3).update
    assert recorded.defences == (Defence("dp_sgd", 0.01, (0.3,)),)
    simulated = capture_gradient(network(), *batch()).stating(defences=told((Defence("dp_sgd", 0.01, (0.3,)),)))
    simulated = replace(simulated, gradients=recorded.gradients)
    ours, theirs = (allow_for_defence(update, network().eval(), batch()[1]) for update in (recorded, simulated))
    assert ours.free_scale
    assert ours.messages
    for field in fields(ours):
        one, other = getattr(ours, field.name), getattr(theirs, field.name)
        assert torch.equal(one, other) if isinstance(one, Tensor) else one == other, field.name


@pytest.mark.parametrize("active", [True, False])
def test_dropout_is_read_off_the_model_that_trains(active: bool) -> None:
    torch.manual_seed(3)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(192, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 10)).train()
    plain[3].training = active
    engine, model, optimizer, _ = private(plain, 1.0, 1.0)
    model.train()
    plain[3].training = active
    with record_private_steps(model, optimizer, engine, image_shape=(3, 8, 8)) as recorded:
        step(model, optimizer, *batch())
    assert recorded.update.facts.dropout.value is active
    assert recorded.update.facts.dropout.provenance is Provenance.READ
    assert plain[3].training is active


def test_a_split_batch_needs_its_count() -> None:
    from opacus.utils.batch_memory_manager import BatchMemoryManager

    for count in (None, 8):
        engine, model, optimizer, loader = private(network(), 1.0, 1.0, poisson_sampling=True)
        with (
            record_private_steps(model, optimizer, engine, image_shape=(3, 8, 8), image_count=count) as recorded,
            BatchMemoryManager(data_loader=loader, max_physical_batch_size=2, optimizer=optimizer) as split,
        ):
            for images, labels in split:
                step(model, optimizer, images, labels)
        if count is None:
            assert "was split" in recorded.problems[0]
            with pytest.raises(UpdateError, match=r"no private step was recorded: .* give image_count"):
                _ = recorded.update
        else:
            assert recorded.update.image_count == 8


@pytest.mark.parametrize("count", [None, 8])
def test_ghost_clipping_needs_its_count(count: int | None) -> None:
    criterion = torch.nn.CrossEntropyLoss()
    engine, model, optimizer, private_loss, _ = private(
        network(), 0.0, 1e6, grad_sample_mode="ghost", criterion=criterion
    )
    with record_private_steps(model, optimizer, engine, image_shape=(3, 8, 8), image_count=count) as recorded:
        images, labels = batch()
        optimizer.zero_grad()
        private_loss(model(IMAGENET.apply(images)), labels).backward()
        optimizer.step()
    if count is None:
        assert recorded.problems == ["the step keeps no gradient per image to count; give image_count"]
    else:
        for name, value in capture_gradient(network(), images, labels).gradients.items():
            torch.testing.assert_close(recorded.update.gradients[name], value, rtol=1e-4, atol=1e-6)


def test_without_an_engine_epsilon_is_not_known() -> None:
    _, model, optimizer, _ = private(network(), 1.0, 1.0)
    with record_private_steps(model, optimizer, image_shape=(3, 8, 8)) as recorded:
        step(model, optimizer, *batch())
    assert recorded.update.facts.privacy == "epsilon not known"


def test_wrong_use_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    plain = torch.optim.SGD(model.parameters(), lr=0.1)
    with (
        pytest.raises(UpdateError, match="the optimiser is a SGD; give the one"),
        record_private_steps(model, plain, image_shape=(3, 8, 8)),
    ):
        pass
    engine, private_model, optimizer, _ = private(model, 1.0, 1.0)
    with record_private_steps(private_model, optimizer, engine, image_shape=(3, 8, 8)) as recorded:
        pass
    with pytest.raises(UpdateError, match=r"no private step was recorded: call optimizer.step\(\)"):
        _ = recorded.update
    monkeypatch.setitem(sys.modules, "opacus.optimizers", None)
    with (
        pytest.raises(UpdateError, match=r"pip install 'gradinversion\[opacus\]'"),
        record_private_steps(private_model, optimizer, image_shape=(3, 8, 8)),
    ):
        pass
