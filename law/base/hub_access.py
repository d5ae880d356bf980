"""Whether the Hugging Face hub can be reached, found out quickly: its own clients take a minute."""

from __future__ import annotations

import urllib.error
import urllib.request

import datasets
from huggingface_hub import constants

PATIENCE_S = 3.0


def hub_reachable() -> bool:
    """Whether the hub answers within ``PATIENCE_S``; offline mode (``HF_HUB_OFFLINE=1``) says no at once."""
    if constants.HF_HUB_OFFLINE or datasets.config.HF_DATASETS_OFFLINE:
        return False
    try:
        urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=PATIENCE_S)
    except urllib.error.HTTPError:
        return True  # a refusal is an answer
    except OSError:
        return False
    return True
