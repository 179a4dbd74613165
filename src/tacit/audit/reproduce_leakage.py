"""Gradient leakage, measured again on MNIST and CIFAR-10."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F  # noqa: N812 (the name that PyTorch code uses)

from tacit.attacks.gradient_leakage import exact_recovery, infer_label
from tacit.attacks.gradient_matching import (
    GradientMatching,
    Reconstruction,
    SeenUpdates,
    UpdateRecipe,
    match_gradients,
)
from tacit.audit.figures import Effort, Figure, figure, one_thread
from tacit.audit.statistics import clopper_pearson, median_interval, psnr
from tacit.core.errors import ConfigError
from tacit.nn.data import DataSet, load
from tacit.nn.networks import Activation, conv3, initialise_uniform, lenet, mlp

_RESAMPLES = 2000
_CONVERGED_DB = 30.0


def reproduce_leakage(effort: Effort) -> dict[str, object]:
    """Gradient leakage on MNIST and CIFAR-10: division, labels, DLG, Inverting Gradients, speed.

    Images are drawn by ``seed`` from the training set and every image of a figure meets the same
    settings. The papers' own PSNR figures belong to other networks and far larger budgets, so none
    stands beside ours.

    Args:
        effort: with ``quick``, 6 images instead of 20 and fewer iterations.

    Raises:
        ConfigError: more than the default effort is asked for.
        DataError: MNIST or CIFAR-10 is not there.

    Source: Phong et al. 2017, section 3; Zhao et al. 2020 (iDLG), table 1; Zhu et al. 2019 (DLG);
    Geiping et al. 2020 (Inverting Gradients).
    """
    if effort.full:
        raise ConfigError("gradient leakage has no --full: the default is all of it")
    quick, seed = effort.quick, effort.seed
    mnist, cifar10 = load("mnist"), load("cifar10")
    figures: list[Figure] = []

    def add(found: Figure) -> None:
        figures.append(found)
        effort.progress(f"{found['name']}: {found['here']:.4g}")

    with one_thread():
        add(_phong(mnist, seed))
        add(_idlg(mnist, seed, paper=1.0))
        add(_idlg(cifar10, seed, paper=None))
        for case in _cases(quick):
            add(_inverting(case, cifar10 if case.convolutions else mnist, quick, seed))
        add(_dlg(mnist, quick, seed))
        for data in (mnist, cifar10):
            add(_speedup(data, quick, seed))
    return {"title": "Gradient leakage", "quick": quick, "seed": seed, "figures": figures}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """One figure of Inverting Gradients: a network, how far it was trained, and a budget."""

    name: str
    activation: Activation
    iterations: int
    restarts: int = 1
    training_steps: int = 0
    momentum: float = 0.0
    convolutions: bool = False  # conv3 on CIFAR-10 instead of LeNet on MNIST

    def settings(self) -> GradientMatching:
        """The paper's settings for this activation, at this budget."""
        return GradientMatching.inverting_gradients(
            self.activation, iterations=self.iterations, restarts=self.restarts
        )


def _cases(quick: bool) -> list[_Case]:
    def budget(full: int) -> int:
        return full // 2 if quick else full

    restarts = 2 if quick else 4
    return [
        _Case(name="ig/mnist/lenet-tanh/untrained", activation=nn.Tanh, iterations=budget(600)),
        _Case(
            name="ig/mnist/lenet-relu/untrained", activation=nn.ReLU,
            iterations=budget(1500), restarts=4,
        ),
        _Case(
            name="ig/mnist/lenet-tanh/trained", activation=nn.Tanh,
            iterations=budget(1600), restarts=restarts, training_steps=50,
        ),
        _Case(
            name="ig/mnist/lenet-tanh/well-trained", activation=nn.Tanh,
            iterations=budget(1600), restarts=restarts, training_steps=budget(2000), momentum=0.9,
        ),
        _Case(
            name="ig/cifar10/conv3-relu/untrained", activation=nn.ReLU,
            iterations=budget(500), convolutions=True,
        ),
        _Case(
            name="ig/cifar10/conv3-tanh/untrained", activation=nn.Tanh,
            iterations=budget(300), convolutions=True,
        ),
    ]  # fmt: skip


