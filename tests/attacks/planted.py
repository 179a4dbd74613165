"""Reference models, a target and a population in which a signal is planted, without any network."""

import math
from types import SimpleNamespace

import numpy as np
import torch

from tacit.attacks.evidence import Evidence, Population

CLASSES = 5


def name_of(attack):
    return attack.name


def normal(generator, *shape):
    return torch.randn(shape, generator=generator, dtype=torch.float64).numpy()


def world(seed=0, models=6, queries=2, records=40, others=30, signal=4.0, target=None):
    """References, a target and a population: records of different difficulty; a model is surer of what it saw.

    ``target`` is what the target saw (records,), by default half of them.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (records + others,), generator=generator).numpy()
    inside = np.zeros((models + 1, records + others), bool)
    for k in range(models + 1):
        inside[k, torch.randperm(records, generator=generator)[: records // 2].numpy()] = True
    if target is not None:
        inside[0, :records] = target
    hard = normal(generator, records + others)
    logits = normal(generator, models + 1, queries, records + others, CLASSES)
    own = hard + 1 + signal * inside + 0.7 * normal(generator, models + 1, records + others)
    np.put_along_axis(
        logits, np.broadcast_to(labels[:, None], (*logits.shape[:3], 1)),
        np.broadcast_to(own[:, None, :, None], (*logits.shape[:3], 1)), 3,
    )  # fmt: skip
    asked, population = logits[:, :, :records], logits[:, :, records:]
    return SimpleNamespace(
        answers=asked[0], labels=labels[:records], truth=inside[0, :records],
        references=SimpleNamespace(inside=inside[1:, :records], logits=asked[1:]),
        population=Population(answers=population[0], labels=labels[records:], references=population[1:]),
    )  # fmt: skip


def evidence(made, population=True, **settings):
    others = made.population if population else None
    return Evidence.gather(made.answers, made.labels, made.references, others, **settings)


def softmax(row, temperature=1.0):
    powers = [math.exp(value / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def confidence(row, label):
    p = softmax(row)[label]
    return math.log(p / (1 - p))
