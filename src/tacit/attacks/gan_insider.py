"""The GAN insider: a participant of collaborative training makes images of a class that only others hold.

It follows the protocol to the letter, whatever that protects: it is a `tacit.nn.updates.LocalWork` in the place of an honest
one's, so that masks, encryption and selection are put around its updates like around any other.

Holds:
    its own records, and the shared model of each round or turn that it takes part in, as every participant does; what was
    agreed on an update (steps, batch, learning rate). It knows that some class, the *target*, is learned that it has no
    record of, and that the model has one class, the *fresh* one, that nobody has records of.
Recovers:
    images like the target's records. Where a class is one person, or one person's handwriting, these show that person.
Protects:
    nothing that hides updates does. Noise on each participant's whole update does, as it keeps the model from learning what
    one participant alone holds; it costs the class.

Steps, in each of its rounds (section 5 of the paper, recalled):

1. The shared model, once it knows enough (`start_accuracy` on the insider's own records), is the discriminator of a GAN.
   Its parameters are not changed here.
2. The generator takes some steps towards images that the model calls the target: it lowers -log p(target).
3. *Injection.* Images of the generator, labelled as the fresh class, are put beside the insider's own records in its
   local training. What it uploads teaches the model to tell them from the target, and makes the victim's next updates say
   more of what the target looks like.
4. It uploads as agreed.

With ``injected`` of 0 there is no step 3 (a passive insider): its updates are to the bit those of an honest one, so that
nobody can tell. Its generator then finds what the model takes for the target, which need not look like it.

What we changed: batches of more than one; some generated records beside each own batch in place of one class of them;
`boost`, for schemes that take a mean over many, where the paper's server adds; a generator with batch normalisation, after
Radford et al. (ICLR 2016), whose images are in (0, 1) like the records. For classes of few records, where a generator runs
in circles or ends in one image: `averaged` parameters (Yazici et al., ICLR 2019), of which half of the injected records
come, so that the model does not forget what it was shown before; and `spread` (Mao et al., CVPR 2019).

If the generator diverges, the insider goes on as an honest participant, and `Insider.ended` says so: an attack that fails
is an outcome.

Source:
    [2] B. Hitaj, G. Ateniese, F. Perez-Cruz. Deep Models Under the GAN: Information Leakage from Collaborative Deep
    Learning. CCS 2017, sections 5 and 6 (recalled).
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (the name that PyTorch code uses)

from tacit.core.errors import ConfigError
from tacit.core.wire import Array, Message, decode, encode
from tacit.nn.federated import Task
from tacit.nn.generators import image_generator, latents
from tacit.nn.local_work import HonestTraining, accuracy, load_parameters
from tacit.nn.updates import LocalUpdate
from tacit.parties.roles import Role

MakesGenerator = Callable[[torch.Generator], nn.Module]
"""Draws a network from latent vectors, (n, latent), to records in (0, 1)."""

_JUDGED = 1000
_NEVER = -1
_TINY = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class GANInsider:
    """How the insider goes about it.

    Args:
        target: the class that it wants images of; it holds none of its records.
        fresh: the class that it gives to generated images; nobody holds records of it.
        start_accuracy: it begins once the shared model is right on that share of its own records,
        start_round: and not before this round.
        steps: of the generator, a round.
        batch: images of a step.
        learning_rate: of the generator's Adam.
        momentum: of the generator's Adam: its beta1.
        injected: generated records beside each batch of the local training; 0: a passive insider.
        boost: an update with injected records behind it is multiplied by this. Among many participants the mean makes little
            of one's update, and no size is agreed on; but the server may look at norms, and clips undo it.
        averaged: the generator that is shown is a moving average of the one that is trained: this share of it stays each
            round, less in the first rounds; half of the injected records are its own. 0: no average.
        spread: weight of a loss that is the greater, the less images differ for how much their latent vectors do.
        latent: numbers that an image is made from.
        width: channels before the generator's last layer.
        smooth: see `tacit.nn.generators.image_generator`.
        network: makes another generator; None for `tacit.nn.generators.image_generator`.
        seed: of the generator's first weights and of all its draws, with the round.
        watched: keep a few images every so many rounds; 0 for none.

    Raises:
        ConfigError: a setting is out of range, or the target is the fresh class.
    """

    target: int
    fresh: int
    start_accuracy: float = 0.85
    start_round: int = 0
    steps: int = 15
    batch: int = 64
    learning_rate: float = 5e-4
    momentum: float = 0.5
    injected: int = 32
    boost: float = 1.0
    averaged: float = 0.0
    spread: float = 0.0
    latent: int = 100
    width: int = 32
    smooth: bool = False
    network: MakesGenerator | None = field(default=None, repr=False)
    seed: int = 0
    watched: int = 0

    def __post_init__(self) -> None:
        labels = self.target, self.fresh
        if (
            not all(isinstance(one, int) for one in labels)
            or labels[0] == labels[1]
            or min(labels) < 0
        ):
            raise ConfigError(
                f"a target and a fresh class, two different labels from 0, expected, got {self.target} and {self.fresh}"
            )
        if not 0 <= self.start_accuracy <= 1 or min(self.start_round, self.watched) < 0:
            raise ConfigError(
                "start_accuracy in [0, 1], start_round and watched from 0 expected, got "
                f"{self.start_accuracy}, {self.start_round} and {self.watched}"
            )
        if min(self.steps, self.latent, self.width) < 1 or self.batch < 2 or self.injected < 0:
            raise ConfigError(
                "steps, latent and width from 1, a batch from 2 and injected from 0 expected, got "
                f"{self.steps}, {self.latent}, {self.width}, {self.batch} and {self.injected}"
            )
        rates, shares = (self.learning_rate, self.boost), (self.momentum, self.averaged)
        if (
            not all(0 < rate < math.inf for rate in rates)
            or not all(0 <= share < 1 for share in shares)
            or not 0 <= self.spread < math.inf
        ):
            raise ConfigError(
                "learning_rate and boost above 0, spread from 0, all finite, momentum and averaged in [0, 1) expected, got "
                f"{self.learning_rate}, {self.boost}, {self.spread}, {self.momentum} and {self.averaged}"
            )

    @property
    def passive(self) -> bool:
        """Whether nothing is injected."""
        return self.injected == 0

    def draws(self, label: str, round: int = 0) -> torch.Generator:
        """For one purpose in one round."""
        mixed = hashlib.sha256(f"{self.seed}/{label}/{round}".encode()).digest()[:4]
        return torch.Generator().manual_seed(int.from_bytes(mixed, "little"))

    def generator(self, input_shape: tuple[int, ...]) -> nn.Module:
        """The generator with its first weights."""
        drawn = self.draws("weights")
        if self.network is not None:
            return self.network(drawn)
        return image_generator(
            input_shape, self.latent, self.width, smooth=self.smooth, generator=drawn
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What the insider saw in a round.

    Args:
        round: which.
        accuracy: of the shared model on its own records.
        confidence: mean probability of the target that the shared model gives generated images, after the generator's steps;
            None where there were none.
        images: a few, from the same latent vectors each time, (k, *input shape); None where none were kept.
    """

    round: int
    accuracy: float
    confidence: float | None = None
    images: Tensor | None = field(default=None, repr=False)


