"""A console that outlives its reader."""

from __future__ import annotations

import contextlib
import os
import sys

from rich.console import Console


class LastingConsole(Console):
    """Goes on where nobody reads any more (``| head``): the attack is worth more than its lines."""

    def on_broken_pipe(self) -> None:
        """Called by rich; says once, on the other stream, that what follows is not shown."""
        self.quiet = True
        # What is still in the stream's buffer must not fail at the end of the process.
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.file.fileno())
            os.close(nowhere)
        if not self.stderr:
            with contextlib.suppress(OSError, ValueError):
                print("Nobody reads the output any more; the command goes on to its end.", file=sys.stderr)
