"""A long run over TLS: memory, threads and file descriptors of every process stay where they are."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

MEGABYTE = 1 << 20


def sizes_of(process: int) -> tuple[int, int, int] | None:
    """Resident bytes, threads and open files of a process; None if it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
        said = {name: value for name, _, value in (line.partition(":") for line in lines)}
        files = len(os.listdir(f"/proc/{process}/fd"))
        return int(said["VmRSS"].split()[0]) * 1024, int(said["Threads"]), files
    except (OSError, KeyError):
        return None


@pytest.mark.slow
def test_two_hundred_rounds_with_eight_members_stay_flat(parties: Callable[..., Any]) -> None:
    rounds = 200
    run = parties(
        "secure-aggregation", count=8, settings={"rounds": str(rounds), "session_rounds": "25"}
    )
    run.start_all()
    seen: dict[Any, list[tuple[int, int, int]]] = {role: [] for role in run.roles}

    def look() -> None:
        for role, process in run.running.items():
            found = sizes_of(process.pid)
            if found is not None and run.checkpoint.exists():
                seen[role].append(found)

    result = run.wait(280.0, look)
    assert "error" not in result, result
    for role, samples in seen.items():
        assert len(samples) > 40, role
        fifth = len(samples) // 5
        early, late = samples[fifth : 2 * fifth], samples[-fifth:]
        memory, threads, files = (
            [statistics.median(one[part] for one in some) for some in (early, late)]
            for part in range(3)
        )
        # Medians: when all is trained, the coordinator takes more for a moment, to measure the model.
        assert memory[1] <= memory[0] + 2 * MEGABYTE, (role, memory)
        assert threads[1] <= threads[0] and files[1] <= files[0], (role, threads, files)
        print(f"{role}: {(memory[1] - memory[0]) / 1024:.0f} kB more, {threads}, {files}")
