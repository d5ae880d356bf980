"""What the Hydra commands share: an error that the user can correct ends in one paragraph and exit status 1."""

from __future__ import annotations

import errno
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
from safetensors import SafetensorError

import law.runs.configuration  # noqa: F401  no command composes without its schemas
from law.base.console import accept_any_text
from law.base.errors import LawError
from law.runs.explanations import explain

log = logging.getLogger(__name__)

OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
"""Errors that the user can correct: no room left, or no right to write."""


def run_command(main: Callable[[], object]) -> None:
    """Call a Hydra entry point. An error that the user can correct is printed without a traceback."""
    accept_any_text()
    # without this variable Hydra prints a part of the traceback and hides the cause
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    # Hydra refuses overrides on both sides of -m
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda argument: argument not in ("-m", "--multirun"))
    try:
        _refuse_deletions(sys.argv[1:])
        main()
    except LawError as error:
        sys.exit(f"error: {error}")
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(f"error: {explain(error)}")
    except (OSError, SafetensorError) as error:
        if not _of_the_disk(error):
            raise
        sys.exit(
            f"error: {error}. Expected room and the right to write there. Make room, or go to another folder, and give the "
            "command again: what has finished is not made again."
        )


def _of_the_disk(error: OSError | SafetensorError) -> bool:
    """Whether an error is one of :data:`OF_THE_DISK`, which safetensors names in words only."""
    if isinstance(error, OSError):
        return error.errno in OF_THE_DISK
    return any(f"(os error {number})" in str(error) for number in OF_THE_DISK)


def _refuse_deletions(arguments: Sequence[str]) -> None:
    """Refuse ``~key``, which removes a setting: no setting can be missing."""
    for argument in arguments:
        if argument.startswith("~") and not argument.startswith("~hydra"):
            key = argument[1:].partition("=")[0]
            raise LawError(
                f"The argument {argument!r} removes a setting; expected key=value, because no setting can be missing. "
                f"Leave the argument out to keep the default, or write {key}=... with a value (tracker=none and "
                "method=none are such values, and null where a setting is optional)."
            )


@contextmanager
def failures_told() -> Iterator[None]:
    """Log the error of a sweep's job when it fails. Hydra reports only the first one, at the end of the sweep."""
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
