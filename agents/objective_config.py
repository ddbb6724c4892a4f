"""What a candidate batch is scored by: the settings of the objective, and the table of its priors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import Enum, StrEnum, auto

from jaxtyping import Float
from torch import Tensor

from ..plugins import PluginKind, is_plugin
from ..priors.batch_norm import batch_norm_distance, relative_batch_norm_distance
from ..priors.group import group_distance, relative_group_distance
from ..priors.l2 import l2_norm, mean_square
from ..priors.total_variation import anisotropic_total_variation, colour_total_variation, total_variation
from ..refusal import Checked

Equation = Callable[..., Float[Tensor, ""]]
"""Of what the prior looks at, and of what that is held against where there is such a thing."""


class GradientLoss(StrEnum):
    """How the distance between two gradients is measured; see ``gradient_losses.py`` for the equations."""

    LAYER_L2 = "layer_l2"
    RELATIVE_L2 = "relative_l2"
    SQUARED_L2 = "squared_l2"
    COSINE = "cosine"


class Form(StrEnum):
    """``paper``: every prior literally as in Yin et al. 2021. ``scale_free``: means and ratios, which carry over."""

    PAPER = "paper"
    SCALE_FREE = "scale_free"


class TotalVariation(StrEnum):
    """``colour``: isotropic, coupled over channels. ``anisotropic``: the sum of absolute differences."""

    COLOUR = "colour"
    ANISOTROPIC = "anisotropic"


class HeldAgainst(Enum):
    """What a prior compares a batch with; without it, as before the first consensus, the term is left out."""

    NOTHING = auto()
    """The equation is one of the images alone."""
    STATISTICS = auto()
    """The equation is one of the statistics at the layers of batch norm, and of those that are known."""
    CONSENSUS = auto()
    """The equation is one of the images and of the consensus of all seeds."""


@dataclass(frozen=True)
class Prior:
    """One term of the objective that does not look at the gradient."""

    equation: Callable[[ObjectiveConfig], Equation]
    """In the configured form."""
    target: HeldAgainst = HeldAgainst.NOTHING
    fades: bool = False
    """Whether its weight falls where the images are determined without it; see ``total_variation_end``."""


@dataclass(frozen=True)
class OwnPrior:
    """One term that is code of the user's own."""

    name: str
    """``module:callable``, or the name of an entry point."""
    weight: float


@dataclass(frozen=True)
class ObjectiveConfig(Checked):
    """What a candidate batch is scored by. Weights are non-negative; 0 switches a term off."""

    form: Form = Form.SCALE_FREE
    """scale_free or paper: how the priors are normalised."""
    gradient_loss: GradientLoss = GradientLoss.RELATIVE_L2
    """relative_l2, layer_l2, squared_l2 or cosine."""
    gradient_weight: float = 1.0
    """Weight of the gradient loss; 0 gives the no-gradient control."""
    activation_weight: float = 0.3
    """Weight of the distance to the activations that layer peeling recovered (none without peeling)."""
    jump_weight: float = 0.1
    """Weight, behind peeled layers, of gradients that jump where a ReLU opens or shuts; that of the others is 1."""
    total_variation: TotalVariation = TotalVariation.COLOUR
    """colour or anisotropic."""
    total_variation_weight: float = 0.2
    """Weight of total variation."""
    total_variation_end: float = 0.05
    """What is left of it at the end of a descent whose images peeled layers determine; it falls from half-way."""
    l2_weight: float = 0.0
    """Weight of the squared magnitude of the normalised pixels."""
    batch_norm_weight: float = 0.01
    """Weight of the batch-norm statistics; skipped, with a message, where the running statistics were never updated."""
    group_weight: float = 0.01
    """Weight of the distance to the consensus of all seeds."""
    priors: tuple[str, ...] = ()
    """Priors of your own, each with its weight, as in my_priors:edges:0.1."""
    adaptive: bool = True
    """Allow for the defence that the update shows or the client states; without one nothing changes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, kind in self._kinds().items():
            # A plain word means the same as the member of that value.
            object.__setattr__(self, name, kind(getattr(self, name)))

    def problems(self) -> list[str]:
        """Every value that cannot be carried out, one sentence each."""
        found = [
            f"objective.{name}={getattr(self, name)}: give one of {', '.join(kind)}."
            for name, kind in self._kinds().items()
            if getattr(self, name) not in list(kind)
        ]
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(field.default, float) and not 0 <= value < float("inf"):
                found.append(f"objective.{field.name}={value}: give a finite number that is not negative.")
        return found + self._own_problems()

    def _own_problems(self) -> list[str]:
        found, names = [], []
        for word in self.priors:
            prior = _own_prior(word)
            if prior is None or not 0 <= prior.weight < float("inf"):
                found.append(
                    f"objective.priors={word}: give module:callable:WEIGHT with a finite weight that is not negative, "
                    "such as my_priors:edges:0.1."
                )
            elif not is_plugin(PluginKind.PRIOR, prior.name):
                found.append(
                    f"objective.priors={word}: no prior is installed as {prior.name}; give module:callable:WEIGHT."
                )
            elif prior.name in names:
                found.append(f"objective.priors names {prior.name} twice: give it once, with one weight.")
            else:
                names.append(prior.name)
        return found

    @property
    def own_priors(self) -> tuple[OwnPrior, ...]:
        """Those of the user's own that count for something."""
        return tuple(prior for prior in map(_own_prior, self.priors) if prior is not None and prior.weight > 0)

    @staticmethod
    def _kinds() -> dict[str, type[StrEnum]]:
        return {"form": Form, "gradient_loss": GradientLoss, "total_variation": TotalVariation}

    def weight(self, term: str) -> float:
        """Of a term of the objective, by its name."""
        value: float = getattr(self, f"{term}_weight")
        return value

    @property
    def allows_for_defences(self) -> bool:
        """Whether the match takes account of a defence: with a gradient to match, unless that is switched off."""
        return self.adaptive and self.gradient_weight > 0

    @property
    def empty(self) -> bool:
        """Whether no weight is left by which a single seed is scored."""
        alone = (name for name, prior in PRIORS.items() if prior.target is not HeldAgainst.CONSENSUS)
        own = self.own_priors
        return self.gradient_weight == 0 and not own and all(self.weight(name) == 0 for name in alone)


def _own_prior(word: str) -> OwnPrior | None:
    """What a word of ``objective.priors`` says; None where that is no name with a number."""
    name, _, number = word.rpartition(":")
    try:
        return OwnPrior(name, float(number)) if name else None
    except ValueError:
        return None


def _in_form(paper: Equation, scale_free: Equation) -> Callable[[ObjectiveConfig], Equation]:
    return lambda config: paper if config.form is Form.PAPER else scale_free


def _total_variation(config: ObjectiveConfig) -> Equation:
    if config.total_variation is TotalVariation.COLOUR:
        return colour_total_variation
    return _in_form(total_variation, anisotropic_total_variation)(config)


PRIORS: dict[str, Prior] = {
    "total_variation": Prior(_total_variation, fades=True),
    "l2": Prior(_in_form(l2_norm, mean_square)),
    "batch_norm": Prior(_in_form(batch_norm_distance, relative_batch_norm_distance), HeldAgainst.STATISTICS),
    "group": Prior(_in_form(group_distance, relative_group_distance), HeldAgainst.CONSENSUS),
}
"""All priors by the name of their term, in the order in which they are added up. The weight of each is the setting
``<name>_weight`` above: a new prior is one equation in ``priors/``, its weight and its line here."""
