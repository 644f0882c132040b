"""The command line. Standard output carries results (paths or JSON); everything else goes to standard error.

Exit codes: 0 done; 2 the command or the request is not good, with the reason on standard error; 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import sys
import warnings

from hwaga.errors import HwagaError


def main() -> None:
    """Runs ``hwaga``."""
    # Pillow warns of oddities in pictures that are either harmless or an error a moment later.
    warnings.filterwarnings("ignore", module="PIL")
    try:
        from hwaga.cli.app import app
        from hwaga.memory.trim import prepare_process

        prepare_process()

        app()
    except HwagaError as error:
        from hwaga.cli.console import say_error

        say_error(str(error))
        sys.exit(2)
    except KeyboardInterrupt:  # before the command began; typer sees to the rest
        sys.exit(130)
