"""Trackers such as TensorBoard, by transformers' own integrations."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

from ia2.errors import IA2Error

TRACKERS = tuple(INTEGRATION_TO_CALLBACK)


def check_installed(trackers: Iterable[str]) -> None:
    """Raises IA2Error where one of them is not installed."""
    if missing := [name for name in trackers if name not in get_available_reporting_integrations()]:
        raise IA2Error(f"{', '.join(missing)}: not installed; pip install it, or leave it out of report_to")


@contextmanager
def tensorboard_in(folder: Path) -> Iterator[None]:
    """Within the block, its files are written there, unless `TENSORBOARD_LOGGING_DIR` names another folder."""
    name = "TENSORBOARD_LOGGING_DIR"
    given = os.environ.get(name)
    os.environ[name] = given or str(folder)
    try:
        yield
    finally:
        if not given:
            del os.environ[name]
