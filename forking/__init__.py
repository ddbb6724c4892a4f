"""Processes that begin with the libraries of an attack loaded: forked from one that has loaded them."""

from .start import fork_server, handing_over

__all__ = ["fork_server", "handing_over"]