def _phong(data: DataSet, seed: int) -> Figure:
    images, labels = _victims(data, 200, seed)
    model = mlp(data.input_shape, (128,), 10, generator=_generator(seed, 1))
    weight, bias, *_ = _gradients(model, images, labels)
    found = exact_recovery(weight, bias)
    errors = (found - images.flatten(1)).abs().amax(1)
    draws = torch.randint(len(errors), (_RESAMPLES, len(errors)), generator=_generator(seed, 2))
    worst = errors[draws].amax(1)
    return figure(
        "phong/mlp/max_abs_error",
        float(errors.max()),
        (float(worst.quantile(0.025)), float(worst.quantile(0.975))),
        len(errors),
        better="lower",
        settings={
            "network": "784-128-10, ReLU, untrained", "precision": "float32",
            "batch": 1, "interval": "bootstrap of the sample's maximum, which bounds it",
        },
    )  # fmt: skip


def _idlg(data: DataSet, seed: int, *, paper: float | None) -> Figure:
    images, labels = _victims(data, 200, seed)
    model = lenet(data.input_shape, 10, generator=_generator(seed, 1))
    found = infer_label(_gradients(model, images, labels)[-1])
    hits = int((found == labels).sum())
    return figure(
        f"idlg/{data.name}/label_accuracy",
        hits / len(labels),
        clopper_pearson(hits, len(labels)),
        len(labels),
        paper=paper,
        settings={"network": "LeNet, sigmoid, untrained", "batch": 1},
    )


def _inverting(case: _Case, data: DataSet, quick: bool, seed: int) -> Figure:
    count = 6 if quick else 20
    images, labels = _victims(data, count, seed)
    generator = _generator(seed, 1)
    build = conv3 if case.convolutions else lenet
    model: nn.Module = build(data.input_shape, 10, activation=case.activation, generator=generator)
    _train(model, data, case, generator)
    gradients = _gradients(model, images, labels)
    # The label is read off the gradient first, as the adversary would.
    inferred = infer_label(gradients[-1])
    found = _reconstruct(model, gradients, data, case.settings(), seed, inferred)
    quality = _quality(images, found)
    settings: dict[str, object] = {
        **_described(case.settings()), "batch": 1, "labels": "inferred",
        "training_steps": case.training_steps, "accuracy": _accuracy(model, data),
        "worst": float(quality.min()), "best": float(quality.max()),
        "against_another_image": float(_quality(images.roll(1, 0), found).median()),
    }  # fmt: skip
    return _median_figure(f"{case.name}/psnr_db", quality.tolist(), settings)


def _dlg(data: DataSet, quick: bool, seed: int) -> Figure:
    images, labels = _victims(data, 6 if quick else 20, seed)
    generator = _generator(seed, 1)
    model = initialise_uniform(lenet(data.input_shape, 10, generator=generator), 0.5, generator)
    model = model.double()
    settings = GradientMatching.dlg()
    gradients = _gradients(model, images.double(), labels)
    found = _reconstruct(model, gradients, data, settings, seed, None)
    quality = _quality(images, found)
    hits = int((quality >= _CONVERGED_DB).sum())
    return figure(
        "dlg/mnist/converged",
        hits / len(quality),
        clopper_pearson(hits, len(quality)),
        len(quality),
        settings={
            **_described(settings), "network": "LeNet, sigmoid, weights uniform in ±0.5",
            "precision": "float64", "labels": "searched", "converged": f"PSNR >= {_CONVERGED_DB} dB",
            "median_psnr_db": float(quality.median()),
            "labels_right": float((found.labels[:, 0] == labels).double().mean()),
        },
    )  # fmt: skip


