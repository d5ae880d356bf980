"""Threads and cores. A run whose threads share their cores with other programs takes several times as long."""

from __future__ import annotations

import logging
import os
import time

import torch

log = logging.getLogger(__name__)

CROWDED = 1.5
"""A warning appears when this program's threads and the other programs need more than this many times the cores."""


def warn_of_shared_cores() -> None:
    """Log a warning when other programs leave too few cores for the threads that PyTorch uses.

    The load average of the last minute counts this program as well, which may have finished another run just before.
    It has kept no more cores busy than it has threads, and no more than a sixtieth of its CPU seconds.
    """
    cores, threads = os.cpu_count() or 1, torch.get_num_threads()
    try:
        load, _, _ = os.getloadavg()
    except (AttributeError, OSError):  # not every system tells
        return
    others = max(0.0, load - min(threads, time.process_time() / 60))
    if threads > 1 and threads + others > CROWDED * cores:
        log.warning(
            "PyTorch uses %d threads, and other programs keep about %.1f of the %d cores busy; expected a core for each "
            "thread. Threads that share a core make a run several times slower. Set OMP_NUM_THREADS=1 in front of each of "
            "the commands that run at the same time",
            *(threads, others, cores),
        )
