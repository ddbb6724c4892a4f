"""The example of each kind of plug-in, by both ways to name it, from its word to the report; and refusals."""

from __future__ import annotations

import importlib
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from gradinversion.audit.judging import judge
from gradinversion.audit.report import to_dict
from gradinversion.audit.sending import like_the_client
from gradinversion.capture import CapturedUpdate, Defence, ModelError, UpdateError, simulate_client
from gradinversion.capture.labels.recovery import recover_labels
from gradinversion.coordinator.identity import attack_plugins, identity
from gradinversion.coordinator.serial_group import attack
from gradinversion.plugins import PluginError, PluginKind, find_plugin, installed, is_plugin
from gradinversion.refusal import ConfigError
from gradinversion.registration import RegistrationConfig, register
from gradinversion.settings.case import obtain
from gradinversion.settings.own_code import own_code, own_plugins, require_code_of_preset, require_seen_code
from gradinversion.settings.run import config_yaml, load_config
from gradinversion.sweep.grid import make_grid

EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "examples" / "own_parts"
CLIENT = ("client.image_size=16", "client.batch_size=2")
SMALL = (*CLIENT, "agents.iterations=20", "agents.count=2", "coordinator.period=10")
OWN = {
    "objective.priors": "own_parts:curvature:0.05",
    "labels": "own_parts:by_bias",
    "registration.method": "own_parts:translations",
    "client.defence": "own_parts:signs",
    "peeling.decoder": "own_parts:small_network",
}


@pytest.fixture(autouse=True)
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The example's folder is the current one; what it made the process know is forgotten again."""
    monkeypatch.chdir(EXAMPLE)
    monkeypatch.setattr(sys, "path", [*sys.path])
    installed.cache_clear()
    yield
    sys.modules.pop("own_parts", None)
    installed.cache_clear()


def put_module(monkeypatch: pytest.MonkeyPatch, **members: object) -> None:
    module = ModuleType("wrong_parts")
    vars(module).update(members)
    monkeypatch.setitem(sys.modules, "wrong_parts", module)


def install(folder: Path) -> None:
    """What pip leaves of the example: the module's folder is on the path, and its entry points in the metadata."""
    told = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    metadata = folder / "own_parts-1.0.dist-info"
    metadata.mkdir()
    groups = (
        f"[{group}]\n" + "\n".join(f"{k} = {v}" for k, v in points.items())
        for group, points in told["entry-points"].items()
    )
    (metadata / "entry_points.txt").write_text("\n\n".join(groups) + "\n")
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {told['name']}\nVersion: {told['version']}\n")
    sys.path.append(str(folder))
    installed.cache_clear()


def test_a_run_with_plug_ins_of_four_kinds_names_them_in_its_report() -> None:
    words = [f"{key}={value}" for key, value in OWN.items()]
    config = load_config([*SMALL, *words])
    case = obtain(config)
    found = attack(case.update, case.model, case.attack, None).reconstruction
    report = to_dict(judge(found, case), found)
    told = {(one["kind"], one["name"]) for one in report["plugins"]}
    names = {value.removesuffix(":0.05") for value in OWN.values()}
    assert told == set(zip(sorted(kind.value for kind in PluginKind), sorted(names, key=kind_of), strict=True))
    assert all("own_parts.py, SHA-256 " in one["source"] for one in report["plugins"])
    assert report["labels"]["method"] == "own_parts:by_bias"
    assert sorted(case.private.labels.tolist()) == found.labels.labels.tolist() if case.private else False
    assert "prior:own_parts:curvature" in found.candidates[0].losses
    assert report["facts"][[row["name"] for row in report["facts"]].index("defences")]["words"] == "own_parts:signs 0"
    # Nothing is calm about a defence that the attack takes no account of.
    assert any("own_parts:signs" in limit for limit in found.limits)
    assert report["leak"] != "none"
    # Nor is it held against the client's facts that they make another update.
    assert report["truth_gap"] is None
    assert "a fact about the client is wrong" not in report["verdict"]


