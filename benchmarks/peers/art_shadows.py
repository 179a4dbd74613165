"""Shadow models trained by the Adversarial Robustness Toolbox (ART), for `tacit bench shadows`.

One `PyTorchClassifier.fit` after another, as its `ShadowModels` does it. Reads requests from stdin, one JSON object a line,
and answers each with one line on stdout:

    {"models": 16, "records": 1000, "batch": 100, "epochs": 2}

    {"cpu_s": 0.7}    of all fits together

The first line says who answers. One thread; torch's default Adam, as in the toolbox's examples.
"""

from __future__ import annotations

import json
import sys
import time
import warnings

warnings.simplefilter("ignore")

import art  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from art.estimators.classification import PyTorchClassifier  # noqa: E402
from torch import nn  # noqa: E402

torch.set_num_threads(1)


def network() -> nn.Module:
    """As in the benchmark, with torch's own first weights."""
    return nn.Sequential(nn.Linear(600, 128), nn.Tanh(), nn.Linear(128, 100))


def pool(records: int) -> tuple[np.ndarray, np.ndarray]:
    """Binary records and their labels."""
    draw = np.random.default_rng(0)
    inputs = (draw.random((records, 600)) < 0.3).astype(np.float32)
    return inputs, draw.integers(0, 100, records)


def fitted(models: int, records: int, batch: int, epochs: int) -> float:
    """CPU seconds."""
    inputs, labels = pool(2 * records)
    draw = np.random.default_rng(1)
    begun = time.process_time()
    for _ in range(models):
        mine = draw.permutation(2 * records)[:records]
        module = network()
        PyTorchClassifier(
            model=module, loss=nn.CrossEntropyLoss(), optimizer=torch.optim.Adam(module.parameters(), lr=0.001),
            input_shape=(600,), nb_classes=100,
        ).fit(inputs[mine], labels[mine], batch_size=batch, nb_epochs=epochs)  # fmt: skip
    return time.process_time() - begun


def main() -> None:
    """Answer requests."""
    print(json.dumps({"peer": f"art {art.__version__}", "protocol": "fit"}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        spent = fitted(asked["models"], asked["records"], asked["batch"], asked["epochs"])
        print(json.dumps({"cpu_s": spent}), flush=True)


if __name__ == "__main__":
    main()
