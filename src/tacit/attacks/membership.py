"""Membership inference: was this record among those that the model was trained on?

A model is surer of the records it has seen. The adversary sends a record whose true label it knows, looks at the answer, and
gives a score: the higher, the more the record looks like a member. Three attacks, from the least access to the most work:

- `LabelGap` sees predicted labels only, and says "member" where the prediction is right (Yeom et al., the baseline that
  follows from the gap between training and test accuracy alone);
- `LossThreshold` sees the class probabilities, and ranks records by the loss (Yeom et al.);
- `ShadowModels` trains models like the target on data like the target's, of which it knows who was in and who was out, and
  from these learns what "in" looks like: one attack network per class (Shokri et al.).

What is kept secret from whom: nothing here protects, unless the access has an output policy (`tacit.nn.policies`). The
target's training data reach an attack in one way only, as the records whose membership it is asked about.

What we changed in Shokri et al.: shadow models come in pairs, a random half of the shadow data and the other half, so that
halves overlap between pairs as in the paper; they are trained together (`tacit.attacks.shadows`); the attack networks'
softmax over {in, out} is written as one logit, the same function; batches hold as many members as non-members; the networks
of all classes are trained at once as one stack of weights, which gives each the result of training alone.

Source:
    [14] R. Shokri, M. Stronati, C. Song, V. Shmatikov. Membership Inference Attacks against Machine Learning Models. IEEE
    S&P 2017, sections V and VI; VIII for the policies. S. Yeom, I. Giacomelli, M. Fredrikson, S. Jha. Privacy Risk in
    Machine Learning: Analyzing the Connection to Overfitting. IEEE CSF 2018, adversaries 1 (label gap) and 2 (loss
    threshold).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from tacit.attacks.access import Knowledge, Labels, Scores
from tacit.attacks.shadow_data import RealRecords, ShadowData
from tacit.attacks.shadows import References, ShadowEnsemble, halves
from tacit.core.errors import ConfigError
from tacit.nn.policies import EVERYTHING, Policy

Batch = tuple[Tensor, Tensor]


def true_label_scores(access: Scores, inputs: Tensor, labels: Tensor) -> Tensor:
    """Negative loss of each record under the target: the log of its true class's probability.

    Args:
        access: the target; one query a record.
        inputs: (n, *input shape).
        labels: (n,) int64, the true classes.

    Returns:
        (n,) float64, at most 0; higher is more member-like. A probability that underflows to zero
        counts as the smallest normal float64 (about -708).

    Raises:
        ConfigError: labels and inputs do not match, or a label is not a class of the target.
        BudgetExhausted: the query budget is spent.
    """
    _check_records(inputs, labels)
    probabilities = access.scores(inputs)
    labels = _classes_of(labels, probabilities.shape[1]).to(probabilities.device)
    chosen = probabilities.gather(1, labels[:, None]).squeeze(1)
    return chosen.clamp_min(torch.finfo(chosen.dtype).tiny).log()


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelGap:
    """Says "member" where the predicted label is right: what label-only access gives for one query.

    Its advantage is the gap between the target's accuracy on members and on others.

    Source: Yeom et al. 2018, section 3.2 and adversary 1.
    """

    name: ClassVar[str] = "membership-labels"
    access: ClassVar[type[Labels]] = Labels
    threshold: ClassVar[float | None] = 0.5

    def score(
        self,
        access: Labels,
        knowledge: Knowledge,
        inputs: Tensor,
        labels: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        """Score records: 1 where the target's label is right, else 0.

        Args:
            access: the target; one query a record.
            knowledge: nothing of it is used.
            inputs: (n, *input shape).
            labels: (n,) int64, the true classes.
            generator: not drawn from.

        Returns:
            (n,) float64.

        Raises:
            ConfigError: labels and inputs do not match.
            BudgetExhausted: the query budget is spent.
        """
        _check_records(inputs, labels)
        predicted = access.labels(inputs)
        return (predicted == labels.to(predicted.device)).double()


@dataclass(frozen=True, slots=True, kw_only=True)
class LossThreshold:
    """Ranks records by the target's loss on them; no shadow model, no knowledge.

    Source: Yeom et al. 2018, adversary 2. Their threshold is the mean training loss, which an
    outsider does not know: the ranking is judged as a whole instead.
    """

    name: ClassVar[str] = "membership-loss"
    access: ClassVar[type[Scores]] = Scores
    threshold: ClassVar[float | None] = None

    def score(
        self,
        access: Scores,
        knowledge: Knowledge,
        inputs: Tensor,
        labels: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        """Score records by `true_label_scores`.

        Args:
            access: the target; one query a record.
            knowledge: nothing of it is used.
            inputs: (n, *input shape).
            labels: (n,) int64, the true classes.
            generator: not drawn from.

        Returns:
            (n,) float64.

        Raises:
            ConfigError: labels and inputs do not match, or a label is not a class of the target.
            BudgetExhausted: the query budget is spent.
        """
        return true_label_scores(access, inputs, labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowModels:
    """Shokri et al.'s attack: learn from shadow models what the answers for members look like.

    If the target answers under an output policy, so do the shadow models: the adversary knows it.

    Args:
        shadows: shadow models, each trained on a random half of the shadow data.
        data: where the shadow data come from.
        hidden: ReLU units of each attack network.
        steps: optimiser steps of the attack networks.
        batch_size: records of each class in a step, half of them members of the shadow model; even.
        learning_rate: of Adam, for the attack networks.

    Raises:
        ConfigError: a setting is out of range.

    Cost: `shadows` trainings, one query to the target for each record that is asked about, and what `data` costs.

    Source: [14] sections V-C to V-E; 64 hidden ReLU units from section VI-D (recalled).
    """

    name: ClassVar[str] = "membership-shadows"
    access: ClassVar[type[Scores]] = Scores
    threshold: ClassVar[float | None] = 0.0

    shadows: int = 8
    data: ShadowData = field(default_factory=RealRecords)
    hidden: int = 64
    steps: int = 500
    batch_size: int = 64
    learning_rate: float = 0.01

    def __post_init__(self) -> None:
        if min(self.shadows, self.hidden, self.steps) < 1:
            raise ConfigError(
                "at least 1 shadow model, 1 hidden unit and 1 step expected, "
                f"{self.shadows}, {self.hidden} and {self.steps} came"
            )
        if self.batch_size < 2 or self.batch_size % 2:
            raise ConfigError(
                f"an even batch size of at least 2 expected, {self.batch_size} came: half of a batch are members"
            )
        if not self.learning_rate > 0:
            raise ConfigError(f"a learning rate above 0 expected, {self.learning_rate} came")

    def score(
        self,
        access: Scores,
        knowledge: Knowledge,
        inputs: Tensor,
        labels: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        """Score records by the log-odds of "in" that the attack network of their class gives.

        Args:
            access: the target; one query a record, and those that the shadow data take.
            knowledge: `train_fn`, `classes` and what the shadow data need: as a rule a `population` of real records, none
                of them asked about here.
            inputs: (n, *input shape).
            labels: (n,) int64, the true classes.
            generator: draws the shadow data, the halves, the shadow models' training and the attack networks; the networks
                are trained on its device.

        Returns:
            (n,) float64; above 0 means "member".

        Raises:
            ConfigError: something needed is unknown, there are fewer than 4 shadow records, or labels and inputs do not
                match.
            BudgetExhausted: the query budget is spent.
        """
        _check_records(inputs, labels)
        return self.judged(self.learn(knowledge, generator, access), access, inputs, labels)

    def learn(
        self, knowledge: Knowledge, generator: torch.Generator, access: Scores | None = None
    ) -> AttackNetworks:
        """The attack networks, which serve for every target that the same knowledge is held of.

        Args:
            knowledge: see `score`.
            generator: see `score`.
            access: the target, for its policy and for shadow data that are made by asking it; None for a target that gives
                all probabilities.

        Raises:
            ConfigError: something needed is unknown, or there are fewer than 4 shadow records.
            BudgetExhausted: the query budget is spent by the shadow data.
        """
        knowledge.need(self.name, ("train_fn", "classes"))
        shadow_data = self.data.records(access, knowledge, generator)
        references = trained_shadows(knowledge, shadow_data, self.shadows, generator)
        return self.taught(references, generator, EVERYTHING if access is None else access.policy)

    def taught(
        self, references: References, generator: torch.Generator, policy: Policy = EVERYTHING
    ) -> AttackNetworks:
        """The attack networks that shadow models teach which are trained already.

        Args:
            references: what the shadow models say of the shadow data, and who was in; the first query counts.
            generator: draws the networks, which are trained on its device.
            policy: the target's.

        Raises:
            ConfigError: there are fewer classes than the policy gives.
        """
        vectors, classes, inside = shadow_records(references, policy, generator.device)
        count = references.classes
        networks = AttackNetworks.drawn(count, count, self.hidden, generator)
        batches = class_batches(
            vectors, classes, inside, count, self.batch_size, self.steps, generator
        )
        return networks.trained(batches, self.learning_rate)

    def judged(
        self, networks: AttackNetworks, access: Scores, inputs: Tensor, labels: Tensor
    ) -> Tensor:
        """The log-odds of "in" for each record, by networks that were learned before.

        Raises:
            ConfigError: the target answers with another number of classes.
            BudgetExhausted: the query budget is spent.
        """
        count = len(networks.inner)
        answers = access.scores(inputs)
        if answers.shape[1] != count:
            raise ConfigError(
                f"{count} classes are known, the target answers with {answers.shape[1]}: "
                "correct Knowledge.classes or train_fn"
            )
        answers = answers.to(networks.inner.device)
        return networks.log_odds(answers, _classes_of(labels, count).to(networks.inner.device))


def trained_shadows(
    knowledge: Knowledge,
    shadow_data: Batch,
    shadows: int,
    generator: torch.Generator,
) -> References:
    """Train shadow models and ask each about all shadow data.

    Args:
        knowledge: `train_fn` and `classes` are needed; a `tacit.nn.stacked.Trainer` trains all models at once.
        shadow_data: inputs (n, *input shape) and labels (n,).
        shadows: how many models; each pair is a random half of the data and the other half.
        generator: draws halves and trainings.

    Raises:
        ConfigError: something needed is unknown, there are fewer than 4 records, a label is not a class, a shadow model
            gives another number of classes, or models of different records are the same.

    Warns:
        TacitWarning: shadow models are no surer of their own records than of others.
    """
    knowledge.need("membership-shadows", ("train_fn", "classes"))
    if knowledge.train_fn is None or knowledge.classes is None:
        raise ConfigError("train_fn and classes expected: give them in Knowledge")
    inputs, labels = shadow_data
    _check_records(inputs, labels)
    if len(inputs) < 4:
        raise ConfigError(
            f"at least 4 shadow records expected, {len(inputs)} came: shadow models need records of their own"
        )
    labels = _classes_of(labels, knowledge.classes)
    inside = halves(len(inputs), shadows + shadows % 2, generator)[:shadows]
    ensemble = ShadowEnsemble(train_fn=knowledge.train_fn)
    references = ensemble.train(inputs, labels, inside, generator)
    if references.classes != knowledge.classes:
        raise ConfigError(
            f"{knowledge.classes} classes are known, a shadow model answers with {references.classes}: "
            "correct Knowledge.classes or train_fn"
        )
    return references


def shadow_records(
    references: References, policy: Policy, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """What the attack networks learn from: every shadow model's answer for every record of its pool.

    Args:
        references: K shadow models' logits of n records; the first query counts.
        policy: applied to each answer.
        device: where the results lie.

    Returns:
        Answers (K * n, classes) float32, true classes (K * n,) int64, and whether the record was among the model's training
        data (K * n,) bool.
    """
    vectors = torch.cat(
        [policy.answers(torch.tensor(own[0], device=device)).float() for own in references.logits]
    )
    classes = torch.tensor(references.labels, device=device).repeat(references.models)
    return vectors, classes, torch.tensor(references.inside, device=device).flatten()


def class_batches(
    vectors: Tensor,
    classes: Tensor,
    inside: Tensor,
    count: int,
    batch_size: int,
    steps: int,
    generator: torch.Generator,
) -> Iterator[Batch]:
    """Batches for all classes at once: of each class, half members and half others.

    Records are drawn with replacement.
    A class without a member or without another record borrows the records of all classes: its
    network then knows what being in looks like in general.

    Args:
        vectors: (r, width) answers of the shadow models.
        classes: (r,) int64 true classes.
        inside: (r,) bool.
        count: number of classes.
        batch_size: records of each class in a batch, even.
        steps: number of batches.
        generator: draws the records.

    Yields:
        Vectors (count, batch, width) float32 and membership (count, batch) float32.

    Raises:
        ConfigError: no record is a member, or none is not.
    """
    pools = [_by_class(classes, inside, count), _by_class(classes, ~inside, count)]
    whole = [inside.nonzero().squeeze(1), (~inside).nonzero().squeeze(1)]
    if any(len(pool) == 0 for pool in whole):
        raise ConfigError("members and others expected among the shadow records: give more records")
    lonely = (pools[0][2] == 0) | (pools[1][2] == 0)
    sources = []
    for (order, starts, sizes), everything in zip(pools, whole, strict=True):
        # Records sorted by class, then all of them once more: the range that a lonely class draws
        # from.
        rows = torch.cat([order, everything])
        sources.append(
            (
                rows,
                torch.where(lonely, len(order), starts)[:, None],
                torch.where(lonely, len(everything), sizes)[:, None],
            )
        )
    half = batch_size // 2
    vectors = vectors.float()
    member = torch.cat([torch.ones(count, half), torch.zeros(count, half)], 1).to(vectors.device)
    for _ in range(steps):
        chosen = []
        for rows, starts, sizes in sources:
            draw = torch.rand(
                count, half, generator=generator, device=generator.device, dtype=torch.float64
            )
            # rand is below 1, but its product with a large size may round up to it.
            offset = torch.minimum((draw * sizes).long(), sizes - 1)
            chosen.append(rows[starts + offset])
        yield vectors[torch.cat(chosen, 1)], member


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackNetworks:
    """One network a class, stacked along the first dimension: ReLU hidden layer, one logit.

    Args:
        inner: (classes, width, hidden) weights.
        inner_bias: (classes, 1, hidden).
        outer: (classes, hidden, 1) weights.
        outer_bias: (classes, 1, 1).
    """

    inner: Tensor
    inner_bias: Tensor
    outer: Tensor
    outer_bias: Tensor

    @classmethod
    def drawn(
        cls, count: int, width: int, hidden: int, generator: torch.Generator
    ) -> AttackNetworks:
        """Fresh networks, uniform in +-1 / sqrt(fan-in) as torch's own linear layers.

        Args:
            count: number of classes.
            width: length of a probability vector.
            hidden: ReLU units.
            generator: draws the weights; they lie on its device.
        """

        def uniform(fan_in: int, *shape: int) -> Tensor:
            draw = torch.rand(*shape, generator=generator, device=generator.device)
            return (2 * draw - 1) / math.sqrt(fan_in)

        return cls(
            inner=uniform(width, count, width, hidden),
            inner_bias=uniform(width, count, 1, hidden),
            outer=uniform(hidden, count, hidden, 1),
            outer_bias=uniform(hidden, count, 1, 1),
        )

    def logits(self, vectors: Tensor) -> Tensor:
        """Log-odds of membership, (classes, b), of `vectors` (classes, b, width) float32."""
        hidden = torch.baddbmm(self.inner_bias, vectors, self.inner).relu()
        return torch.baddbmm(self.outer_bias, hidden, self.outer).squeeze(2)

    def trained(self, batches: Iterable[Batch], learning_rate: float) -> AttackNetworks:
        """Networks after one Adam step on the cross-entropy of each batch.

        The loss is summed over the classes and Adam works element by element, so a class's network
        is what it would be if it had been trained alone.

        Args:
            batches: vectors (classes, b, width) float32 and membership (classes, b) float32.
            learning_rate: of Adam.
        """
        weights = [
            tensor.clone().requires_grad_()
            for tensor in (self.inner, self.inner_bias, self.outer, self.outer_bias)
        ]
        network = AttackNetworks(
            inner=weights[0], inner_bias=weights[1], outer=weights[2], outer_bias=weights[3]
        )
        optimiser = torch.optim.Adam(weights, lr=learning_rate)
        for vectors, member in batches:
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                network.logits(vectors), member, reduction="none"
            )
            optimiser.zero_grad()
            torch.autograd.backward(loss.mean(1).sum())
            optimiser.step()
        final = [tensor.detach() for tensor in weights]
        return AttackNetworks(
            inner=final[0], inner_bias=final[1], outer=final[2], outer_bias=final[3]
        )

    def log_odds(self, vectors: Tensor, classes: Tensor, batch: int = 4096) -> Tensor:
        """Log-odds of membership of each record by the network of its class.

        Args:
            vectors: (n, width).
            classes: (n,) int64.
            batch: records at a time; bounds the memory.

        Returns:
            (n,) float64.
        """
        scores = torch.zeros(len(vectors), dtype=torch.float64, device=vectors.device)
        for c in range(len(self.inner)):
            rows = (classes == c).nonzero().squeeze(1)
            network = AttackNetworks(
                inner=self.inner[c : c + 1],
                inner_bias=self.inner_bias[c : c + 1],
                outer=self.outer[c : c + 1],
                outer_bias=self.outer_bias[c : c + 1],
            )
            for start in range(0, len(rows), batch):
                part = rows[start : start + batch]
                scores[part] = network.logits(vectors[part].float()[None])[0].double()
        return scores


def _by_class(classes: Tensor, chosen: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The chosen rows sorted by class, where each class starts among them, and how many it has."""
    rows = chosen.nonzero().squeeze(1)
    sizes = torch.bincount(classes[rows], minlength=count)
    return rows[classes[rows].argsort(stable=True)], sizes.cumsum(0) - sizes, sizes


def _check_records(inputs: Tensor, labels: Tensor) -> None:
    if labels.dim() != 1 or len(inputs) != len(labels):
        raise ConfigError(
            f"one label a record expected, {len(inputs)} records and labels of shape "
            f"{tuple(labels.shape)} came"
        )


def _classes_of(labels: Tensor, count: int) -> Tensor:
    if len(labels) and not (labels.min() >= 0 and labels.max() < count):
        raise ConfigError(
            f"labels 0 to {count - 1} expected, {int(labels.min())} to {int(labels.max())} came"
        )
    return labels.long()
