"""Settings of the audit."""

from __future__ import annotations

from dataclasses import dataclass

CONTROLS = ("constant_image", "no_gradient")


@dataclass(frozen=True)
class AuditConfig:
    """What the reconstruction is compared with."""

    controls: tuple[str, ...] = ("constant_image",)
    """constant_image (a flat image of the mean colour) and no_gradient (the same attack with the gradient left out)."""
    lpips_weights: str | None = None
    """File with the ImageNet weights of the LPIPS backbone; without it LPIPS is left out, and the report says so."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.controls if name not in CONTROLS]
        if unknown:
            raise ValueError(f"audit.controls={','.join(unknown)}: choose among {', '.join(CONTROLS)}.")
