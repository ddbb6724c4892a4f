"""The configuration of one run: schema <- preset <- ``key=value`` words, checked as a whole."""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..audit.config import AuditConfig
from ..capture import ClientConfig, PrivateConfig
from ..capture.told_config import ToldConfig
from ..coordinator import AttackConfig, flatten
from ..refusal import ConfigError
from ..time_span import seconds_of
from .keys import Key, convert, format_value, keys, unknown
from .offered import OFFERED, is_preset_file, strange_word
from .origin import UNTRAINED, origin_problems, untold
from .sweep import SweepConfig
from .usage import DEFAULT_PRESET, preset_names, preset_text
from .words import of_wrong_type, split_words
from .yaml_file import parse_tree, parse_yaml, read_tree

# Keys that leave the numbers of an attack as they are: two runs that differ in nothing else are the same attack.
WITHOUT_EFFECT = frozenset(
    {"out", "resume", "restart", "preset", "audit.controls", "audit.lpips_weights", "audit.pool", "audit.embedding"}
    | {"agents.gpus", "agents.cpus", "agents.minimum", "agents.patience", "coordinator.save_every"}
    | {"budget", "fail_on", "audit.redact", "export"}
    | keys(PrivateConfig, "private.").keys()
    | keys(SweepConfig, "sweep.").keys()
)

_MOST_UNKNOWN = 20
# What a preset file does not set: where a run goes, and whether it is gone on with.
_OF_ONE_RUN = frozenset({"out", "resume", "restart", "preset"})


@dataclass(frozen=True)
class RunConfig(AttackConfig):
    """One run: the attack, the client it is aimed at, and what is done with the result."""

    out: str = "out"
    """Folder, or URL (s3://, gs://, file://), for the report, the images, the configuration and the checkpoints."""
    resume: bool = False
    """Continue the run that lies in the folder out, from its last checkpoint."""
    restart: bool = False
    """Begin anew in a folder out that holds a run: its checkpoints and its result are deleted."""
    update: str | None = None
    """File of a captured update (.safetensors) to attack; without it a client is simulated."""
    before: str | None = None
    """File of the weights that a client was sent (.safetensors, .pt or .pth): with after=FILE, those that it sent
    back, their difference is attacked; client.batch_size, image_size, local_epochs and learning_rate must be given."""
    after: str | None = None
    """File of the weights that the client sent back; see before."""
    preset: str = DEFAULT_PRESET
    """What the other keys start from: a published attack by its name, or a .yaml file of yours, such as the config.yaml
    of an earlier run, which is then made again; its out, resume and restart do not count."""
    client: ClientConfig = field(default_factory=ClientConfig)
    """The simulated client; with update=FILE only client.model and client.weights are used, and client.classes where it
    is not what the update says."""
    told: ToldConfig = field(default_factory=ToldConfig)
    """What the user knows of the client behind a captured update."""
    private: PrivateConfig = field(default_factory=PrivateConfig)
    """The truth behind update=FILE, for the audit alone."""
    audit: AuditConfig = field(default_factory=AuditConfig)
    """What the result is compared with."""
    fail_on: str = "never"
    """Verdict from which on the exit status is 4: leak, weak (a weak leak too), unknown (all but "no leak shown"), or
    never. For `audit` the verdict is that at your settings."""
    budget: str | None = None
    """Time that `audit` may take, such as 90s, 10m or 2h: the grid is made to fit; none runs all of it."""
    export: tuple[str, ...] = ()
    """Other forms of the numbers, written beside the report: csv (tables), tensorboard (event files) and wandb (a run
    that stays on this machine); the verb `export` writes them later."""
    sweep: SweepConfig = field(default_factory=SweepConfig)
    """The grid of `audit`."""

    def problems(self) -> list[str]:
        """Every value that cannot be carried out, and what does not go together, one sentence each."""
        found = super().problems()
        found += [words for name in OFFERED if (words := strange_word(name, getattr(self, name)))]
        if not self.out:
            found.append("out= is empty: give a folder.")
        if self.resume and self.restart:
            found.append("resume=true and restart=true: give one; the first goes on with a run, the second deletes it.")
        return found + origin_problems(self)

    @property
    def budget_seconds(self) -> float | None:
        """``budget`` in seconds; None where there is none, or none that can be read."""
        return seconds_of(self.budget)


def load_config(words: Sequence[str]) -> RunConfig:
    """The configuration that the words of a command line ask for.

    Args:
        words: ``key=value`` each; a later word overrides an earlier one, and every word overrides the preset.

    Raises:
        ConfigError: Words without ``=``, unknown keys and presets, values of the wrong type or out of range: all of
            them, not only the first.
    """
    problems: list[str] = []
    given = dict(split_words(words, problems))
    name = given.setdefault("preset", DEFAULT_PRESET)
    told = _settings_in_preset(name, problems) | given
    if missing := untold(given):
        told = {"client.local_epochs": "1"} | told  # that it is missing is said, and once is enough
    return _resolve(told, problems + missing)


def _settings_in_preset(name: str, problems: list[str]) -> dict[str, Any]:
    """The keys that a preset sets; what is wrong with its file is added to the problems."""
    if name in preset_names():
        return dict(flatten(parse_yaml(preset_text(name))))
    if not is_preset_file(name):
        return {}
    try:
        tree = read_tree(Path(name))
    except ConfigError as error:
        problems += error.problems
        return {}
    return {key: value for key, value in flatten(tree) if key not in _OF_ONE_RUN}


