"""Settings of the audit."""

from __future__ import annotations

from dataclasses import dataclass

from ..refusal import Checked

CONTROLS = ("constant_image", "no_gradient", "other_images", "one_agent")
EMBEDDINGS = ("pixels", "model", "lpips")


@dataclass(frozen=True)
class AuditConfig(Checked):
    """What the reconstruction is compared with."""

    controls: tuple[str, ...] = ("constant_image",)
    """constant_image (a flat image of the mean colour), no_gradient (the priors alone), other_images (the gradient of
    images of the pool) and one_agent (with the steps of all)."""
    pool: str | None = None
    """Other images, at least as many as the batch: a folder or "photos"; other_images and IIP draw on them."""
    embedding: str = "pixels"
    """Features of IIP: "pixels" (8 x 8 places), "model" (the audited one's) or "lpips" (the backbone's)."""
    lpips_weights: str | None = None
    """File with the ImageNet weights of the LPIPS backbone; without it LPIPS is left out, and the report says so."""

    redact: bool = False
    """Write report-redacted.html too: the page without pictures and names of files, to be shown to others."""

    def problems(self) -> list[str]:
        """Every value that cannot be carried out, one sentence each."""
        found = []
        unknown = [name for name in self.controls if name not in CONTROLS]
        if unknown:
            found.append(f"audit.controls={','.join(unknown)}: choose among {', '.join(CONTROLS)}.")
        if "other_images" in self.controls and self.pool is None:
            found.append("audit.controls=other_images needs other images: give audit.pool=FOLDER or photos.")
        if self.embedding not in EMBEDDINGS:
            found.append(f"audit.embedding={self.embedding}: choose among {', '.join(EMBEDDINGS)}.")
        if self.embedding == "lpips" and self.lpips_weights is None:
            found.append("audit.embedding=lpips needs its backbone: give audit.lpips_weights=FILE.")
        return found