class Insider:
    """The local work of an insider. It has a state of its own: the generator, and whether the attack has begun.

    Args:
        attack: how it goes about it.
        honest: the training in whose place it stands: its records, and what was agreed on updates.

    Attributes:
        began: the first round of the attack; None before.
        ended: why it ended before the training did, in words; None where it did not.
        moments: what it saw, round by round; not part of the state.

    Raises:
        ConfigError: the model has no room for the fresh class or does not know the target, the insider holds records of
            either, or the generator does not make records like its own.
    """

    def __init__(self, attack: GANInsider, honest: HonestTraining) -> None:
        _check_room(attack, honest.module, honest.inputs[:1])
        _check_own(attack, honest.labels, "the insider")
        self.attack = attack
        self.began: int | None = None
        self.ended: str | None = None
        self.moments: list[Moment] = []
        self._honest = honest
        self._discriminator = copy.deepcopy(honest.module).eval().requires_grad_(False)
        self._generator = attack.generator(tuple(honest.inputs.shape[1:]))
        _check_generator(attack, self._generator, honest.inputs[:2])
        self._shown = copy.deepcopy(self._generator) if attack.averaged else self._generator
        self._optimiser = torch.optim.Adam(
            self._generator.parameters(),
            lr=attack.learning_rate,
            betas=(attack.momentum, 0.999),
        )

    def update(self, model: Sequence[Array], round: int) -> LocalUpdate:
        """An update like an honest one's in all that shows of it; with injected records behind it, once it has begun.

        Raises:
            Diverged: the local training did, as an honest one's would.
        """
        attack = self.attack
        load_parameters(self._discriminator, model)
        inputs, labels = self._honest.inputs[:_JUDGED], self._honest.labels[:_JUDGED]
        right = accuracy(self._discriminator, inputs, labels)
        if self.began is None and round >= attack.start_round and right >= attack.start_accuracy:
            self.began = round
        confidence = self._improve(round) if self.attacking else None
        self._watch(round, right, confidence)
        if not self.attacking or attack.passive:
            return self._honest.update(model, round)
        made = self._honest.update_beside(model, round, self._injected(round))
        if attack.boost == 1:
            return made
        louder = tuple(np.asarray(a, np.float32) * np.float32(attack.boost) for a in made.arrays)
        return LocalUpdate(arrays=louder, examples=made.examples)

    @property
    def attacking(self) -> bool:
        """Whether it has begun and not ended."""
        return self.began is not None and self.ended is None

    def samples(self, count: int, *, label: str = "samples") -> Tensor:
        """Images that the generator makes as it stands, (count, *input shape), drawn by the seed and ``label``.

        Raises:
            ConfigError: there are none to make.
        """
        if count < 1:
            raise ConfigError(f"samples: a count from 1 expected, got {count}")
        return self._made(self._shown, max(count, 2), self.attack.draws(label))[:count]

    def export(self) -> bytes:
        """The generator with its average and optimiser, and where the attack stands."""
        held = {"parameters": [p.detach().numpy() for p in self._generator.parameters()]}
        held["average"] = [
            p.detach().numpy() for p in self._shown.parameters() if self.attack.averaged
        ]
        states = self._optimiser.state
        for name in ("exp_avg", "exp_avg_sq"):
            held[name] = [
                states[p][name].numpy() for p in self._generator.parameters() if p in states
            ]
        steps = {int(state["step"]) for state in states.values()}
        return encode(
            Message(
                "insider", **held, steps=max(steps, default=0), ended=self.ended or "",
                began=_NEVER if self.began is None else self.began,
            )
        )  # fmt: skip

    def restore(self, state: bytes) -> None:
        """Continue from an exported state; where it is refused, the insider stays as it was.

        Raises:
            WireError: these bytes are not one of such a generator.
        """
        message, parameters = decode(state), list(self._generator.parameters())
        like = [p.detach().numpy() for p in parameters]
        values = message.arrays("parameters", like=like)
        average = message.arrays("average", like=like if self.attack.averaged else [])
        steps = message.integer("steps", low=0)
        moments = {
            name: message.arrays(name, like=like if steps else [])
            for name in ("exp_avg", "exp_avg_sq")
        }
        began, ended = message.integer("began", low=_NEVER), message.text("ended")
        load_parameters(self._generator, values)
        if self.attack.averaged:
            load_parameters(self._shown, average)
        self._optimiser.state.clear()
        for at, parameter in enumerate(parameters if steps else ()):
            self._optimiser.state[parameter] = {
                "step": torch.tensor(float(steps)),
                **{name: torch.from_numpy(np.array(of[at])) for name, of in moments.items()},
            }
        self.began, self.ended = None if began == _NEVER else began, ended or None

    def _improve(self, round: int) -> float | None:
        """Steps of the generator; gives back how sure the model is of its images after them, or None if it diverged."""
        attack, drawn = self.attack, self.attack.draws("steps", round)
        target = torch.full((attack.batch,), attack.target)
        for _ in range(attack.steps):
            z = latents(attack.batch, attack.latent, drawn)
            made = self._generator(z)
            loss = F.cross_entropy(self._discriminator(made), target)
            if attack.spread:
                loss = loss + attack.spread / (_apart(made) / _apart(z) + _TINY)
            self._optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            if not all(
                bool(p.grad.isfinite().all()) for p in self._generator.parameters() if p.grad is not None
            ):  # fmt: skip
                self.ended = f"round {round}: the generator diverged (loss {loss.item():g})"
                return None
            self._optimiser.step()
        if attack.averaged:
            since = round - (self.began or 0)
            stays = min(attack.averaged, (1 + since) / (10 + since))
            pairs = zip(self._shown.parameters(), self._generator.parameters(), strict=True)
            with torch.no_grad():
                for shown, trained in pairs:
                    shown.lerp_(trained, 1 - stays)
        made = self._made(self._shown, attack.batch, drawn)
        own = self._made(self._generator, attack.batch, drawn) if attack.averaged else made
        if not bool(made.isfinite().all() and own.isfinite().all()):
            self.ended = f"round {round}: the generator diverged (an image is not finite)"
            return None
        with torch.no_grad():
            scores = self._discriminator(made)
        return float(scores.softmax(1)[:, attack.target].mean())

    def _made(self, network: nn.Module, count: int, drawn: torch.Generator) -> Tensor:
        with torch.no_grad():
            made: Tensor = network(latents(count, self.attack.latent, drawn))
        return made

    def _injected(self, round: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Generated records under the fresh label, for one local step after another."""
        attack, drawn = self.attack, self.attack.draws("injected", round)
        labels = torch.full((attack.injected,), attack.fresh)
        many = max(attack.injected, attack.batch)
        while True:
            made = self._made(self._generator, many, drawn)[: attack.injected]
            if attack.averaged:
                made[::2] = self._made(self._shown, many, drawn)[: len(made[::2])]
            yield made, labels

    def _watch(self, round: int, right: float, confidence: float | None) -> None:
        images = None
        if self.attack.watched and confidence is not None and round % self.attack.watched == 0:
            images = self.samples(self.attack.batch, label="watched")[:8]
        self.moments.append(
            Moment(round=round, accuracy=right, confidence=confidence, images=images)
        )


@dataclass(slots=True)
class InsiderSlot:
    """An insider's place in a task: gives it the honest training, and the audit the insider.

    Args:
        attack: how the insider goes about it.
    """

    attack: GANInsider
    _made: Insider | None = field(default=None, repr=False)

    def __call__(self, honest: HonestTraining) -> Insider:
        """The work in the place of ``honest``: see `tacit.nn.local_work.Instead`."""
        self._made = Insider(self.attack, honest)
        return self._made

    @property
    def insider(self) -> Insider:
        """The insider of the last run.

        Raises:
            ConfigError: there was none yet.
        """
        if self._made is None:
            raise ConfigError("the insider has taken part in nothing yet: train first")
        return self._made


def place(task: Task, attacks: Mapping[Role, GANInsider]) -> tuple[Task, dict[Role, InsiderSlot]]:
    """A task in which some owners attack, and their slots. All records must be in this process, so that they can be checked.

    Args:
        task: what is to be learned; its model has an output for the fresh class.
        attacks: by the owner who attacks.

    Raises:
        ConfigError: nobody holds the target, or somebody the fresh class; the insider holds the target; the model has no
            room for the fresh class; an insider is no owner of the task.
    """
    here = task.here()
    slots = {}
    for role, attack in sorted(attacks.items()):
        if role not in here:
            raise ConfigError(f"{role} is no owner of this task with records in this process")
        _check_room(attack, task.start, here[role][0][:1])
        _check_own(attack, here[role][1], str(role))
        held = {one: set(labels.tolist()) for one, (_, labels) in here.items()}
        if not any(attack.target in labels for labels in held.values()):
            raise ConfigError(
                f"nobody holds class {attack.target}: there is no victim; choose a target among "
                f"{sorted(set().union(*held.values()) - held[role])}"
            )
        if holders := [one for one, labels in held.items() if attack.fresh in labels]:
            raise ConfigError(
                f"{holders[0]} holds records of class {attack.fresh}, so that it is not fresh: take a class that nobody "
                f"holds, such as {task.classes}, in a model with one output more"
            )
        slots[role] = InsiderSlot(attack)
    return replace(task, instead={**task.instead, **slots}), slots


def _apart(batch: Tensor) -> Tensor:
    """Mean absolute difference of a batch's members and its members in reverse."""
    return (batch - batch.flip(0)).abs().mean()


def _check_room(attack: GANInsider, module: nn.Module, record: Tensor) -> None:
    """The model has outputs for both classes."""
    training = module.training
    with torch.no_grad():
        outputs = module.eval()(record).shape[1]
    module.train(training)
    if attack.fresh >= outputs:
        raise ConfigError(
            f"the model has {outputs} outputs and no room for the fresh class {attack.fresh}: build it, and the task, with "
            f"classes={attack.fresh + 1}; the other participants need no record of it"
        )
    if attack.target >= outputs:
        raise ConfigError(
            f"the model has {outputs} outputs: class {attack.target} is none that it learns"
        )


def _check_generator(attack: GANInsider, generator: nn.Module, records: Tensor) -> None:
    """It makes records of the insider's shape from its latent vectors."""
    try:
        with torch.no_grad():
            shape = tuple(generator(latents(2, attack.latent, attack.draws("check"))).shape)
    except RuntimeError as error:
        raise ConfigError(
            f"the generator takes no (n, {attack.latent}) latent vectors: {error}"
        ) from error
    if shape[1:] != records.shape[1:]:
        raise ConfigError(
            f"the generator makes records of {shape[1:]}, and the insider's are of {tuple(records.shape[1:])}"
        )


def _check_own(attack: GANInsider, labels: Tensor, who: str) -> None:
    """The insider holds neither class."""
    if bool((labels == attack.target).any()):
        raise ConfigError(
            f"{who} holds records of the target class {attack.target} itself, so that images of it would show nothing: "
            "choose a class that others alone hold"
        )
    if bool((labels == attack.fresh).any()):
        raise ConfigError(
            f"{who} holds records of class {attack.fresh}, so that it is not fresh: choose a class that nobody holds"
        )