def kind_of(name: str) -> str:
    """The kind of each example, so that names sort as their kinds do."""
    kinds = {"small_network": "decoder", "signs": "defence", "by_bias": "label rule", "curvature": "prior"}
    return kinds.get(name.partition(":")[2], "registration")


def test_installed_plug_ins_go_by_the_names_of_their_entry_points(tmp_path: Path) -> None:
    assert not is_plugin(PluginKind.LABEL_RULE, "by_bias")
    install(tmp_path)
    words = ["objective.priors=curvature:0.05", "labels=by_bias", "client.defence=clip:1+signs:0.5"]
    config = load_config(words)
    assert [one.name for one in config.client.defences] == ["clip", "signs"]
    assert config.client.defences[1].strength == 0.5
    found = {one.name: one.source for one in own_plugins(config)}
    assert found.keys() == {"signs", "by_bias", "curvature"}
    assert all("own_parts.py, SHA-256 " in source for source in found.values())
    assert all("installed by own-parts 1.0" in source for source in found.values())
    assert own_code(config) == {
        "client.defence": "clip:1+signs:0.5",
        "labels": "by_bias",
        "objective.priors": "curvature:0.05",
    }


def test_the_prior_is_weighed_into_the_objective() -> None:
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    found = find_plugin(PluginKind.PRIOR, "own_parts:curvature").call(images)
    by_hand = [
        (image[c, y - 1, x] + image[c, y + 1, x] + image[c, y, x - 1] + image[c, y, x + 1] - 4 * image[c, y, x]) ** 2
        for image in images
        for c in range(3)
        for y in range(1, 7)
        for x in range(1, 7)
    ]
    assert float(found) == pytest.approx(float(torch.stack(by_hand).mean()), rel=1e-5)


def test_the_way_to_register_undoes_shifts() -> None:
    image = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.avg_pool2d(image, 5, 1, 2)
    candidates = torch.stack([smooth, smooth.roll((1, -2), (-2, -1)), smooth.roll((-1, 2), (-2, -1))])
    plain = register(candidates, config=RegistrationConfig("none")).images
    found = register(candidates, config=RegistrationConfig("own_parts:translations"))
    inner = (..., slice(4, -4), slice(4, -4))
    errors = [float((one[inner] - smooth[inner]).square().mean()) for one in (found.images, plain)]
    assert errors[0] < 0.1 * errors[1]
    assert found.rejected[:, 0].tolist()[1:] == [False, False]  # the first one had nowhere to go


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("labels=own_parts:by_bais", r"no callable 'by_bais'; did you mean by_bias"),
        ("labels=no_such_module_of_mine:rule", r"the label rule .* cannot be imported"),
        ("peeling.decoder=own_parts:nothing", r"no callable 'nothing'"),
        ("client.defence=own_parts:fog:0.3", r"no callable 'fog'"),
    ],
)
def test_what_is_not_there_is_refused_before_any_work(word: str, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        obtain(load_config([word]))


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("labels=by_bias", "labels=by_bias: give auto, .*module:callable, or the labels"),
        ("registration.method=fine", "registration.method=fine: choose one of .*or give module:callable"),
        ("peeling.decoder=ridge", "peeling.decoder=ridge: give linear, or module:callable"),
        ("objective.priors=own_parts:curvature", "give module:callable:WEIGHT with a finite weight"),
        ("objective.priors=own_parts:curvature:-1", "give module:callable:WEIGHT with a finite weight"),
        ("objective.priors=edges:0.1", "no prior is installed as edges"),
        ("objective.priors=a:b:0.1,a:b:0.2", "names a:b twice"),
        ("client.defence=fog", "use one of none, noise, .*or module:callable"),
        ("client.defence=noise:inf", "must be a number above 0"),
        ("client.defence=own_parts:signs:inf", "must be a finite number"),
        ("client.defence=own_parts:signs:many", "gives no number as the strength"),
    ],
)
def test_words_that_name_nothing_are_refused(word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config([word])


def test_a_weight_of_zero_leaves_a_prior_out() -> None:
    assert load_config(["objective.priors=a:b:0"]).objective.own_priors == ()
    assert attack_plugins(load_config(["objective.priors=a:b:0"])) == []


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        (lambda images: images.mean(dim=0), "it must return one number"),
        (lambda images: 1.0, "returned a float"),
        (lambda images: images.detach().mean(), "has no derivative"),
        (lambda images: images.mean() + torch.rand(()), "draw no random numbers"),
        (lambda images: images.mean() / 0, "not finite"),
        (lambda images: images[5], "failed with IndexError"),
    ],
)
def test_priors_that_break_their_protocol(monkeypatch: pytest.MonkeyPatch, prior: object, message: str) -> None:
    put_module(monkeypatch, prior=prior)
    case = obtain(load_config([*SMALL, "objective.priors=wrong_parts:prior:1"]))
    with pytest.raises(PluginError, match=f"the prior 'wrong_parts:prior' .*{message}"):
        attack(case.update, case.model, case.attack, None)


