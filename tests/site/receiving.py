"""A receiver in this process, for the time of a test."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.site.peers import free_port
from trrg_sdk.site.config import LimitsConfig, ReceiveConfig
from trrg_sdk.site.receive import Receiver


@contextmanager
def receiving(spool: Path, limits: dict[str, Any] | None = None, **options: Any) -> Iterator[Receiver]:
    config = ReceiveConfig(
        **{"spool": spool, "port": free_port(), "study_timeout_s": 0.5, "stop_timeout_s": 5.0} | options
    )
    receiver = Receiver(config, LimitsConfig(**{"free_mib": 0} | (limits or {})))
    receiver.start()
    stop = threading.Event()
    thread = threading.Thread(target=receiver.run, args=(stop,))
    thread.start()
    try:
        yield receiver
    finally:
        stop.set()
        thread.join(timeout=30)
        assert not thread.is_alive()
