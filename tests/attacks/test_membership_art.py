"""Shokri et al.'s attack against ART's on the same scores, where ``make peers`` has installed it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from tacit.attacks.membership import ShadowModels
from tacit.attacks.shadows import References, ShadowEnsemble, halves
from tacit.audit.statistics import auc
from tacit.nn.data import load
from tacit.nn.networks import mlp
from tacit.nn.stacked import Recipe, Trainer

PYTHON = Path(__file__).resolve().parents[2] / ".peers" / "art" / "bin" / "python"
SCRIPT = Path(__file__).with_name("art_black_box.py")


def ensemble() -> References:
    data = load("digits")
    inputs, labels = data.inputs_train[:600], data.labels_train[:600]
    drawn = torch.Generator().manual_seed(0)
    labels = torch.where(
        torch.rand(600, generator=drawn) < 0.3, torch.randint(10, (600,), generator=drawn), labels
    )
    network = mlp((1, 8, 8), (32,), 10, generator=drawn)
    trainer = Trainer(network=network, recipe=Recipe(epochs=30, batch_size=50, learning_rate=0.01))
    return ShadowEnsemble(train_fn=trainer).train(inputs, labels, halves(600, 10, drawn), drawn)


def test_on_shared_scores_it_finds_what_art_finds(tmp_path: Path) -> None:
    if not PYTHON.exists():
        pytest.skip("ART is not installed beside tacit: make peers")
    rest, logits, members = ensemble().against(0)
    answers = torch.softmax(torch.from_numpy(np.array(logits[0])), 1)
    shadow = torch.softmax(torch.from_numpy(np.array(rest.logits[:, 0])), 2)
    np.savez(
        tmp_path / "scores.npz",
        shadow_answers=shadow.reshape(-1, 10).numpy(), shadow_labels=np.tile(rest.labels, rest.models),
        shadow_inside=rest.inside.reshape(-1), answers=answers.numpy(), labels=rest.labels,
    )  # fmt: skip
    subprocess.run(
        [PYTHON, SCRIPT, tmp_path / "scores.npz", tmp_path / "found.npz"],
        check=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True,
    )  # fmt: skip
    theirs = np.load(tmp_path / "found.npz", allow_pickle=False)
    generator = torch.Generator().manual_seed(1)
    networks = ShadowModels(shadows=rest.models).taught(rest, generator)
    ours = networks.log_odds(answers.double(), torch.from_numpy(rest.labels)).numpy()
    here = auc(ours[members], ours[~members])
    there = {name: auc(theirs[name][members], theirs[name][~members]) for name in theirs}
    for name, area in there.items():
        assert area > 0.55  # it works on these scores
        assert here > area - 0.02
        # What the same answers teach ranks the same records high, though no two of the three learn alike.
        assert stats.spearmanr(ours, theirs[name]).statistic > 0.25
