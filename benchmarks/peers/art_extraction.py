"""Model extraction by the Adversarial Robustness Toolbox (ART), for `tacit bench extraction`.

Reads requests from stdin, one JSON object a line, and answers each with one line on stdout. Arrays come as .npy files:

    {"folder": "/tmp/x", "seed": 0, "queries": 1000, "choice": "random", "hidden": [64], "epochs": 20, "batch": 32,
     "rate": 0.002}

    {"cpu_s": 1.5, "agreement": 0.95}

The folder holds the target's layers (weight0.npy, bias0.npy, ...), records.npy with labels.npy, of which some are asked
about, and tests.npy, on which copy and target are compared. The copy is trained on the labels that the target gives, as the
toolbox does by default. The first line says who answers. One thread.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from itertools import pairwise
from pathlib import Path

warnings.simplefilter("ignore")

import art  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from art.attacks.extraction import KnockoffNets  # noqa: E402
from art.estimators.classification import PyTorchClassifier  # noqa: E402
from torch import nn  # noqa: E402

torch.set_num_threads(1)


def layers(folder: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Weights and biases, from input to output."""
    found = []
    while (folder / f"weight{len(found)}.npy").exists():
        k = len(found)
        found.append((np.load(folder / f"weight{k}.npy"), np.load(folder / f"bias{k}.npy")))
    return found


def network(sizes: list[int], activation: type[nn.Module]) -> nn.Sequential:
    """Linear layers with an activation between, with torch's own first weights."""
    modules: list[nn.Module] = []
    for below, above in pairwise(sizes):
        modules += [nn.Linear(below, above), activation()]
    return nn.Sequential(*modules[:-1])


def classifier(model: nn.Module, width: int, classes: int, rate: float) -> PyTorchClassifier:
    """As the toolbox wraps a module."""
    return PyTorchClassifier(
        model=model, loss=nn.CrossEntropyLoss(), optimizer=torch.optim.Adam(model.parameters(), lr=rate),
        input_shape=(width,), nb_classes=classes,
    )  # fmt: skip


def knockoff(asked: dict, folder: Path) -> dict:
    """A copy of another architecture, from labels."""
    records, tests = np.load(folder / "records.npy"), np.load(folder / "tests.npy")
    target_layers = layers(folder)
    width, classes = target_layers[0][0].shape[1], target_layers[-1][0].shape[0]
    target = network([width, *(bias.shape[0] for _, bias in target_layers)], nn.Tanh)
    with torch.no_grad():
        linear = [module for module in target if isinstance(module, nn.Linear)]
        for module, (weight, bias) in zip(linear, target_layers, strict=True):
            module.weight.copy_(torch.from_numpy(weight))
            module.bias.copy_(torch.from_numpy(bias))
    victim = classifier(target, width, classes, asked["rate"])
    copy = classifier(network([width, *asked["hidden"], classes], nn.ReLU), width, classes, asked["rate"])  # fmt: skip
    start = time.process_time()
    copy = KnockoffNets(
        victim, batch_size_fit=asked["batch"], batch_size_query=1024, nb_epochs=asked["epochs"],
        nb_stolen=asked["queries"], sampling_strategy=asked["choice"], verbose=False,
    ).extract(records, np.load(folder / "labels.npy"), thieved_classifier=copy)  # fmt: skip
    seconds = time.process_time() - start
    named = [model.predict(tests, batch_size=1024).argmax(1) for model in (victim, copy)]
    return {"cpu_s": seconds, "agreement": float((named[0] == named[1]).mean())}


def main() -> None:
    """Answer requests."""
    print(json.dumps({"peer": f"art {art.__version__}", "protocol": "KnockoffNets"}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        np.random.seed(asked["seed"])  # the toolbox draws from it
        torch.manual_seed(asked["seed"])
        print(json.dumps(knockoff(asked, Path(asked["folder"]))), flush=True)


if __name__ == "__main__":
    main()
