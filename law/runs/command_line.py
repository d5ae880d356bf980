"""What every command shares: one paragraph for an error the user can mend, and exit status 1."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf.errors import OmegaConfBaseException

import law.runs.configuration  # noqa: F401  no command composes without its schemas
from law.base.console import accept_any_text
from law.base.errors import LawError
from law.runs.explanations import explain

log = logging.getLogger(__name__)


def run_command(main: Callable[[], object]) -> None:
    """Call a Hydra entry point; a mendable error is told without a traceback."""
    accept_any_text()
    # Hydra would print an abridged traceback and hide the cause; with this it lets the error through
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    # Hydra reads no override behind -m if there is one before it
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda argument: argument not in ("-m", "--multirun"))
    try:
        _refuse_deletions(sys.argv[1:])
        main()
    except LawError as error:
        sys.exit(f"error: {error}")
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(f"error: {explain(error)}")


def _refuse_deletions(arguments: Sequence[str]) -> None:
    """Refuse ``~key``: no setting can be left out."""
    for argument in arguments:
        if argument.startswith("~") and not argument.startswith("~hydra"):
            key = argument[1:].partition("=")[0]
            raise LawError(
                f"The argument {argument!r} takes a setting out of the configuration; expected key=value, since no "
                f"setting can be missing. Leave it out to keep the default, or write {key}=... with a value "
                "(tracker=none, method=none, and null where a setting may be unset)."
            )


@contextmanager
def failures_told() -> Iterator[None]:
    """Log a failed job of a sweep when it fails: Hydra tells the first failure alone, at the end of the sweep."""
    try:
        yield
    except Exception as error:
        hydra = HydraConfig.get()
        if hydra.mode is RunMode.MULTIRUN:
            log.error(
                "%s failed: %s",
                Path(hydra.runtime.output_dir).name,
                explain(error) if isinstance(error, HydraException | OmegaConfBaseException) else error,
                exc_info=not isinstance(error, LawError | HydraException | OmegaConfBaseException),
            )
        raise
