"""Which attacks the controls are, and what becomes of those that fail. Short real attacks, without Ray."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from gradinversion.agents import Agent, AgentsConfig, Outcome
from gradinversion.audit import AuditConfig, Case, Leak, Pool, evaluate, load_pool, run_controls
from gradinversion.audit.config import CONTROLS
from gradinversion.audit.controls import (
    MEANINGS,
    TITLES,
    ControlError,
    alone,
    other_update,
    without_gradient,
    without_statistics,
)
from gradinversion.audit.sending import like_the_client, simulated
from gradinversion.capture import CapturedUpdate, ClientConfig, PrivateBatch, UpdateError, simulate_client
from gradinversion.capture.defences import Defence
from gradinversion.capture.facts import told
from gradinversion.coordinator import AllSeedsFailedError, AttackConfig, Reconstruction, Source
from gradinversion.target.preparation import prepare
from torch import Tensor, nn

SMALL = ClientConfig(batch_size=2, image_size=16)
CONFIG = AttackConfig(agents=AgentsConfig(count=2, iterations=60, warmup=5))
Attack = Callable[[str, CapturedUpdate, AttackConfig], Reconstruction]
Client = tuple[CapturedUpdate, nn.Module, PrivateBatch]


@pytest.fixture(scope="module")
def client() -> Client:
    return simulate_client(SMALL, 0)


@pytest.fixture(scope="module")
def pool(client: Client) -> Pool:
    return load_pool("photos", client[2])


def case_of(client: Client, *controls: str, pool: str | None = "photos") -> Case:
    """The case of the simulated client."""
    update, model, private = client
    return Case(update, model, CONFIG, private, simulated(SMALL, CONFIG.seed), SMALL, AuditConfig(controls, pool))


def attack_on(model: nn.Module, done: list[tuple[CapturedUpdate, AttackConfig]]) -> Attack:
    """Agents one after another, their mean as the answer."""

    def attack(control: str, update: CapturedUpdate, config: AttackConfig) -> Reconstruction:
        done.append((update, config))
        prepared = prepare(update, model, config.request)
        seeds = range(config.agents.count)
        agents = [Agent(prepared.target, config.objective, config.agents, config.seed + seed) for seed in seeds]
        candidates = tuple(agent.run(config.agents.iterations).with_images(agent.images) for agent in agents)
        mean = shown(update, torch.stack([candidate.images for candidate in candidates]).mean(0))
        return Reconstruction(
            images=mean,
            labels=prepared.labels,
            consensus=mean,
            agreement=torch.ones(len(mean)),
            candidates=candidates,
            sources=(Source(),) * len(mean),
            gradient_loss=candidates[0].losses.get("gradient", math.nan),
            history=(),
            registration=(),
            rounds=1,
            iterations=config.agents.iterations,
            seconds=0.0,
            restarts=0,
            outcome=Outcome.FINISHED,
            messages=(),
            config={},
            model_id="convnet",
            batch_norm=update.batch_norm.value,
            defence="none",
            normalisation=update.normalisation,
            belief=prepared.belief,
        )

    return attack


def shown(update: CapturedUpdate, images: Tensor) -> Tensor:
    return update.normalisation.invert(images).clamp(0, 1)


def test_each_control_is_the_attack_with_one_thing_changed(client: Client, pool: Pool) -> None:
    update, model, private = client
    done: list[tuple[CapturedUpdate, AttackConfig]] = []
    announced: list[str] = []
    attack = attack_on(model, done)
    reconstruction = attack("", update, CONFIG)
    controls = run_controls(case_of(client, *reversed(CONTROLS)), attack, announced.append)
    assert [control.name for control in controls] == announced == ["no_gradient", "other_images", "one_agent"]
    assert [control.problem for control in controls] == [""] * 3
    (_, main), (_, blind), (other, same), (right, single) = done
    assert blind == dataclasses.replace(
        main,
        objective=dataclasses.replace(main.objective, gradient_weight=0.0),
        peeling=dataclasses.replace(main.peeling, enabled=False),
    )
    assert same == main
    assert right is update
    assert (single.agents.count, single.agents.iterations, single.objective.group_weight) == (1, 120, 0)
    # The other update is that of the same client on the first images of the pool, under the same labels.
    batch = PrivateBatch(pool.images[:2], private.labels, pool.names[:2])
    expected, _, _ = simulate_client(SMALL, 0, batch)
    assert other.weight_hash == update.weight_hash
    assert all(torch.equal(other.gradients[name], expected.gradients[name]) for name in expected.gradients)
    assert not all(torch.equal(other.gradients[name], update.gradients[name]) for name in update.gradients)
    # On an untrained network sixty steps are enough to leave every control behind.
    report = evaluate(reconstruction, private, controls=controls, pool=pool)
    assert [image.verdict.leak for image in report.images] == [Leak.LEAKED] * 2
    assert report.control_psnr("other_images") is not None
    assert {name for image in report.images for name in image.controls} == set(CONTROLS)


def test_the_attack_without_the_gradient_is_not_held_for_a_leak(client: Client, pool: Pool) -> None:
    update, model, private = client
    attack = attack_on(model, [])
    blind = attack("", update, without_gradient(CONFIG))
    controls = run_controls(case_of(client, "no_gradient", "other_images"), attack)
    report = evaluate(blind, private, controls=controls, pool=pool)
    assert {image.verdict.leak for image in report.images} == {Leak.NONE}


def test_controls_that_fail_are_handed_back_with_their_problem(client: Client, tmp_path: Path) -> None:
    def diverge(control: str, update: CapturedUpdate, config: AttackConfig) -> Reconstruction:
        raise AllSeedsFailedError("All 2 seeds diverged;\n  lower agents.learning_rate.")

    controls = run_controls(case_of(client, *CONTROLS, pool=str(tmp_path / "none")), diverge)
    problems = {control.name: control.problem for control in controls}
    assert problems["no_gradient"] == "All 2 seeds diverged; lower agents.learning_rate."
    assert "audit.pool" in problems["other_images"]
    assert all(control.reconstruction is None for control in controls)


def test_an_interruption_is_not_a_failed_control(client: Client) -> None:
    def interrupt(control: str, update: CapturedUpdate, config: AttackConfig) -> Reconstruction:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_controls(case_of(client, "one_agent"), interrupt)


@pytest.mark.parametrize("controls", [["constant_image"], []])
def test_the_constant_image_needs_no_attack(client: Client, controls: list[str]) -> None:
    done: list[tuple[CapturedUpdate, AttackConfig]] = []
    assert run_controls(case_of(client, *controls), attack_on(client[1], done)) == ()
    assert done == []


def test_without_the_private_batch_there_is_nothing_to_hold_controls_against(client: Client) -> None:
    done: list[tuple[CapturedUpdate, AttackConfig]] = []
    case = dataclasses.replace(case_of(client, *CONTROLS), private=None)
    assert run_controls(case, attack_on(client[1], done)) == ()
    assert done == []


def test_the_control_without_the_gradient_has_no_statistics_of_the_batch_either() -> None:
    update, model, _ = simulate_client(dataclasses.replace(SMALL, bn="train_shared"), 0)
    bare = without_statistics(update)
    assert (bare.batch_norm, bare.buffers) == ("train_private", None)
    bare.require_match(model)
    plain, _, _ = simulate_client(SMALL, 0)
    assert without_statistics(plain) is plain


def test_one_agent_of_one_makes_the_same_steps() -> None:
    config = AttackConfig(agents=AgentsConfig(count=1, iterations=7))
    assert alone(config).agents == dataclasses.replace(config.agents, minimum=1)


def test_unknown_controls_are_refused() -> None:
    with pytest.raises(ValueError, match="choose among constant_image"):
        AuditConfig(controls=("nothing",))
    with pytest.raises(ValueError, match=r"audit\.pool=FOLDER"):
        AuditConfig(controls=("other_images",))
    with pytest.raises(ValueError, match="choose among pixels"):
        AuditConfig(embedding="deep")
    with pytest.raises(ValueError, match=r"audit\.lpips_weights"):
        AuditConfig(embedding="lpips")


def test_every_control_has_words() -> None:
    assert set(TITLES) == set(MEANINGS) == set(CONTROLS)


def test_the_control_without_the_gradient_needs_something_that_remains() -> None:
    from gradinversion.settings.run import load_config

    with pytest.raises(ControlError, match=r"no_gradient: this attack has no term beside the gradient"):
        without_gradient(load_config(["preset=dlg"]))
    words = ["preset=latent_projection", "agents.generator=my.module:build"]
    assert without_gradient(load_config(words)).objective.empty
    assert without_gradient(load_config([])).objective.gradient_weight == 0


def test_other_images_are_sent_as_the_client_of_a_captured_update_would(client: Client, pool: Pool) -> None:
    update, model, private = client
    found = other_update(like_the_client(update, model, 0), private, pool)
    expected = other_update(simulated(SMALL, 0), private, pool)
    assert all(torch.equal(found.gradients[name], expected.gradients[name]) for name in expected.gradients)
    assert found.normalisation == update.normalisation


def test_a_defence_that_only_the_client_knows_leaves_the_control_out(client: Client, pool: Pool) -> None:
    update, model, private = client
    dropped = update.stating(defences=told((Defence("soteria", 0.5),)))
    with pytest.raises(UpdateError, match="defence 'soteria' cannot be carried out on other images"):
        other_update(like_the_client(dropped, model, 0), private, pool)


@pytest.mark.parametrize("defence", ["prune:0.9", "clip:0.01+noise:0.5"])
def test_other_images_go_through_the_clients_defence(defence: str, pool: Pool) -> None:
    config = dataclasses.replace(SMALL, defence=defence)
    update, model, private = simulate_client(config, 0)
    found = other_update(like_the_client(update, model, 0), private, pool)
    expected = other_update(simulated(config, 0), private, pool)
    assert all(torch.equal(found.gradients[name], expected.gradients[name]) for name in expected.gradients)
