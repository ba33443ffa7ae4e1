"""What a timing in turns must do between two turns."""

from __future__ import annotations

import time

# An engine's threads spin for some milliseconds after a run before they sleep. Whoever runs in that time shares its
# cores with them, and the kernel takes tens of milliseconds to part them: on two cores ONNX Runtime then takes up to
# 1.8 times as long. 10 ms are too few, 30 ms do.
PAUSE_S = 0.03


def let_threads_sleep() -> None:
    """Wait until the threads of whatever ran before sleep."""
    time.sleep(PAUSE_S)