@pytest.mark.parametrize(
    ("labels", "confidence", "message"),
    [
        ([0], [1.0], r"labels of shape \(1,\)"),
        ([0, 10], [1.0, 1.0], "labels from 0 to 10; the model's classes are 0 to 9"),
        ([0, 1], [1.0, 2.0], "confidences that are no numbers between 0 and 1"),
        ([0.0, 1.0], [1.0, 1.0], "must be whole numbers"),
    ],
)
@pytest.mark.wrong_shapes
def test_label_rules_that_break_their_protocol(
    monkeypatch: pytest.MonkeyPatch, labels: list[float], confidence: list[float], message: str
) -> None:
    from gradinversion.capture import RecoveredLabels

    made = RecoveredLabels(torch.tensor(labels), torch.tensor(confidence), "x", "y")
    put_module(monkeypatch, rule=lambda layer, count: made)
    case = obtain(load_config([*SMALL]))
    with pytest.raises(PluginError, match=message):
        recover_labels(case.update, case.model, "wrong_parts:rule")


@pytest.mark.parametrize(
    ("defence", "message"),
    [
        (lambda gradients, strength, generator: None, "returned a NoneType"),
        (lambda gradients, strength, generator: {}, "returned other parameters"),
        (lambda gradients, strength, generator: {k: g / 0 for k, g in gradients.items()}, "finite numbers of shape"),
        (lambda gradients: gradients, "failed with TypeError"),
    ],
)
def test_defences_that_break_their_protocol(monkeypatch: pytest.MonkeyPatch, defence: object, message: str) -> None:
    put_module(monkeypatch, defence=defence)
    with pytest.raises(PluginError, match=message):
        obtain(load_config([*SMALL, "client.defence=wrong_parts:defence"]))


def test_warps_that_break_their_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    put_module(monkeypatch, find=lambda candidates: candidates)
    with pytest.raises(PluginError, match=r"it must return displacements of shape \(2, 1, 16, 16, 2\)"):
        register(torch.rand(2, 1, 3, 16, 16), config=RegistrationConfig("wrong_parts:find"))


def test_a_files_own_defence_is_named_and_not_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    defended, model, private = simulate_client(load_config([*CLIENT, "client.defence=own_parts:signs:2"]).client, 0)
    defended.save(tmp_path / "theirs.safetensors")
    sys.modules.pop("own_parts", None)
    update = CapturedUpdate.load(tmp_path / "theirs.safetensors")
    assert update.defences == (Defence("own_parts:signs", 2.0),)
    with pytest.raises(UpdateError, match="code that only the update's file names"):
        like_the_client(update, model, 0)(private)
    assert "own_parts" not in sys.modules
    again = like_the_client(update, model, 0, trusted=["own_parts:signs"])(private)
    assert all(torch.equal(again.gradients[name], gradient) for name, gradient in update.gradients.items())
    config = load_config([f"update={tmp_path}/theirs.safetensors", "told.defences=own_parts:signs:2"])
    assert own_code(config) == {"told.defences": "own_parts:signs:2"}


