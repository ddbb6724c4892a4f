"""The numbers of a run for other programs: tables, and the curves as TensorBoard and Weights & Biases show them."""

from .formats import FORMATS, export, require_packages

__all__ = ["FORMATS", "export", "require_packages"]