def _speedup(data: DataSet, quick: bool, seed: int) -> Figure:
    """Images in one stack against the same images one after another, interleaved."""
    count, colour = 32, data.input_shape[0] == 3
    images, labels = _victims(data, count, seed)
    build = conv3 if colour else lenet
    activation: Activation = nn.ReLU if colour else nn.Tanh
    model = build(data.input_shape, 10, activation=activation, generator=_generator(seed, 1))
    gradients = _gradients(model, images, labels)
    iterations = 5 if colour else 20
    settings = GradientMatching.inverting_gradients(activation, iterations=iterations)

    def seconds(at_once: int) -> float:
        start = time.perf_counter()
        _reconstruct(model, gradients, data, settings, seed, labels, at_once)
        return time.perf_counter() - start

    seconds(count)
    pairs = [(seconds(1), seconds(count)) for _ in range(6 if quick else 9)]
    ratios = [alone / together for alone, together in pairs]
    name = "ig/cifar10/conv3/batch_speedup" if colour else "ig/mnist/lenet/batch_speedup"
    described: dict[str, object] = {
        "images": count, "iterations": iterations, "threads": torch.get_num_threads(),
        "seconds_one_by_one": statistics.median(alone for alone, _ in pairs),
        "seconds_together": statistics.median(together for _, together in pairs),
    }  # fmt: skip
    return _median_figure(name, ratios, described)


def _victims(data: DataSet, count: int, seed: int) -> tuple[Tensor, Tensor]:
    rows = torch.randperm(len(data.inputs_train), generator=_generator(seed, 0))[:count]
    return data.inputs_train[rows], data.labels_train[rows]


def _gradients(model: nn.Module, images: Tensor, labels: Tensor) -> list[Tensor]:
    """Every image's own gradient: one (n, *parameter shape) a parameter."""

    def loss(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, parameters, (image[None],)), label[None])

    own = {name: value.detach() for name, value in model.named_parameters()}
    return list(vmap(grad(loss), (None, 0, 0))(own, images, labels).values())


def _reconstruct(
    model: nn.Module,
    gradients: list[Tensor],
    data: DataSet,
    settings: GradientMatching,
    seed: int,
    labels: Tensor | None,
    at_once: int = 32,
) -> Reconstruction:
    return match_gradients(
        model,
        SeenUpdates(values=gradients),
        UpdateRecipe(input_shape=data.input_shape),
        settings=settings,
        generator=_generator(seed, 3),
        labels=None if labels is None else labels[:, None],
        at_once=at_once,
    )


def _train(model: nn.Module, data: DataSet, case: _Case, generator: torch.Generator) -> None:
    """SGD on batches of 64 at rate 0.1, or 0.05 with momentum."""
    rate = 0.05 if case.momentum else 0.1
    optimiser = torch.optim.SGD(model.parameters(), rate, momentum=case.momentum)
    for _ in range(case.training_steps):
        rows = torch.randint(len(data.inputs_train), (64,), generator=generator)
        optimiser.zero_grad()
        F.cross_entropy(model(data.inputs_train[rows]), data.labels_train[rows]).backward()  # type: ignore[no-untyped-call]
        optimiser.step()


def _accuracy(model: nn.Module, data: DataSet) -> float:
    with torch.no_grad():
        parts = [model(part).argmax(1) for part in torch.split(data.inputs_test, 1000)]
    return float((torch.cat(parts) == data.labels_test).double().mean())


def _quality(images: Tensor, found: Reconstruction) -> Tensor:
    return psnr(images, found.images[:, 0].to(images).clamp(0, 1))


def _described(settings: GradientMatching) -> dict[str, object]:
    return {
        "distance": settings.distance.value, "optimiser": settings.optimiser.value,
        "total_variation": settings.total_variation, "iterations": settings.iterations,
        "restarts": settings.restarts,
    }  # fmt: skip


def _median_figure(name: str, values: list[float], settings: dict[str, object]) -> Figure:
    median, interval = statistics.median(values), median_interval(values)
    return figure(name, median, interval, len(values), settings={**settings, "statistic": "median"})


def _generator(seed: int, purpose: int) -> torch.Generator:
    """A stream of its own for each purpose, so that no draw shifts another."""
    return torch.Generator().manual_seed(1000 * seed + purpose)