def test_other_code_under_the_same_name_is_another_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    config = load_config([*CLIENT, "objective.priors=changing_parts:prior:0.1"])
    update = simulate_client(config.client, 0)[0]
    found = []
    for body in ("return images.mean()", "return images.square().mean()"):
        (tmp_path / "changing_parts.py").write_text(f"def prior(images):\n    {body}\n")
        sys.modules.pop("changing_parts", None)
        importlib.invalidate_caches()
        found.append(identity(config, update)["prior changing_parts:prior"])
    sys.modules.pop("changing_parts", None)
    assert found[0] != found[1]


@pytest.mark.parametrize("key", OWN)
def test_a_preset_file_does_not_run_code_that_the_command_does_not_name(key: str, tmp_path: Path) -> None:
    preset = tmp_path / "theirs.yaml"
    preset.write_text(config_yaml(load_config([f"{key}={OWN[key]}"])))
    words = [f"preset={preset}"]
    with pytest.raises(ConfigError, match=r"names code that would run here"):
        require_code_of_preset(load_config(words), words)
    words.append(f"{key}={OWN[key]}")
    require_code_of_preset(load_config(words), words)


@pytest.mark.parametrize(
    ("word", "named"),
    [
        ("sweep.axes=client.model:convnet,os:abort", True),
        ("sweep.axes=labels:auto,own_parts:by_bias", True),
        ("sweep.axes=objective.priors:own_parts:curvature:0.1", True),
        ("sweep.defences=none,own_parts:signs:1", True),
        ("sweep.defences=none,none+client.model=os:abort", True),
        ("sweep.defences=none,none+client.defence=own_parts:signs", True),
        ("sweep.axes=objective.priors: own_parts:curvature:0.1", True),
        ("sweep.axes=client.model: os:abort", True),
        ("sweep.defences=none,noise:0.1+client.bn=eval", False),
        ("sweep.axes=labels:auto,counts,client.model:timm:resnet10t", False),
        ("sweep.axes=client.local_epochs:0,1", False),
    ],
)
def test_code_in_a_grid_is_code(word: str, named: bool) -> None:
    config = load_config([word])
    assert own_code(config) == ({word.partition("=")[0]: word.partition("=")[2]} if named else {})


def planned(words: list[str]) -> None:
    """All that an audit does before anything is run."""
    config = load_config(words)
    require_code_of_preset(config, words)
    make_grid(config)


@pytest.mark.parametrize(
    "lines",
    [
        'defences: [none, "none+client.model=own_parts:by_bias"]',
        'defences: [none, "noise:0.1+ client.defence=own_parts:signs"]',
        'axes: ["objective.priors: own_parts:curvature:0.5"]',
        'axes: ["client.model:convnet", " os:abort"]',
    ],
)
def test_a_preset_files_grid_runs_no_code_however_it_is_written(lines: str, tmp_path: Path) -> None:
    preset = tmp_path / "theirs.yaml"
    preset.write_text(f"sweep: {{batch_sizes: [1], bn: [eval], {lines}}}\n")
    words = [f"preset={preset}"]
    with pytest.raises(ConfigError, match=r"code that would run here|is no key; after a plus sign"):
        planned(words)


def test_cells_run_no_code_that_their_grid_does_not_show() -> None:
    config = load_config(["sweep.axes=client.model:convnet,os:abort"])
    require_seen_code(config, [load_config(["client.model=os:abort"]), load_config(["client.model=convnet"])])
    with pytest.raises(
        ConfigError, match=r"a cell of the grid would run own_parts:by_bias, and sweep does not name it"
    ):
        require_seen_code(config, [load_config(["labels=own_parts:by_bias"])])


def test_code_that_ends_the_process_is_refused_like_any_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As a script without a guard does; status 0 would say that nothing leaked."""
    (tmp_path / "ending_parts.py").write_text("import sys\nsys.exit(0)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(PluginError, match=r"cannot be imported .SystemExit"):
        obtain(load_config(["labels=ending_parts:rule"]))
    with pytest.raises(ModelError, match=r"cannot be imported .SystemExit"):
        obtain(load_config(["client.model=ending_parts:build"]))
