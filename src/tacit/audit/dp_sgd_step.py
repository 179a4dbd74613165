"""Steps of differentially private SGD, timed inside a whole training, each beside a plain step: for `tacit bench dp-sgd`.

``python -m tacit.audit.dp_sgd_step CASE BATCH MODE`` takes a few steps of one mode (plain, float or discrete) and prints the
largest memory that its process had.
"""

from __future__ import annotations

import json
import sys
import time
import warnings

import torch
from torch import Tensor, nn

from tacit.core.coins import Coins
from tacit.core.memory import keep_freed_memory
from tacit.dp.noise import GaussianKind
from tacit.parties.links.forked import peak_memory
from tacit.training.dp_sgd import DPSGD

WORDS, TOKENS, CLASSES = 1000, 128, 10
LOTS = 50
"""Records are so many expected lots, or one for each step that is taken, if these are fewer."""


class Block(nn.Module):
    """Attention and a hidden layer, each after a normalisation, added to what came in.

    Args:
        width: of a token.
        heads: of the attention.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.inside, self.outside = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(n, tokens, width) in and out."""
        n, length, width = x.shape
        parts = self.inside(self.first(x)).reshape(n, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        x = x + self.outside(mixed.transpose(1, 2).reshape(n, length, width))
        out: Tensor = x + self.down(torch.relu(self.up(self.second(x))))
        return out


class Encoder(nn.Module):
    """Tokens to scores: 4 blocks of width 256."""

    def __init__(self, width: int = 256, layers: int = 4, heads: int = 4) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.scores = nn.Linear(width, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        """(n, tokens) to (n, classes)."""
        out: Tensor = self.scores(self.blocks(self.words(tokens)).mean(1))
        return out


def network(case: str) -> nn.Module:
    """The benchmark's networks, the same as its peers', with torch's own first weights."""
    if case == "mlp":
        return nn.Sequential(nn.Linear(60, 1000), nn.ReLU(), nn.Linear(1000, CLASSES))
    if case == "cnn":
        return nn.Sequential(
            nn.Conv2d(1, 16, 8, 2, 3), nn.ReLU(), nn.MaxPool2d(2, 1),
            nn.Conv2d(16, 32, 4, 2), nn.ReLU(), nn.MaxPool2d(2, 1),
            nn.Flatten(), nn.Linear(512, 32), nn.ReLU(), nn.Linear(32, CLASSES),
        )  # fmt: skip
    return Encoder()


def records(case: str, count: int) -> tuple[Tensor, Tensor]:
    """Inputs and labels that mean nothing."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    if case == "encoder":
        return torch.randint(0, WORDS, (count, TOKENS), generator=generator), labels
    shape = (60,) if case == "mlp" else (1, 28, 28)
    return torch.rand(count, *shape, generator=generator), labels


class Plain:
    """Plain SGD on batches of the same records.

    Args:
        inputs: all of them.
        labels: of each.
        batch: records a step.
        model: another one than the private training's.
    """

    def __init__(self, inputs: Tensor, labels: Tensor, batch: int, model: nn.Module) -> None:
        self.inputs, self.labels, self.batch, self.model = inputs, labels, batch, model
        self._optimiser = torch.optim.SGD(model.parameters(), lr=0.05)
        self._generator = torch.Generator().manual_seed(1)

    def step(self) -> float:
        """One step; CPU seconds."""
        begun = time.process_time()
        rows = torch.randint(0, len(self.inputs), (self.batch,), generator=self._generator)
        self._optimiser.zero_grad()
        loss = nn.functional.cross_entropy(self.model(self.inputs[rows]), self.labels[rows])
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimiser.step()
        return time.process_time() - begun


def steps(case: str, batch: int, kind: GaussianKind, count: int) -> tuple[list[float], list[float]]:
    """CPU seconds of private and of plain steps, in turns, inside one training.

    A private step is all that `DPSGD.fit` does for it: the lot is drawn and booked, the model is watched.

    Args:
        case: mlp, cnn or encoder.
        batch: the expected lot.
        kind: of the noise.
        count: how many steps of each.
    """
    keep_freed_memory()
    lots = min(LOTS, count)
    inputs, labels = records(case, lots * batch)
    plain = Plain(inputs, labels, batch, network(case))
    private: list[float] = []
    beside: list[float] = []
    mark = 0.0

    def taken(done: int, total: int) -> None:
        nonlocal mark
        del done, total
        private.append(time.process_time() - mark)
        beside.append(plain.step())
        mark = time.process_time()

    scheme = DPSGD(
        epochs=-(-count // lots), lot_size=batch, clip=4.0, noise_multiplier=4.0, learning_rate=0.05, noise=kind
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # these records are nobody's
        mark = time.process_time()
        scheme.fit(network(case), inputs, labels, coins=Coins(), progress=taken)
    return private[1:], beside[1:]  # the first has the checks before it


def peak(case: str, batch: int, mode: str, count: int = 20) -> int:
    """The largest memory of this process after some steps of a mode, bytes."""
    if mode == "plain":
        plain = Plain(*records(case, count * batch), batch, network(case))
        for _ in range(count):
            plain.step()
    else:
        scheme = DPSGD(
            epochs=1, lot_size=batch, clip=4.0, noise_multiplier=4.0, noise=GaussianKind(mode)
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scheme.fit(network(case), *records(case, count * batch), coins=Coins())
    return peak_memory()


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps({"peak_bytes": peak(sys.argv[1], int(sys.argv[2]), sys.argv[3])}))
