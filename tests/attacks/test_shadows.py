"""The shadow ensemble: who is in, what is kept, how it goes on, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from joblib import parallel_config
from torch import Tensor, nn

from tacit.attacks import shadows
from tacit.attacks.shadows import (
    Control,
    References,
    ShadowEnsemble,
    as_it_is,
    control_of,
    halves,
)
from tacit.core.errors import ConfigError, DataError, Diverged, TacitWarning
from tacit.nn.networks import mlp
from tacit.nn.stacked import Recipe, Trainer

N, K, CLASSES = 40, 6, 4
RECIPE = Recipe(epochs=25, batch_size=5, learning_rate=0.02)
TRAINER = Trainer(
    network=mlp((2, 3), (16,), CLASSES, nn.Tanh, generator=torch.Generator().manual_seed(0)), recipe=RECIPE,
)  # fmt: skip


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


INPUTS = torch.rand(N, 2, 3, generator=seeded(1))
LABELS = torch.randint(0, CLASSES, (N,), generator=seeded(2))
INSIDE = halves(N, K, seeded(3))


def upside_down(inputs: Tensor) -> Tensor:
    return inputs.flip(1)


def by_hand(inputs: Tensor, labels: Tensor, generator: torch.Generator) -> nn.Module:
    return TRAINER(inputs, labels, generator)


def trained(seed: int = 4, **settings) -> References:
    settings.setdefault("train_fn", TRAINER)
    return ShadowEnsemble(**settings).train(INPUTS, LABELS, INSIDE, seeded(seed))


@pytest.fixture(scope="module")
def whole() -> References:
    return trained(queries=(as_it_is, upside_down))


# --- who is in


@pytest.mark.parametrize("records", [2, 40, 41])
def test_halves_are_balanced_both_ways(records: int) -> None:
    inside = halves(records, 8, seeded())
    assert inside.shape == (8, records) and inside.dtype == np.bool_
    assert (inside.sum(0) == 4).all()
    assert set(inside.sum(1)) <= {records // 2, records - records // 2}
    assert (inside[0::2] == ~inside[1::2]).all()


def test_halves_are_random_and_pairs_independent() -> None:
    inside = halves(1000, 200, seeded())
    together = (inside[0::2].astype(float) - 0.5) @ (inside[0::2].astype(float) - 0.5).T / 1000
    apart = together[~np.eye(100, dtype=bool)]
    assert np.abs(apart).max() < 0.05  # six standard deviations of 1 / (4 sqrt(1000))
    assert abs(apart.std() * 4 * np.sqrt(1000) - 1) < 0.1
    assert (halves(1000, 200, seeded()) == inside).all()


def test_halves_refuse_what_cannot_be_halved() -> None:
    for records, models in ((10, 3), (10, 0), (1, 4)):
        with pytest.raises(ConfigError, match="expected"):
            halves(records, models, seeded())


# --- what comes out


def test_every_model_is_what_it_would_be_alone(whole: References) -> None:
    """The stack against a train_fn that trains one model after another, on the same generators."""
    loop = trained(train_fn=by_hand, queries=(as_it_is, upside_down))
    np.testing.assert_allclose(whole.logits, loop.logits, atol=1e-3, rtol=1e-3)
    assert np.abs(whole.logits[0] - whole.logits[1]).max() > 0.1
    shape = whole.models, whole.queries, whole.records, whole.classes
    assert shape == whole.logits.shape == (K, 2, N, CLASSES)
    assert whole.logits.dtype == np.float32 and not whole.logits.flags.writeable
    assert (whole.labels == LABELS.numpy()).all() and (whole.inside == INSIDE).all()


def test_models_know_the_records_that_the_masks_say_and_answer_every_query(
    whole: References,
) -> None:
    right = whole.logits[:, 0].argmax(-1) == whole.labels
    assert right[whole.inside].mean() > right[~whole.inside].mean() + 0.25
    turned = ShadowEnsemble(train_fn=TRAINER).train(
        torch.cat([INPUTS, INPUTS.flip(1)]), LABELS.repeat(2),
        np.concatenate([INSIDE, np.zeros_like(INSIDE)], 1), seeded(4),
    )  # fmt: skip
    np.testing.assert_allclose(turned.logits[:, 0, N:], whole.logits[:, 1], atol=1e-3)


def test_stacks_are_cut_to_memory_and_change_nothing(
    whole: References, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sizes = []
    together = Trainer.together

    def noted(self, inputs, labels, rows, generators):
        sizes.append(len(rows))
        return together(self, inputs, labels, rows, generators)

    monkeypatch.setattr(Trainer, "together", noted)
    each = TRAINER.bytes_of(TRAINER.drawn(seeded()), INPUTS)
    for memory, expected in ((4 * each + 1, [4, 2]), (1, [1] * 6)):
        sizes.clear()
        found = trained(memory=memory, folder=tmp_path / str(memory))
        assert sizes == expected
        np.testing.assert_allclose(found.logits[:, 0], whole.logits[:, 0], atol=1e-3)


def test_models_of_other_sizes_are_trained_in_stacks_of_as_many_steps() -> None:
    inside = np.zeros((5, N), np.bool_)
    for k, size in enumerate((5, 17, 20, 4, 16)):
        inside[k, torch.randperm(N, generator=seeded(k))[:size].numpy()] = True
    found = ShadowEnsemble(train_fn=TRAINER).train(INPUTS, LABELS, inside, seeded())
    loop = ShadowEnsemble(train_fn=by_hand).train(INPUTS, LABELS, inside, seeded())
    np.testing.assert_allclose(found.logits, loop.logits, atol=1e-3, rtol=1e-3)


def test_what_cannot_be_stacked_is_trained_one_by_one() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, CLASSES))
    trainer = Trainer(network=network, recipe=Recipe(epochs=3, batch_size=7, learning_rate=0.01))
    found = ShadowEnsemble(train_fn=trainer).train(INPUTS, LABELS, INSIDE[:2], seeded())
    loop = ShadowEnsemble(train_fn=trainer.__call__).train(INPUTS, LABELS, INSIDE[:2], seeded())
    np.testing.assert_array_equal(found.logits, loop.logits)


@pytest.mark.parametrize("train_fn", [TRAINER, by_hand], ids=["stack", "loop"])
def test_workers_change_nothing(whole: References, train_fn) -> None:
    each = TRAINER.bytes_of(TRAINER.drawn(seeded()), INPUTS)
    with parallel_config(backend="threading"):
        found = trained(train_fn=train_fn, workers=2, memory=2 * 2 * 2 * each)  # stacks of two
    np.testing.assert_allclose(found.logits[:, 0], whole.logits[:, 0], atol=1e-3)


# --- going on


def test_a_killed_run_goes_on_and_trains_only_what_is_missing(
    tmp_path: Path, whole: References
) -> None:
    """Killed for good, in a process of its own, after the second of six models."""
    folder = tmp_path / "kept"

    def kill(done: int, total: int) -> None:
        if done == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if not child:
        trained(train_fn=by_hand, folder=folder, progress=kill)
        os._exit(3)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    with pytest.raises(DataError, match="2 of 6"):
        References.open(folder)
    calls, told = [], []

    def counted(*given) -> nn.Module:
        calls.append(1)
        return by_hand(*given)

    counted.__module__, counted.__qualname__ = by_hand.__module__, by_hand.__qualname__
    found = trained(train_fn=counted, folder=folder, progress=lambda *said: told.append(said))
    assert len(calls) == 4 and told == [(3, 6), (4, 6), (5, 6), (6, 6)]
    np.testing.assert_allclose(found.logits[:, 0], whole.logits[:, 0], atol=1e-3)
    assert isinstance(found.logits, np.memmap)
    again = trained(train_fn=counted, folder=folder)
    opened = References.open(folder)
    assert len(calls) == 4 and again.control == opened.control == found.control
    np.testing.assert_array_equal(opened.logits, found.logits)
    assert isinstance(opened.logits, np.memmap) and (folder.stat().st_mode & 0o077) == 0


def test_a_folder_of_other_models_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    trained(folder=folder)
    other = Trainer(network=TRAINER.network, recipe=Recipe(epochs=1, batch_size=5, learning_rate=0.02))  # fmt: skip
    wider = Trainer(network=mlp((2, 3), (17,), CLASSES, nn.Tanh, generator=seeded()), recipe=RECIPE)
    for what, settings in {
        "recipe": {"train_fn": other}, "network": {"train_fn": wider}, "seed": {"seed": 5},
        "network, recipe, train_fn": {"train_fn": by_hand}, "queries": {"queries": (upside_down,)},
    }.items():  # fmt: skip
        with pytest.raises(ConfigError, match=f"another {what}: give another folder"):
            trained(folder=folder, **settings)
    ensemble = ShadowEnsemble(train_fn=TRAINER, folder=folder)
    for inputs, labels, inside, what in (
        (INPUTS + 1e-6, LABELS, INSIDE, "pool"),
        (INPUTS, 3 - LABELS, INSIDE, "pool"),
        (INPUTS, LABELS, INSIDE[:4], "inside"),
        (INPUTS, LABELS, INSIDE[::-1], "inside"),
    ):
        with pytest.raises(ConfigError, match=f"another {what}"):
            ensemble.train(inputs, labels, inside, seeded(4))
    trained(folder=folder)


def test_a_damaged_or_foreign_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    with pytest.raises(DataError, match="no shadow models"):
        References.open(folder)
    trained(folder=folder)
    logits = (folder / "logits.npy").read_bytes()
    (folder / "logits.npy").write_bytes(logits[:-1])
    for read in (lambda: References.open(folder), lambda: trained(folder=folder)):
        with pytest.raises(DataError, match="damaged"):
            read()
    (folder / "logits.npy").write_bytes(logits)
    state = (folder / "shadows.json").read_text()
    for wrong in (state[:-5], "[]", json.dumps({**json.loads(state), "finished": ["0"]})):
        (folder / "shadows.json").write_text(wrong)
        with pytest.raises(DataError, match="damaged"):
            References.open(folder)
    (folder / "shadows.json").unlink()
    with pytest.raises(ConfigError, match="something else"):
        trained(folder=folder)


# --- memory


def test_out_of_memory_halves_the_stacks(
    whole: References, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    together = Trainer.together

    def small(self, inputs, labels, rows, generators):
        sizes.append(len(rows))
        if len(rows) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return together(self, inputs, labels, rows, generators)

    monkeypatch.setattr(Trainer, "together", small)
    with pytest.warns(TacitWarning, match="memory ran out: stacks of"):
        found = trained()
    assert sizes == [6, 3, 1, 1, 1, 1, 1, 1]
    np.testing.assert_allclose(found.logits[:, 0], whole.logits[:, 0], atol=1e-3)

    def none(*given):
        raise MemoryError

    monkeypatch.setattr(Trainer, "together", none)
    with (
        pytest.warns(TacitWarning, match="memory ran out"),
        pytest.raises(ConfigError, match="does not do for one"),
    ):
        trained()


def test_logits_that_memory_does_not_hold_need_a_folder(tmp_path: Path) -> None:
    size = 4 * K * N * CLASSES
    with pytest.raises(ConfigError, match=f"{size} bytes of logits do not fit"):
        trained(memory=2 * size - 2)
    assert trained(memory=2 * size).models == trained(memory=1, folder=tmp_path).models


# --- the control


def careless(inputs: Tensor, labels: Tensor, generator: torch.Generator) -> nn.Module:
    """Trains on the whole pool, whatever it is given."""
    return TRAINER(INPUTS, LABELS, generator)


def test_models_that_do_not_know_their_records_are_told_of(whole: References) -> None:
    with pytest.warns(TacitWarning, match="ignores the records it is given"):
        found = trained(train_fn=careless)
    assert found.control is not None and found.control.p_value is not None
    assert found.control.p_value > 0.05 and abs(found.control.gap) < 0.1
    assert whole.control is not None and whole.control.gap > 0.5
    assert whole.control.p_value == pytest.approx(1 / 720)


def test_models_that_ignore_records_and_generator_are_an_error() -> None:
    fixed = TRAINER(INPUTS, LABELS, seeded())
    calls = iter([fixed, fixed])  # found out before a third is trained
    with pytest.raises(ConfigError, match=r"0 and 1 .* same to the bit"):
        trained(train_fn=lambda *given: next(calls))
    others = [TRAINER(INPUTS, LABELS, seeded(k)) for k in range(K - 1)]
    calls = iter([*others, others[1]])
    with pytest.raises(ConfigError, match=r"1 and 5 .* same to the bit"):
        trained(train_fn=lambda *given: next(calls))


def test_the_control_s_p_value_is_uniform_without_a_gap_and_small_with_one() -> None:
    generator = seeded(9)
    found = []
    for _ in range(200):
        losses = torch.rand(8, 30, generator=generator).double().numpy()
        # Hard records, which must not hide the gap.
        losses += 50 * torch.rand(30, generator=generator).double().numpy()
        inside = halves(30, 8, generator)
        found.append(control_of(losses, inside, generator).p_value)
        control = control_of(losses - 0.5 * inside, inside, generator)
        assert control.p_value is not None and control.p_value <= 0.05
    assert 0.02 <= np.mean(np.array(found) <= 0.1) <= 0.2 and 0.4 < np.mean(found) < 0.6


def test_the_control_counts_every_permutation_of_few_models_and_leaves_fewer_alone() -> None:
    inside = halves(30, 4, seeded())
    assert control_of(1.0 - inside, inside, seeded()) == (pytest.approx(1.0), pytest.approx(1 / 24))
    assert control_of(0.0 + inside, inside, seeded()).p_value == 1
    assert control_of(1.0 - inside[:3], inside[:3], seeded()).p_value is None


# --- references


def test_a_target_s_partner_is_not_among_its_references(whole: References) -> None:
    rest, logits, inside = whole.against(3)
    assert rest.models == K - 2
    assert (rest.inside.sum(0) == K // 2 - 1).all()  # who was in the target shows nowhere
    np.testing.assert_array_equal(rest.logits, whole.logits[[0, 1, 4, 5]])
    np.testing.assert_array_equal(logits, whole.logits[3])
    assert (inside == INSIDE[3]).all()
    with pytest.raises(ConfigError, match="no reference is left"):
        whole.first(2).against(0)
    for wrong in (-1, K):
        with pytest.raises(ConfigError, match="0 to 5"):
            whole.against(wrong)


def test_parts_of_references(whole: References, tmp_path: Path) -> None:
    assert np.shares_memory(whole.first(4).logits, whole.logits) and whole.first(4).models == 4
    some = whole.at(np.array([5, 2]))
    np.testing.assert_array_equal(some.logits, whole.logits[:, :, [5, 2]])
    assert (some.inside == INSIDE[:, [5, 2]]).all() and (some.labels == LABELS[[5, 2]].numpy()).all()  # fmt: skip
    for wrong in (0, K + 1):
        with pytest.raises(ConfigError, match="expected"):
            whole.first(wrong)
    whole.save(tmp_path / "saved")
    opened = References.open(tmp_path / "saved")
    np.testing.assert_array_equal(opened.logits, whole.logits)
    assert (opened.inside == INSIDE).all() and isinstance(opened.control, Control)
    assert opened.control == whole.control
    with pytest.raises(ConfigError, match="another"):
        trained(folder=tmp_path / "saved")


def test_references_that_do_not_fit_are_refused(whole: References) -> None:
    good = {"inside": whole.inside, "logits": whole.logits, "labels": whole.labels}
    for wrong in (
        {"inside": whole.inside[1:]}, {"logits": whole.logits[:, 0]}, {"labels": whole.labels[1:]},
        {"inside": whole.inside.astype(int)}, {"logits": whole.logits.astype(float)}, {"labels": whole.labels + CLASSES},
    ):  # fmt: skip
        with pytest.raises(ConfigError, match="expected"):
            References(**(good | wrong))


# --- bad input


def test_bad_pools_masks_and_settings_are_refused() -> None:
    ensemble = ShadowEnsemble(train_fn=TRAINER)
    everybody = np.ones_like(INSIDE)
    for inputs, labels, inside in (
        (INPUTS, LABELS[1:], INSIDE), (INPUTS, LABELS.float(), INSIDE), (INPUTS, LABELS - 1, INSIDE),
        (INPUTS, LABELS, INSIDE[:, 1:]), (INPUTS, LABELS, INSIDE.astype(int)), (INPUTS, LABELS, everybody),
        (INPUTS, LABELS, ~everybody), (INPUTS, LABELS, INSIDE[:0]), (INPUTS, LABELS + 1, INSIDE),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match="expected"):
            ensemble.train(inputs, labels, inside, seeded())
    for wrong in ({"memory": 0}, {"workers": 0}, {"queries": ()}):
        with pytest.raises(ConfigError, match="expected"):
            ShadowEnsemble(train_fn=TRAINER, **wrong)
    with pytest.raises(ConfigError, match="1 worker expected"):
        ShadowEnsemble(train_fn=TRAINER, workers=2).train(
            INPUTS.to("meta"), LABELS, INSIDE, seeded()
        )


def test_queries_that_draw_or_drop_records_are_refused() -> None:
    generator = seeded()
    with pytest.raises(ConfigError, match="other records at its second call"):
        trained(queries=(as_it_is, lambda x: x + torch.rand(x.shape, generator=generator)))
    with pytest.raises(ConfigError, match="query 1 gave 1 records for 2"):
        trained(queries=(as_it_is, lambda x: x[:1]))


def test_bad_models_are_refused() -> None:
    class Wrong(nn.Module):
        def __init__(self, made) -> None:
            super().__init__()
            self.made = made

        def forward(self, x: Tensor) -> Tensor:
            return self.made(x)

    with pytest.raises(ConfigError, match=r"logits .n, classes"):
        trained(train_fn=lambda *given: Wrong(lambda x: x))
    with pytest.raises(ConfigError, match="labels 0 to 1"):
        trained(train_fn=lambda *given: Wrong(lambda x: x[:, :, 0]))
    with pytest.raises(Diverged, match="not finite"):
        trained(train_fn=lambda *given: Wrong(lambda x: x.new_full((len(x), CLASSES), torch.inf)))
    widths = iter(range(CLASSES, 20))
    with pytest.raises(ConfigError, match="a shadow model gives 5 logits, others 4"):
        trained(train_fn=lambda *given: nn.Sequential(nn.Flatten(), nn.Linear(6, next(widths))))


def test_seeds_of_models_differ_whatever_the_first() -> None:
    for seed in (0, 1, (1 << 32) - 1):
        job = shadows._Job(TRAINER, INPUTS, LABELS, INSIDE, (as_it_is,), seed, torch.device("cpu"))
        assert len({job.generator(k).initial_seed() for k in range(1000)}) == 1000
