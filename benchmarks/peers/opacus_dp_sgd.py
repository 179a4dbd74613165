"""Steps of differentially private SGD by Opacus, ghost clipping, for `tacit bench dp-sgd`.

Reads requests from stdin, one JSON object a line, and answers each with one line on stdout:

    {"case": "mlp", "batch": 600, "steps": 20}

    {"cpu_seconds": {"plain": [...], "ghost": [...]}}    of each step, the kinds in turns

The first line says who answers. With `--memory CASE BATCH MODE` it takes a few steps of one mode and prints
{"peak_bytes": ...}. One thread; noise is drawn by torch's generator, as Opacus does by default.
"""

from __future__ import annotations

import json
import resource
import sys
import time
import warnings
from pathlib import Path

import opacus
import torch
from opacus import PrivacyEngine
from torch import nn

torch.set_num_threads(1)
warnings.simplefilter("ignore")


class Block(nn.Module):
    """Attention and a hidden layer, each after a normalisation, added to what came in."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.inside, self.outside = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, tokens, width) in and out."""
        n, length, width = x.shape
        parts = self.inside(self.first(x)).reshape(n, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        x = x + self.outside(mixed.transpose(1, 2).reshape(n, length, width))
        return x + self.down(torch.relu(self.up(self.second(x))))


class Encoder(nn.Module):
    """Tokens to scores."""

    def __init__(
        self, words: int = 1000, width: int = 256, layers: int = 4, heads: int = 4
    ) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.scores = nn.Linear(width, 10)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(n, tokens) to (n, classes)."""
        return self.scores(self.blocks(self.words(tokens)).mean(1))


def network(case: str) -> nn.Module:
    """The benchmark's networks, with torch's own first weights."""
    if case == "mlp":
        return nn.Sequential(nn.Linear(60, 1000), nn.ReLU(), nn.Linear(1000, 10))
    if case == "cnn":
        return nn.Sequential(
            nn.Conv2d(1, 16, 8, 2, 3), nn.ReLU(), nn.MaxPool2d(2, 1),
            nn.Conv2d(16, 32, 4, 2), nn.ReLU(), nn.MaxPool2d(2, 1),
            nn.Flatten(), nn.Linear(512, 32), nn.ReLU(), nn.Linear(32, 10),
        )  # fmt: skip
    return Encoder()


def batch_of(case: str, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and labels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 10, (count,), generator=generator)
    if case == "encoder":
        return torch.randint(0, 1000, (count, 128), generator=generator), labels
    shape = (60,) if case == "mlp" else (1, 28, 28)
    return torch.rand(count, *shape, generator=generator), labels


class Stepper:
    """Takes steps of one kind."""

    def __init__(self, case: str, count: int, mode: str) -> None:
        self.inputs, self.labels = batch_of(case, count)
        self.model = network(case)
        self.optimiser = torch.optim.SGD(self.model.parameters(), lr=0.05)
        self.criterion = nn.CrossEntropyLoss()
        if mode == "ghost":
            loader = torch.utils.data.DataLoader(
                torch.utils.data.TensorDataset(self.inputs, self.labels), batch_size=count
            )
            self.model, self.optimiser, self.criterion, _ = PrivacyEngine().make_private(
                module=self.model, optimizer=self.optimiser, data_loader=loader, criterion=self.criterion,
                noise_multiplier=4.0, max_grad_norm=4.0, grad_sample_mode="ghost", poisson_sampling=False,
            )  # fmt: skip

    def step(self) -> float:
        """One step; CPU seconds."""
        begun = time.process_time()
        self.optimiser.zero_grad()
        loss = self.criterion(self.model(self.inputs), self.labels)
        loss.backward()
        self.optimiser.step()
        return time.process_time() - begun


def peak_memory() -> int:
    """The most memory that this process held at once, bytes; getrusage's begins with that of who started it."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    """Answer requests."""
    if sys.argv[1:2] == ["--memory"]:
        case, count, mode = sys.argv[2], int(sys.argv[3]), sys.argv[4]
        stepper = Stepper(case, count, mode)
        for _ in range(5):
            stepper.step()
        print(json.dumps({"peak_bytes": peak_memory()}))
        return
    print(json.dumps({"peer": f"opacus {opacus.__version__}", "protocol": "ghost"}), flush=True)
    known: dict[tuple[str, int], dict[str, Stepper]] = {}
    for line in sys.stdin:
        asked = json.loads(line)
        key = asked["case"], asked["batch"]
        if key not in known:
            known[key] = {mode: Stepper(*key, mode) for mode in ("plain", "ghost")}
            for stepper in known[key].values():
                for _ in range(3):
                    stepper.step()
        taken: dict[str, list[float]] = {mode: [] for mode in known[key]}
        for _ in range(asked["steps"]):
            for mode, stepper in known[key].items():
                taken[mode].append(stepper.step())
        print(json.dumps({"cpu_seconds": taken}), flush=True)


if __name__ == "__main__":
    main()
