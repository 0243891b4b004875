"""The processors that this process may use, how many threads that makes, and what they can compute."""

from __future__ import annotations

import functools
import math
import os
from pathlib import Path
from typing import NamedTuple

_TOPOLOGY = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
_CPUINFO = Path("/proc/cpuinfo")
_CONTAINER = Path("/sys/fs/cgroup/cpu.max")

BF16 = frozenset({"avx512_bf16", "amx_bf16"})
"""Instructions of which one is needed to compute in bf16: without them libraries imitate it, many times slower."""
VNNI = frozenset({"avx512_vnni", "avx_vnni"})
"""Those without which sums of products of eight bits saturate; a processor with bf16 has one of them."""


class Processors(NamedTuple):
    """What this process may use.

    Attributes:
        logical: Processors of the machine, hyper-threads counted.
        allowed: Those in the affinity mask; None where the system has none.
        cores: Physical cores of the allowed ones; None where the system does not say.
        limit: Processors' time that the control group allows; None without a limit.
    """

    logical: int
    allowed: int | None
    cores: int | None
    limit: float | None

    @property
    def threads(self) -> int:
        """How many threads a graph gets: the physical cores that this process may use, within the limit rounded up."""
        found = self.cores or self.allowed or self.logical
        return max(1, found if self.limit is None else min(found, math.ceil(self.limit)))


def processors() -> Processors:
    """Look at the processors of this process, now: affinity can be changed from outside."""
    logical = os.cpu_count() or 1
    try:
        allowed = os.sched_getaffinity(0)
    except AttributeError:  # not Linux
        return Processors(logical, None, None, None)
    try:
        cores = len({Path(_TOPOLOGY.format(cpu)).read_text() for cpu in allowed})
    except OSError:
        return Processors(logical, len(allowed), None, _limit())
    return Processors(logical, len(allowed), cores, _limit())


@functools.cache
def physical_cores() -> int:
    """Return :attr:`Processors.threads` as it was when it was first asked for."""
    return processors().threads


@functools.cache
def instructions() -> frozenset[str]:
    """Name what the processor can compute as Linux does: ``avx2``, ``avx512_vnni``, ``avx512_bf16``, ``amx_int8``.

    Returns:
        Empty where the system does not say.
    """
    try:
        lines = _CPUINFO.read_text().splitlines()
    except OSError:  # not Linux
        return frozenset()
    return frozenset(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), ()))


def _limit() -> float | None:
    """Return the processor limit of the control group (version 2)."""
    try:
        quota, period = _CONTAINER.read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None