def load_config_file(path: Path) -> RunConfig:
    """The configuration that `config_yaml` wrote to a file; keys that the file lacks have their defaults.

    Raises:
        ConfigError: The file cannot be read, or what it says is refused.
    """
    return _resolve(dict(flatten(read_tree(path))), [])


def parse_config(content: bytes, where: str) -> RunConfig:
    """As `load_config_file`, from a file's content.

    Args:
        content: Of a yaml file.
        where: Its name, for errors.

    Raises:
        ConfigError: As in `load_config_file`.
    """
    return _resolve(dict(flatten(parse_tree(content, where))), [])


def to_plain(config: Any) -> dict[str, Any]:
    """A configuration, or one component's, as nested dicts of plain values: enums by their value, tuples as lists."""
    return {entry.name: _plain(getattr(config, entry.name)) for entry in fields(config)}


def config_yaml(config: RunConfig) -> str:
    """A configuration with every key, as yaml; `load_config_file` reads it back."""
    return yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True)


def settings(config: RunConfig) -> dict[str, Any]:
    """Every key with its plain value."""
    return dict(flatten(to_plain(config)))


def with_settings(config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """The configuration with some keys set to other values, plain or as words, and checked as a whole.

    Raises:
        ConfigError: As in `load_config`.
    """
    return _resolve(settings(config) | dict(changes), [])


def command_words(config: RunConfig) -> list[str]:
    """The words that `load_config` needs to give this configuration again: the keys that its preset sets otherwise."""
    # What a file says may be another thing tomorrow: every key that it sets is written out.
    preset = config.preset if config.preset in preset_names() else DEFAULT_PRESET
    usual = _settings_of_preset(preset) | {"preset": config.preset}
    changed = [f"{name}={format_value(value)}" for name, value in settings(config).items() if value != usual[name]]
    return [*([f"preset={preset}"] if preset != DEFAULT_PRESET else []), *changed]


@cache
def _settings_of_preset(name: str) -> dict[str, Any]:
    return settings(load_config([f"preset={name}"]))


def differences(before: RunConfig, now: RunConfig) -> list[str]:
    """The keys in which two configurations differ, with both values; empty when they describe the same attack.

    Keys that leave the numbers as they are (`WITHOUT_EFFECT`) do not count.
    """
    old, new = settings(before), settings(now)
    return [
        f"{name} ({format_value(old[name])} before, {format_value(new[name])} now)"
        for name in old
        if name not in WITHOUT_EFFECT and old[name] != new[name]
    ]


def _resolve(settings: Mapping[str, Any], problems: list[str]) -> RunConfig:
    tree = OmegaConf.structured(RunConfig)
    known = keys(RunConfig)
    _unlock(tree)
    strange = [name for name in settings if name not in known]
    # To look for what was meant takes its time.
    problems += [unknown(name, known) for name in strange[:_MOST_UNKNOWN]]
    if len(strange) > _MOST_UNKNOWN:
        problems.append(f"{len(strange) - _MOST_UNKNOWN:,} more keys are not known.")
    unread = set()
    for name, value in settings.items():
        if name in known and (problem := _assign(tree, known[name], value)):
            problems.append(problem)
            unread.add(name)
    refused = _refused(tree)
    if tree.client.local_epochs or "client.local_epochs" in unread:
        # In place of a client that was refused stands the default one, which does not train, and nobody gave that.
        refused = [problem for problem in refused if problem != UNTRAINED]
    problems += refused
    if problems:
        raise ConfigError(problems)
    return typing.cast(RunConfig, _objects(tree))


def _assign(tree: DictConfig, key: Key, value: Any) -> str | None:
    """Puts one value into the tree; what is wrong with it, if anything."""
    try:
        OmegaConf.update(tree, key.name, convert(key.kind, value))
    except (OmegaConfBaseException, ValueError):
        return of_wrong_type(key.name, key.kind, value)
    return None


def _refused(tree: DictConfig) -> list[str]:
    """What the checks of the run and of each component say against its values."""
    problems = []
    given: dict[str, Any] = {}
    for name in map(str, tree):
        if isinstance(tree[name], DictConfig):
            found = _problems_of(_objects, tree[name])
            problems += found
            if not found:
                given[name] = _objects(tree[name])
        else:
            given[name] = _plain(tree[name])
    return _problems_of(lambda given: RunConfig(**given), given) + problems


def _problems_of(make: Callable[[Any], object], given: Any) -> list[str]:
    try:
        make(given)
    except ConfigError as error:
        return list(error.problems)
    return []


def _objects(tree: DictConfig) -> Any:
    """The dataclass behind a tree, with tuples where it declares them."""
    return _with_tuples(OmegaConf.to_object(tree))


def _with_tuples(config: Any) -> Any:
    changed = {}
    for entry in fields(config):
        value = getattr(config, entry.name)
        if isinstance(value, list):
            changed[entry.name] = tuple(value)
        elif is_dataclass(value):
            changed[entry.name] = _with_tuples(value)
    return replace(config, **changed)


def _unlock(tree: DictConfig) -> None:
    """Lets values be assigned: OmegaConf takes frozen dataclasses for read-only."""
    OmegaConf.set_readonly(tree, False)
    for name in tree:
        if isinstance(tree[name], DictConfig):
            _unlock(tree[name])


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return to_plain(value)
    if isinstance(value, Enum):
        return value.value
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
