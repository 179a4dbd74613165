"""Gradient matching: a search for the records that would have caused the update that was seen.

The last of the three attacks in `tacit.attacks.gradient_leakage`, which says where the adversary
stands and what it holds: dummy records are moved until the update that they would cause equals the
one that was seen (`match_gradients`). DLG measures Euclidean distance, moves by L-BFGS and searches
for the label too; Inverting Gradients measures the cosine, adds total variation and moves by Adam
on the gradient's signs.

The module is applied in the mode it is in: a batch norm that updates its statistics, or dropout,
hides the function that the victim differentiated, and is refused.

Sources:
    Zhu, Liu, Han, "Deep leakage from gradients", NeurIPS 2019 (DLG); Geiping, Bauermeister, Dröge,
    Moeller, "Inverting gradients", NeurIPS 2020 (cosine, total variation, signed Adam, several
    local steps).

What we changed: all victims and all restarts move as one stack, differentiated by `torch.func`; the
derivative of the distance and of the total variation is written by hand; the point that is kept is
the best finite one seen, not the last; DLG's line search is strong Wolfe and its distance is divided
by the target's norm, which changes its scale and nothing else.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F  # noqa: N812 (the name that PyTorch code uses)

from tacit.core.errors import ConfigError, UnsupportedLayer

_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8
_DECAY_AT = (3 / 8, 5 / 8, 7 / 8)
_HISTORY = 100
# What a line search is told of a point that has no finite value: far too high, and flat.
_REFUSED = 1e12

Progress = Callable[[float], None]


# --- settings -------------------------------------------------------------------------------------


class Distance(Enum):
    """How far an update is from the one that was seen."""

    COSINE = "cosine"
    EUCLIDEAN = "euclidean"


class Optimiser(Enum):
    """How the dummy records move."""

    SIGNED_ADAM = "signed-adam"
    L_BFGS = "l-bfgs"


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientMatching:
    """Settings of a search; see `dlg` and `inverting_gradients` for the papers' own.

    Args:
        distance: cosine is 1 - cos; Euclidean is the squared distance over the target's squared
            norm.
        optimiser: signed Adam moves all problems at once in the parameters' precision, its step
            falls to a tenth after 3/8, 5/8 and 7/8 of the iterations; L-BFGS (strong Wolfe) solves
            one problem after another in float64.
        total_variation: weight of the image prior, the mean absolute difference of neighbours.
        iterations: steps a restart.
        restarts: starting points a victim; the one that ends nearest is kept.
        step_size: signed Adam's first step, in units of pixel values; L-BFGS's factor.
        box: lowest and highest value of a record; None for no bounds. Starting points are uniform
            in the box, standard normal without one. L-BFGS has no box.
        tolerance: a search whose distance falls to this ends, and with L-BFGS its victim needs no
            further restart.

    Raises:
        ConfigError: a value is out of its range.
    """

    distance: Distance = Distance.COSINE
    optimiser: Optimiser = Optimiser.SIGNED_ADAM
    total_variation: float = 0.0
    iterations: int = 1000
    restarts: int = 1
    step_size: float = 0.1
    box: tuple[float, float] | None = (0.0, 1.0)
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        if self.iterations < 1 or self.restarts < 1:
            raise ConfigError(
                "at least one iteration and one restart expected, "
                f"{self.iterations} and {self.restarts} came"
            )
        if not (self.step_size > 0 and self.total_variation >= 0 and self.tolerance >= 0):
            raise ConfigError(
                "step_size > 0, total_variation >= 0 and tolerance >= 0 expected, "
                f"{self.step_size}, {self.total_variation} and {self.tolerance} came"
            )
        if self.box is not None and not self.box[0] < self.box[1]:
            raise ConfigError(f"a box (low, high) with low < high expected, {self.box} came")
        if self.box is not None and self.optimiser is Optimiser.L_BFGS:
            raise ConfigError("L-BFGS searches without bounds: set box=None, or use signed Adam")

    @classmethod
    def dlg(cls, *, iterations: int = 600, restarts: int = 3) -> GradientMatching:
        """Deep leakage from gradients: Euclidean distance, L-BFGS, no prior; label searched too.

        Args:
            iterations: L-BFGS steps a restart.
            restarts: most starting points; later ones are used only where earlier ones failed.

        Source: Zhu et al., algorithm 1.
        """
        return cls(
            distance=Distance.EUCLIDEAN,
            optimiser=Optimiser.L_BFGS,
            iterations=iterations,
            restarts=restarts,
            step_size=1.0,
            box=None,
            tolerance=1e-8,
        )

    @classmethod
    def inverting_gradients(
        cls, activation: type[nn.Module] = nn.ReLU, *, iterations: int = 1000, restarts: int = 1
    ) -> GradientMatching:
        """Inverting Gradients: cosine distance, total variation, Adam on signs, boxed.

        The prior's weight follows the activation, which the adversary knows: a smooth network gives
        almost all away and a strong prior would drown it; a piecewise linear one needs the prior.

        Args:
            activation: class of the model's non-linearity.
            iterations: steps a restart; the paper takes 4,800 to 24,000.
            restarts: starting points.

        Source: Geiping et al., section 4 and equation 4.
        """
        smooth = issubclass(
            activation, (nn.Tanh, nn.Sigmoid, nn.Softplus, nn.ELU, nn.GELU, nn.SiLU)
        )
        return cls(
            total_variation=1e-5 if smooth else 3e-3, iterations=iterations, restarts=restarts
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateRecipe:
    """How an update came about, as far as the adversary knows or assumes it.

    With ``local_learning_rate`` None an update is a gradient. Otherwise it is a change of weights
    (after minus before) from ``local_steps`` plain SGD steps at that rate. A participant goes
    through its ``records`` in a fixed order, ``batch_size`` at a time, and starts again when they
    are used up. Updates of several participants with equally many records are averaged.

    Args:
        input_shape: shape of one record.
        batch_size: records behind one local step of one participant.
        local_steps: local steps behind one update.
        local_learning_rate: step size of those steps.
        records: records of one participant; None for one batch, used in every step.
        participants: participants in one (averaged) update.
        squared_error: the loss is half the squared error to the labels' unit vectors, instead of cross-entropy.

    Raises:
        ConfigError: a size is not positive, or the numbers contradict each other.
    """

    input_shape: tuple[int, ...]
    batch_size: int = 1
    local_steps: int = 1
    local_learning_rate: float | None = None
    records: int | None = None
    participants: int = 1
    squared_error: bool = False

    def __post_init__(self) -> None:
        sizes = (self.batch_size, self.local_steps, self.participants, *self.input_shape)
        if min(sizes) < 1:
            raise ConfigError(f"positive sizes expected in the recipe of an update, {sizes} came")
        if self.local_learning_rate is None and self.local_steps > 1:
            raise ConfigError(
                f"{self.local_steps} local steps need their learning rate: give local_learning_rate"
            )
        if self.local_learning_rate is not None and not self.local_learning_rate > 0:
            raise ConfigError(f"a learning rate > 0 expected, {self.local_learning_rate} came")
        least, most = self.batch_size, self.batch_size * self.local_steps
        if not least <= self.records_each <= most:
            raise ConfigError(
                f"{self.local_steps} steps of {self.batch_size} records use {least} to {most} records "
                f"of a participant, {self.records} came"
            )

    @property
    def records_each(self) -> int:
        """Records of one participant."""
        return self.batch_size if self.records is None else self.records

    @property
    def records_in_all(self) -> int:
        """Records behind one update, B."""
        return self.participants * self.records_each


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenUpdates:
    """The updates of V victims, as the adversary holds them.

    Args:
        values: one tensor (V, *parameter shape) for each parameter, in the order of
            ``module.named_parameters()``.
        masks: same shapes, True where the coordinate was seen; None if all were. What ``values``
            holds elsewhere is not looked at.
        parameters: the weights that the victims started from, by name: each (*parameter shape), or
            (V, *parameter shape) if every victim had its own. None for the module's own.
    """

    values: Sequence[Tensor] = field(repr=False)
    masks: Sequence[Tensor] | None = field(default=None, repr=False)
    parameters: Mapping[str, Tensor] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconstruction:
    """What a search brought back for V victims with B records each.

    Args:
        images: (V, B, *input shape).
        labels: (V, B) int64: those given, or those found.
        distances: (V,) of the restart that was kept; infinite if no finite point was met, and then
            the images are the starting point.
        restart_distances: (V, restarts); infinite for a restart that was not needed.
    """

    images: Tensor = field(repr=False)
    labels: Tensor
    distances: Tensor
    restart_distances: Tensor = field(repr=False)


# --- gradient matching ----------------------------------------------------------------------------


def match_gradients(
    module: nn.Module,
    seen: SeenUpdates,
    recipe: UpdateRecipe,
    *,
    settings: GradientMatching,
    generator: torch.Generator,
    labels: Tensor | None = None,
    at_once: int = 32,
    progress: Progress | None = None,
) -> Reconstruction:
    """Search for records whose update equals the one that was seen.

    Args:
        module: the victims' model; it is called functionally and left as it is.
        seen: the updates of V victims, whole, partial or noisy.
        recipe: how each update came about; B = ``recipe.records_in_all`` records stand behind it.
        settings: distance, optimiser, prior and budget.
        generator: draws the starting points; the result does not depend on ``at_once`` otherwise
            than by rounding.
        labels: (V, B) int64 where they are known (see `gradient_leakage.infer_label`); None to search
            for soft labels together with the records.
        at_once: problems (victims times restarts) that move as one stack. More amortises overhead
            until the caches or the memory are full.
        progress: told the share of the work that is done, 0 to 1.

    Raises:
        ConfigError: shapes, names or sizes do not belong together, or a seen value is not finite.
        UnsupportedLayer: the module has dropout or updating batch norm in training mode.

    Source: Geiping et al., equations 3 and 4; Zhu et al., algorithm 1.
    """
    _check_deterministic(module)
    dtype = torch.float64 if settings.optimiser is Optimiser.L_BFGS else seen.values[0].dtype
    targets = _checked_targets(module, seen, recipe, dtype)
    victims, restarts = len(targets[0]), settings.restarts
    if labels is not None and labels.shape != (victims, recipe.records_in_all):
        raise ConfigError(
            f"labels of shape {(victims, recipe.records_in_all)} expected, {tuple(labels.shape)} came"
        )
    search = _Search(module, targets, seen, recipe, settings, labels)
    start = search.starting_points(generator)
    solve = _signed_adam if settings.optimiser is Optimiser.SIGNED_ADAM else _l_bfgs
    points, distances = solve(search, start, at_once, progress or _silent)
    # Infinity for what is not finite, so that a poisoned restart never wins.
    distances = distances.view(victims, restarts)
    best = distances.argmin(1)
    chosen = points.view(victims, restarts, -1)[torch.arange(victims, device=best.device), best]
    images, found = search.unpack(chosen)
    known = labels if labels is not None else found.argmax(-1)
    return Reconstruction(
        images=images.detach(),
        labels=known,
        distances=distances.gather(1, best[:, None]).squeeze(1),
        restart_distances=distances,
    )


def match_batch(reconstructed: Tensor, originals: Tensor) -> Tensor:
    """Which reconstruction belongs to which original: the assignment with the least squared error.

    A gradient says nothing about the order within its batch.

    Args:
        reconstructed: (R, ...).
        originals: (B, ...), B at most R: a record that was used twice is reconstructed twice.

    Returns:
        (B,) int64 such that ``reconstructed[permutation]`` lines up with ``originals``.

    Raises:
        ConfigError: there are fewer reconstructions than originals, or of other shapes.
    """
    if reconstructed.shape[1:] != originals.shape[1:] or len(reconstructed) < len(originals):
        raise ConfigError(
            f"a reconstruction for each original expected, shapes {tuple(reconstructed.shape)} and "
            f"{tuple(originals.shape)} came"
        )
    first, second = originals.flatten(1).double(), reconstructed.flatten(1).double()
    # A reconstruction that diverged must not stop the others from being matched.
    cost = torch.cdist(first, second).square().nan_to_num(_REFUSED, _REFUSED, _REFUSED)
    _, columns = linear_sum_assignment(cost.detach().cpu().numpy())
    return torch.from_numpy(columns).to(reconstructed.device)


class _Search:
    """V x R problems: points of shape (size,) and, for a stack of them, distance and derivative.

    A point is a problem's records, flat, followed by its label logits if the labels are searched.
    """

    def __init__(
        self,
        module: nn.Module,
        targets: list[Tensor],
        seen: SeenUpdates,
        recipe: UpdateRecipe,
        settings: GradientMatching,
        labels: Tensor | None,
    ) -> None:
        self.recipe, self.settings, self.labels = recipe, settings, labels
        like = targets[0]
        self.dtype, self.device, self.victims = like.dtype, like.device, len(like)
        self.parameters, self._shared = _checked_parameters(module, seen, like)
        self.masks = (
            None
            if seen.masks is None
            else [m.to(like.device, like.dtype).reshape(len(m), -1) for m in seen.masks]
        )
        squares = [t.square().sum(1) for t in targets]
        self._norms = torch.stack(squares).sum(0).sqrt().clamp_min(torch.finfo(like.dtype).tiny)
        self._negated = [-t / self._norms[:, None] for t in targets]
        self._update = _update_function(module, recipe, like)
        self.pixels = recipe.records_in_all * math.prod(recipe.input_shape)
        self.classes = 0 if labels is not None else self._count_classes(module)

    def _count_classes(self, module: nn.Module) -> int:
        one = torch.zeros(1, *self.recipe.input_shape, dtype=self.dtype, device=self.device)
        first = {n: p if self._shared else p[0] for n, p in self.parameters.items()}
        with torch.no_grad():
            scores = functional_call(module, {**_buffers(module, one), **first}, (one,))
        return int(scores.shape[-1])

    def starting_points(self, generator: torch.Generator) -> Tensor:
        """(V * R, size), drawn at once so that the way it is cut into stacks changes nothing."""
        problems, box = self.victims * self.settings.restarts, self.settings.box
        where = generator.device
        images = torch.empty(problems, self.pixels, dtype=torch.float32, device=where)
        if box is None:
            images.normal_(generator=generator)
        else:
            images.uniform_(*box, generator=generator)
        logits = torch.empty(
            problems, self.recipe.records_in_all * self.classes, dtype=torch.float32, device=where
        ).normal_(generator=generator)
        return torch.cat([images, logits], 1).to(self.device, self.dtype)

    def unpack(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """(n, B, *input shape) records and (n, B, classes) label logits of (n, size) points."""
        count, records = len(points), self.recipe.records_in_all
        images = points[:, : self.pixels].view(count, records, *self.recipe.input_shape)
        return images, points[:, self.pixels :].view(count, records, self.classes)

    def stack(self, problems: Tensor) -> _Stack:
        """The problems with these indices, as one stack."""
        of = problems // self.settings.restarts
        whole = len(of) == self.victims and self.settings.restarts == 1

        def pick(values: Tensor) -> Tensor:
            return values if whole else values[of]

        return _Stack(
            update=self._update,
            parameters=self.parameters
            if self._shared
            else {name: pick(value) for name, value in self.parameters.items()},
            shared=self._shared,
            negated=[pick(t) for t in self._negated],
            norms=pick(self._norms),
            masks=None if self.masks is None else [pick(m) for m in self.masks],
            labels=None if self.labels is None else pick(self.labels.to(self.device)),
            search=self,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stack:
    """n problems that are evaluated together; the targets are negated and of norm one."""

    update: Callable[[dict[str, Tensor], Tensor, Tensor], tuple[Tensor, ...]]
    parameters: dict[str, Tensor]
    shared: bool
    negated: list[Tensor]
    norms: Tensor
    masks: list[Tensor] | None
    labels: Tensor | None
    search: _Search

    def evaluate(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Objective (n,), distance (n,) and the objective's derivative (n, size) at ``points``."""
        points = points.detach().requires_grad_()
        images, logits = self.search.unpack(points)
        labels = self.labels if self.labels is not None else logits.softmax(-1)
        updates = self._updates(images, labels)
        with torch.no_grad():
            distance, cotangents, factor = self._distance([u.detach() for u in updates])
        # A parameter whose gradient does not depend on the records has no graph to follow.
        moving = [
            (u, c.view_as(u)) for u, c in zip(updates, cotangents, strict=True) if u.requires_grad
        ]
        (slope,) = torch.autograd.grad([u for u, _ in moving], points, [c for _, c in moving])
        slope.mul_(factor[:, None])
        weight = self.search.settings.total_variation
        if weight == 0:
            return distance, distance, slope
        prior, prior_slope = _total_variation(images.detach())
        slope[:, : self.search.pixels].add_(prior_slope.flatten(1), alpha=weight)
        return distance + weight * prior, distance, slope

    def _updates(self, images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        if len(images) > 1:
            in_dims = (None if self.shared else 0, 0, 0)
            stacked: tuple[Tensor, ...] = vmap(self.update, in_dims)(
                self.parameters, images, labels
            )
            return stacked
        # One problem alone is faster without vmap.
        own = self.parameters if self.shared else {n: p[0] for n, p in self.parameters.items()}
        return tuple(u[None] for u in self.update(own, images[0], labels[0]))

    def _distance(self, updates: list[Tensor]) -> tuple[Tensor, list[Tensor], Tensor]:
        """Distance (n,), and its derivative by the updates as (cotangents, factor (n,)).

        Both distances have the derivative factor · (scale · update - target) with targets of norm
        one, one fused operation a parameter. Its squared norm gives the distance without the
        cancellation of 1 - cos near zero.
        """
        flat = [u.reshape(len(u), -1) for u in updates]
        if self.masks is not None:
            flat = [u * m for u, m in zip(flat, self.masks, strict=True)]
        if self.search.settings.distance is Distance.EUCLIDEAN:
            scale = 1 / self.norms
            residuals = self._residuals(flat, scale)
            return _inner(residuals, residuals), residuals, 2 * scale
        square = _inner(flat, flat).clamp_min(torch.finfo(self.norms.dtype).tiny)
        norm, along = square.sqrt(), -_inner(flat, self.negated)
        residuals = self._residuals(flat, along / square)
        cosine = along / norm
        sine2 = _inner(residuals, residuals)
        distance = torch.where(cosine > 0, sine2 / (1 + cosine.clamp_min(0)), 1 - cosine)
        return distance, residuals, 1 / norm

    def _residuals(self, flat: list[Tensor], scale: Tensor) -> list[Tensor]:
        return [
            torch.addcmul(target, update, scale[:, None])
            for target, update in zip(self.negated, flat, strict=True)
        ]


@dataclass(slots=True)
class _Best:
    """The best finite point that each of n problems has met."""

    points: Tensor
    objective: Tensor
    distance: Tensor

    @classmethod
    def of(cls, start: Tensor) -> _Best:
        far = torch.full_like(start[:, 0], math.inf)
        return cls(start.clone(), far, far.clone())

    def offer(self, points: Tensor, objective: Tensor, distance: Tensor) -> None:
        better = objective < self.objective  # False for NaN
        self.points = torch.where(better[:, None], points, self.points)
        self.objective = torch.where(better, objective, self.objective)
        self.distance = torch.where(better, distance, self.distance)


def _signed_adam(
    search: _Search, start: Tensor, at_once: int, progress: Progress
) -> tuple[Tensor, Tensor]:
    if at_once < 1:
        raise ConfigError(f"at least one problem at once expected, {at_once} came")
    ends = []
    for first in range(0, len(start), at_once):
        problems = torch.arange(first, min(first + at_once, len(start)), device=start.device)

        def report(share: float, done: int = first, count: int = len(problems)) -> None:
            progress((done + share * count) / len(start))

        ends.append(_descend(search, search.stack(problems), start[problems], report))
    return torch.cat([best.points for best in ends]), torch.cat([best.distance for best in ends])


def _descend(search: _Search, stack: _Stack, points: Tensor, progress: Progress) -> _Best:
    """Adam on the signs of the derivative, all problems of the stack at once."""
    settings, best = search.settings, _Best.of(points)
    first, second = torch.zeros_like(points), torch.zeros_like(points)
    milestones = {math.floor(share * settings.iterations) for share in _DECAY_AT}
    step = settings.step_size
    for iteration in range(settings.iterations):
        objective, distance, slope = stack.evaluate(points)
        best.offer(points, objective, distance)
        if settings.tolerance and bool((best.distance <= settings.tolerance).all()):
            break
        if iteration in milestones:
            step *= 0.1
        # A problem without a finite derivative stays where it is instead of spreading NaN.
        signs = slope.sign_().nan_to_num_(nan=0.0)
        first.lerp_(signs, 1 - _BETA1)
        second.lerp_(signs.square_(), 1 - _BETA2)
        spread = (second / (1 - _BETA2 ** (iteration + 1))).sqrt_().add_(_EPSILON)
        points = torch.addcdiv(points, first, spread, value=-step / (1 - _BETA1 ** (iteration + 1)))
        if settings.box is not None:
            points[:, : search.pixels].clamp_(*settings.box)
        progress((iteration + 1) / settings.iterations)
    best.offer(points, *stack.evaluate(points)[:2])
    return best


def _l_bfgs(
    search: _Search, start: Tensor, at_once: int, progress: Progress
) -> tuple[Tensor, Tensor]:
    """One problem after another: a line search belongs to one problem."""
    del at_once
    settings = search.settings
    ends = start.clone()
    distances = torch.full_like(start[:, 0], math.inf)
    for victim in range(search.victims):
        for restart in range(settings.restarts):
            problem = victim * settings.restarts + restart
            best = _quasi_newton(search, search.stack(torch.tensor([problem])), start[problem])
            ends[problem], distances[problem] = best.points[0], best.distance[0]
            if bool(best.distance[0] <= settings.tolerance):
                break
        progress((victim + 1) / search.victims)
    return ends, distances


class _CloseEnough(Exception):
    """Leaves torch's optimiser from within, once there is nothing left to gain."""


def _quasi_newton(search: _Search, stack: _Stack, start: Tensor) -> _Best:
    settings, best = search.settings, _Best.of(start[None])
    point = start.clone().requires_grad_()
    optimiser = torch.optim.LBFGS(
        [point],
        lr=settings.step_size,
        max_iter=settings.iterations,
        max_eval=2 * settings.iterations,
        history_size=_HISTORY,
        tolerance_grad=0.0,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> float:
        objective, distance, slope = stack.evaluate(point[None])
        best.offer(point.detach()[None], objective, distance)
        if bool(best.distance[0] <= settings.tolerance):
            raise _CloseEnough
        finite = bool(objective.isfinite().all()) and bool(slope.isfinite().all())
        point.grad = slope[0] if finite else torch.zeros_like(slope[0])
        return float(objective[0]) if finite else _REFUSED

    with contextlib.suppress(_CloseEnough):
        optimiser.step(closure)  # type: ignore[no-untyped-call]
    return best


# --- pieces ---------------------------------------------------------------------------------------


def _update_function(
    module: nn.Module, recipe: UpdateRecipe, like: Tensor
) -> Callable[[dict[str, Tensor], Tensor, Tensor], tuple[Tensor, ...]]:
    """(weights, records (B, ...), labels) -> the update they cause, as a mean gradient."""
    buffers = _buffers(module, like)

    def loss(parameters: dict[str, Tensor], images: Tensor, labels: Tensor) -> Tensor:
        scores = functional_call(module, {**buffers, **parameters}, (images,))
        if recipe.squared_error:
            classes = torch.arange(scores.shape[-1], device=scores.device)
            errors = scores - (labels[:, None] == classes).to(scores.dtype)
            halved: Tensor = errors.square().sum() / (2 * len(labels))
            return halved
        return F.cross_entropy(scores, labels)

    slope = grad(loss)
    rate, steps = recipe.local_learning_rate or 1.0, recipe.local_steps

    def gradient(
        parameters: dict[str, Tensor], images: Tensor, labels: Tensor
    ) -> tuple[Tensor, ...]:
        return tuple(slope(parameters, images, labels).values())

    def local(parameters: dict[str, Tensor], images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        now = parameters
        for step in range(steps):
            first = step * recipe.batch_size
            used = [(first + i) % recipe.records_each for i in range(recipe.batch_size)]
            slopes = slope(now, images[used], labels[used])
            now = {name: value - rate * slopes[name] for name, value in now.items()}
        return tuple((value - now[name]) / (rate * steps) for name, value in parameters.items())

    def average(
        parameters: dict[str, Tensor], images: Tensor, labels: Tensor
    ) -> tuple[Tensor, ...]:
        each = (recipe.participants, recipe.records_each)
        updates = vmap(local, (None, 0, 0))(
            parameters, images.view(*each, *images.shape[1:]), labels.view(*each, *labels.shape[1:])
        )
        return tuple(u.mean(0) for u in updates)

    if steps == 1:
        # Means of equally large batches are the mean of all: one step needs no participants.
        return gradient
    return local if recipe.participants == 1 else average


def _buffers(module: nn.Module, like: Tensor) -> dict[str, Tensor]:
    return {
        name: value.detach().to(like) if value.is_floating_point() else value.detach()
        for name, value in module.named_buffers()
    }


def _total_variation(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean absolute difference of neighbours, (n,), and its derivative, for (n, B, ..., H, W)."""
    down, across = images.diff(dim=-2), images.diff(dim=-1)
    axes = tuple(range(1, images.dim()))
    value = down.abs().mean(axes) + across.abs().mean(axes)
    per_row, per_column = len(down) / down.numel(), len(across) / across.numel()
    slope = torch.zeros_like(images)
    down.sign_().mul_(per_row)
    across.sign_().mul_(per_column)
    slope[..., 1:, :] += down
    slope[..., :-1, :] -= down
    slope[..., 1:] += across
    slope[..., :-1] -= across
    return value, slope


def _inner(these: list[Tensor], those: list[Tensor]) -> Tensor:
    parts = [torch.linalg.vecdot(a, b) for a, b in zip(these, those, strict=True)]
    return torch.stack(parts).sum(0)


def _checked_targets(
    module: nn.Module, seen: SeenUpdates, recipe: UpdateRecipe, dtype: torch.dtype
) -> list[Tensor]:
    """The updates as mean gradients, (V, -1) each, zero where they were not seen."""
    shapes = [tuple(p.shape) for _, p in module.named_parameters()]
    for name, tensors in (("values", seen.values), ("masks", seen.masks)):
        if tensors is None:
            continue
        came = [tuple(t.shape[1:]) for t in tensors]
        if came != shapes or len({len(t) for t in (*tensors, seen.values[0])}) != 1:
            raise ConfigError(
                f"{name} of the seen updates: one tensor (victims, *shape) for each of the shapes "
                f"{shapes} expected, shapes {[tuple(t.shape) for t in tensors]} came"
            )
    targets = [t.detach().to(dtype).reshape(len(t), -1) for t in seen.values]
    if not len(targets[0]):
        raise ConfigError("at least one victim's update expected, none came")
    if seen.masks is not None:
        targets = [
            torch.where(mask.bool().view_as(target), target, 0)
            for target, mask in zip(targets, seen.masks, strict=True)
        ]
    if not all(bool(t.isfinite().all()) for t in targets):
        raise ConfigError(
            "finite values expected in the seen updates: leave a victim that diverged out, or mask it"
        )
    if recipe.local_learning_rate is not None:
        targets = [t / -(recipe.local_learning_rate * recipe.local_steps) for t in targets]
    return targets


def _checked_parameters(
    module: nn.Module, seen: SeenUpdates, like: Tensor
) -> tuple[dict[str, Tensor], bool]:
    own = dict(module.named_parameters())
    given = own if seen.parameters is None else seen.parameters
    if given.keys() != own.keys():
        raise ConfigError(
            f"weights named {', '.join(own)} expected, {', '.join(given)} came: pass what "
            "module.named_parameters() names"
        )
    victims = len(like)
    shared = all(given[name].shape == value.shape for name, value in own.items())
    if not shared and any(given[n].shape != (victims, *v.shape) for n, v in own.items()):
        raise ConfigError(
            f"weights of the module's shapes, or all with {victims} victims in front, expected, "
            f"{ {name: tuple(value.shape) for name, value in given.items()} } came"
        )
    return {name: given[name].detach().to(like) for name in own}, shared


def _check_deterministic(module: nn.Module) -> None:
    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    for path, layer in module.named_modules():
        drops = isinstance(layer, (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d))
        updates = isinstance(layer, norms) and layer.track_running_stats
        if layer.training and (drops or updates):
            raise UnsupportedLayer(
                f"layer {path} ({type(layer).__name__}) acts at random or changes itself in training "
                "mode, so the victim's gradient cannot be formed again: call module.eval() if the "
                "victim did, or use group norm"
            )


def _silent(share: float) -> None:
    del share
