"""What every command shares: one paragraph for an error the user can mend, and exit status 1."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from law.base.console import accept_any_text
from law.base.errors import LawError
from law.runs.configuration import explain


def run_command(main: Callable[[], object]) -> None:
    """Call a Hydra entry point; a mendable error is told without a traceback."""
    accept_any_text()
    # Hydra would print an abridged traceback and hide the cause; with this it lets the error through
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    try:
        main()
    except LawError as error:
        sys.exit(f"error: {error}")
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(f"error: {explain(error)}")
