"""What a user may set about registration, and the values it may take."""

from __future__ import annotations

from dataclasses import dataclass

from ..plugins import PluginKind, is_plugin
from ..refusal import Checked, Refusal

METHODS = ("coarse_to_fine", "coarse", "none")
CONSENSUS = ("auto", "wiener", "huber", "mean")


class RegistrationError(Refusal, ValueError):
    """Candidates that registration cannot use; the message says what to do."""


@dataclass(frozen=True)
class RegistrationConfig(Checked):
    """Settings of `register`; the defaults are those measured by ``benchmarks/registration.py``."""

    method: str = "coarse_to_fine"
    """`coarse_to_fine` (homography, then a dense flow), `coarse` (homography alone), `none` (the plain mean), or a way
    of your own to find the warps (module:callable)."""
    rounds: int = 3
    """How often candidates are registered to the re-averaged target; the dense flow runs in the last one."""
    consensus: str = "auto"
    """How aligned candidates are averaged: `wiener` (the robust mean less what the seeds do not share), `huber` (that
    per-pixel robust mean itself), `mean`, or `auto` (`huber` for an image on which the seeds agree, else `wiener`)."""
    max_displacement: float = 0.15
    """Largest displacement believed, as a share of the shorter side; a warp beyond it is refused."""
    margin: float = 0.005
    """Least rise of the correlation with the other candidates for a warp (and for a registered mean) to be used."""
    coarse_size: int = 112
    """Images are matched at this many pixels on the shorter side or fewer; the warp itself is full size."""
    fine_min_size: int = 32
    """The dense flow is skipped when the shorter side has fewer pixels than this."""
    fine_min_displacement: float = 0.004
    """The dense flow is skipped for an image whose coarse displacement stays under this share of the shorter side."""

    @property
    def own_method(self) -> str | None:
        """The name of a way of the user's own; None where the method is known."""
        return None if self.method in METHODS else self.method

    def problems(self) -> list[str]:
        """Every value that cannot be carried out, one sentence each."""
        return [
            *_method(self),
            *_choice("consensus", self.consensus, CONSENSUS),
            *_range("rounds", self.rounds, 1, 20),
            *_range("max_displacement", self.max_displacement, 0.0, 0.5),
            *_range("margin", self.margin, 0.0, 1.0),
            *_range("coarse_size", self.coarse_size, 8, 1024),
            *_range("fine_min_size", self.fine_min_size, 8, 1 << 20),
            *_range("fine_min_displacement", self.fine_min_displacement, 0.0, 1.0),
        ]


def _method(config: RegistrationConfig) -> list[str]:
    if config.own_method is None or is_plugin(PluginKind.REGISTRATION, config.own_method):
        return []
    return [f"registration.method={config.method}: choose one of {', '.join(METHODS)}, or give module:callable."]


def _choice(name: str, value: str, allowed: tuple[str, ...]) -> list[str]:
    return [] if value in allowed else [f"registration.{name}={value}: choose one of {', '.join(allowed)}."]


def _range(name: str, value: int | float, low: int | float, high: int | float) -> list[str]:
    return [] if low <= value <= high else [f"registration.{name}={value}: give a number from {low} to {high}."]
