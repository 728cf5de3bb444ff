"""What error reporters such as Sentry and loguru show of an error."""

from __future__ import annotations

import traceback
from pathlib import Path


def shown_by_a_reporter(error: BaseException) -> str:
    """Return the local variables of all frames but the tests' own, also of its causes."""
    shown, left = "", [error]
    while left:
        error = left.pop()
        left += [each for each in (error.__cause__, error.__context__) if each is not None]
        frames = traceback.TracebackException.from_exception(error, capture_locals=True).stack
        for frame in frames:
            if Path(frame.filename).parent != Path(__file__).parent:
                shown += f"{frame.name}: {frame.locals}\n"
    return shown
