"""What every test shares: one thread, a small task, its data."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from tacit.nn.federated import Task
from tacit.nn.networks import mlp

torch.set_num_threads(1)


def until_others_rest(seconds: float = 5.0) -> None:
    """Wait until no other thread of this process is running, those that Python has joined too.

    One that ends may hold a lock of OpenSSL's, which a fork at that moment would hold for ever.
    """
    end = time.monotonic() + seconds
    while "R" in others() and time.monotonic() < end:
        time.sleep(0.005)


def others() -> list[str]:
    """The states of the other threads, one letter each."""
    states = []
    for thread in os.listdir("/proc/self/task"):
        if int(thread) != threading.get_native_id():
            with suppress(FileNotFoundError, ProcessLookupError):
                said = Path(f"/proc/self/task/{thread}/stat").read_text(encoding="utf-8")
                states.append(said.rpartition(") ")[2][0])
    return states


os.register_at_fork(before=until_others_rest)

# A shell that starts the suite in the background may have it ignore interrupts, which some tests are about.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Where these are set, pytest explains in full how two lists differ, and takes minutes over long ones of large numbers:
# the tests that expect a broken protocol's assertions to fail would time out.
for variable in ("CI", "BUILD_NUMBER"):
    os.environ.pop(variable, None)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder with the real data. Where they are required, their absence fails instead of skipping."""
    folder = os.environ.get("TACIT_DATA", "")
    if not folder:
        missing = pytest.fail if os.environ.get("TACIT_DATA_REQUIRED") == "1" else pytest.skip
        missing("TACIT_DATA is not set")
    return Path(folder)


@pytest.fixture
def task() -> Task:
    """Three owners with eight 4x4 images each, of four classes that a small network can tell apart."""
    return small_task()


def small_task(seed: int = 0, owners: int = 3, records: int = 8) -> Task:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand(4, 1, 4, 4, generator=generator)
    shards = []
    for _ in range(owners):
        labels = torch.randint(0, 4, (records,), generator=generator)
        noise = 0.2 * torch.rand(records, 1, 4, 4, generator=generator)
        shards.append(((centres[labels] * 0.8 + noise).clamp(0, 1), labels))
    return Task(
        name="small",
        start=mlp((1, 4, 4), (12,), 4, generator=generator),
        shards=tuple(shards),
        input_shape=(1, 4, 4),
        classes=4,
        seed=seed,
    )
