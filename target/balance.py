"""What a layer in front of a batch norm says of a penalty: an identity that every gradient fulfils, channel by channel.

With ``z = W x + b`` in front of ``y = gamma (z - mu) / s + beta`` the derivatives of any loss obey

    <dL/dW_c, W_c> + b_c dL/db_c = gamma_c dL/dgamma_c + (mu_c gamma_c / s_c) dL/dbeta_c

in evaluation mode; with the batch's own statistics, which take any scale of W away, the left side alone is zero. A
penalty on any of them stands in what is left.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..capture import BatchNormMode, CapturedUpdate, Penalty
from ..capture.forward import on_probes
from ..peeling import find_normalised
from ..peeling.chain import PROBE_IMAGES

# What a penalty may leave of the imbalance that it explains.
_EXPLAINED = 2e-2
# An imbalance below this share of its two sides is rounding.
_ROUNDING = 1e-5
_FEWEST_CHANNELS = 4


@dataclass(frozen=True)
class Balance:
    """One layer and the batch norm behind it. Float64, on the CPU."""

    weight: str
    """Name of the layer's weight."""
    small: tuple[str, ...]
    """Names of the parameters with one number per channel that take part: bias, gamma, beta."""
    left: Float[Tensor, " channel"]
    """The imbalance."""
    rounding: float
    """Norm of what rounding may leave of it."""
    squares: Float[Tensor, " channel"]
    """``||W_c||^2``, which an L2 penalty of 1 on the weight adds to the imbalance."""
    sizes: Float[Tensor, " channel"]
    """``||W_c||_1``, of an L1 penalty."""
    small_squares: Float[Tensor, " channel"]
    """What an L2 penalty of 1 on the others adds."""
    small_sizes: Float[Tensor, " channel"]
    """What an L1 penalty of 1 on the others adds."""

    @property
    def even(self) -> bool:
        """Whether there is no imbalance but rounding."""
        return float(self.left.norm()) <= self.rounding

    def penalty(self) -> Penalty | None:
        """The penalty on the weight that explains the imbalance; None where none does."""
        if self.even:
            return None
        found: list[tuple[float, Penalty]] = []
        for column, kind in ((self.squares, "l2"), (self.sizes, "l1")):
            for other in (None, self.small_squares if kind == "l2" else self.small_sizes):
                whole = column if other is None else column + other
                factor = float(whole @ self.left / whole.square().sum().clamp_min(1e-300))
                if factor > 0:
                    found.append(
                        (
                            float((self.left - factor * whole).norm()),
                            Penalty(factor, 0.0) if kind == "l2" else Penalty(0.0, factor),
                        )
                    )
        misfit, best = min(found, key=lambda one: one[0], default=(float("inf"), Penalty()))
        return best if misfit <= _EXPLAINED * float(self.left.norm()) else None

    def spared(self, penalty: Penalty) -> tuple[str, ...] | None:
        """Which of the parameters this penalty leaves alone; None where it explains nothing either way."""
        on_weight = penalty.l2 * self.squares + penalty.l1 * self.sizes
        on_small = penalty.l2 * self.small_squares + penalty.l1 * self.small_sizes
        ways: dict[tuple[str, ...], Tensor] = {
            (): on_weight + on_small,
            self.small: on_weight,
            (self.weight,): on_small,
            (self.weight, *self.small): torch.zeros_like(on_weight),
        }
        misfits = {names: float((self.left - way).norm()) for names, way in ways.items()}
        best = min(misfits, key=lambda names: misfits[names])
        return best if misfits[best] <= max(self.rounding, _EXPLAINED * float(on_weight.norm())) else None


def find_balances(update: CapturedUpdate, model: nn.Module) -> list[Balance]:
    """One for each layer whose output goes into a batch norm and nowhere else.

    Args:
        update: A gradient of this model.
        model: The server's model.
    """
    found = []
    shape = update.image_shape

    def run(count: int) -> list[tuple[str, str]]:
        return find_normalised(model, shape, update.batch_norm, count)

    for layer, norm in on_probes(run, shape, PROBE_IMAGES, update.image_count):
        balance = _balance(update, model, layer, norm)
        if balance is not None:
            found.append(balance)
    return found


def _balance(update: CapturedUpdate, model: nn.Module, layer: str, norm: str) -> Balance | None:
    parameters = dict(model.named_parameters())
    weight, g_weight = _pair(update, parameters, f"{layer}.weight")
    gamma, g_gamma = _pair(update, parameters, f"{norm}.weight")
    beta, g_beta = _pair(update, parameters, f"{norm}.bias")
    if weight is None or gamma is None or beta is None or len(weight) < _FEWEST_CHANNELS:
        return None
    one = (g_weight * weight).flatten(1).sum(dim=1)
    absolute = (g_weight * weight).flatten(1).norm(dim=1)
    squares, sizes = weight.flatten(1).square().sum(dim=1), weight.flatten(1).abs().sum(dim=1)
    bias, g_bias = _pair(update, parameters, f"{layer}.bias")
    small: tuple[str, ...] = ()
    small_squares, small_sizes = torch.zeros_like(one), torch.zeros_like(one)
    if bias is not None:
        one, absolute, small = one + bias * g_bias, absolute + (bias * g_bias).abs(), (f"{layer}.bias",)
        small_squares, small_sizes = bias.square(), bias.abs()
    module = model.get_submodule(norm)
    if update.batch_norm is BatchNormMode.EVAL:
        assert isinstance(module.running_mean, Tensor)
        assert isinstance(module.running_var, Tensor)
        mean, var = module.running_mean.detach().double().cpu(), module.running_var.detach().double().cpu()
        slope = mean * gamma / (var + float(module.eps)).sqrt()  # type: ignore[arg-type]
        other = gamma * g_gamma + slope * g_beta
        absolute = absolute + (gamma * g_gamma).abs() + (slope * g_beta).abs()
        one, small = one - other, (*small, f"{norm}.weight", f"{norm}.bias")
        small_squares = small_squares - gamma.square() - slope * beta
        small_sizes = small_sizes - gamma.abs() - slope * beta.sign()
    return Balance(
        f"{layer}.weight",
        small,
        one,
        _ROUNDING * float(absolute.norm()),
        squares,
        sizes,
        small_squares,
        small_sizes,
    )


def _pair(
    update: CapturedUpdate, parameters: dict[str, nn.Parameter], name: str
) -> tuple[Tensor, Tensor] | tuple[None, Tensor]:
    if name not in parameters or name not in update.gradients:
        return None, torch.empty(0)
    return parameters[name].detach().double().cpu(), update.gradients[name].double().cpu()
