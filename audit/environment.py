"""Where pages are made of templates: text is escaped, and what a stranger wrote of it is shown safely."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jinja2
from markupsafe import Markup

from ..foreign_text import LONGEST_TEXT, safe

_PICTURE = "data:"


def page_environment(**filters: Callable[..., Any]) -> jinja2.Environment:
    """For the templates of a page.

    Args:
        filters: By the names that the templates have for them.
    """
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined, finalize=_shown
    )
    environment.filters.update(filters)
    return environment


def _shown(value: Any) -> Any:
    """Texts as they may be shown; what the page itself made (markup, pictures) and numbers as they are."""
    if not isinstance(value, str) or isinstance(value, Markup) or value.startswith(_PICTURE):
        return value
    return safe(value, LONGEST_TEXT)
