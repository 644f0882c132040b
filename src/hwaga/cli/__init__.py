"""The command line. Standard output carries results (paths or JSON); everything else goes to standard error.

Exit codes: 0 done; 2 the command or the request is not good, with the reason on standard error; 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import sys

from hwaga.errors import HwagaError


def main() -> None:
    """Runs ``hwaga``."""
    from hwaga.cli.app import app
    from hwaga.cli.console import say_error

    try:
        app()
    except HwagaError as error:
        say_error(str(error))
        sys.exit(2)
