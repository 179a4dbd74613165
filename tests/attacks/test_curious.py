"""What a curious role makes of its observation, on updates that real training produced."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tacit.attacks.access import Knowledge, RoleView
from tacit.attacks.curious import GradientLeakage
from tacit.attacks.exposure import PlaintextExposure
from tacit.core.coins import Coins
from tacit.core.errors import ConfigError, NotEnoughEvidence
from tacit.nn.federated import Task, honest_work
from tacit.nn.local_work import Share
from tacit.parties.roles import SERVER, Role
from tacit.parties.views import FULL, Observation
from tacit.training.local_dp import LocalDP
from tacit.training.plain import Centralised, FederatedAveraging, FederatedSGD

ME = Role("owner", 0)
COINS = Coins.from_seed(b"curious")


def seen(scheme: FederatedSGD, task: Task, role: Role) -> RoleView:
    run = scheme.train(task, coins=Coins.from_seed(b"curious"), recording=FULL)
    return RoleView(scheme.observe(run.views[role], role))


def knowledge(task: Task) -> Knowledge:
    return Knowledge(architecture=task.start, input_shape=task.input_shape, classes=task.classes)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def test_the_server_divides_single_records_out_of_gradients_exactly_and_names_their_labels(
    task: Task,
) -> None:
    leaked = GradientLeakage(victims=6).reconstruct(
        seen(FederatedSGD(rounds=2), task, SERVER), knowledge(task), generator()
    )
    work = honest_work(task, Share.GRADIENT, batch_size=1)
    assert len(leaked) == 6 and {item.road for item in leaked} == {"division"}
    for item in leaked:
        sender = item.update.sender
        row = work[sender].records(item.update.round)
        inputs, labels = task.shards[sender.index]
        torch.testing.assert_close(item.images, inputs[row], rtol=1e-3, atol=1e-4)
        assert item.labels.tolist() == labels[row].tolist()


def test_a_participant_reconstructs_the_others_records_from_successive_models(task: Task) -> None:
    [item] = GradientLeakage(victims=2, iterations=1000, restarts=4).reconstruct(
        seen(FederatedSGD(rounds=1), task, ME), knowledge(task), generator()
    )
    work = honest_work(task, Share.GRADIENT, batch_size=1)
    truth = torch.cat([task.shards[i][0][work[Role("owner", i)].records(0)] for i in (1, 2)])
    errors = torch.cdist(item.images.flatten(1), truth.flatten(1)).amin(0) / 4  # root mean square
    assert item.road == "gradient matching" and float(errors.max()) < 0.1


def test_several_local_steps_are_simulated(task: Task) -> None:
    scheme = FederatedAveraging(rounds=1, local_steps=2, batch_size=1, learning_rate=0.2)
    leaked = GradientLeakage(victims=6, iterations=600).reconstruct(
        seen(scheme, task, SERVER), knowledge(task), generator()
    )
    work = honest_work(task, Share.CHANGE, batch_size=1, local_steps=2, learning_rate=0.2)
    item = leaked[0]
    truth = task.shards[0][0][work[ME].records(0)]
    errors = torch.cdist(item.images.flatten(1), truth.flatten(1)).amin(0) / 4
    assert item.images.shape == (2, 1, 4, 4) and float(errors.max()) < 0.15


def test_noise_ruins_the_reconstruction_and_least_squares_bear_more_of_it_than_one_unit(
    task: Task,
) -> None:
    def error(multiplier: float, *, pretend_clear: bool = False) -> float:
        scheme = LocalDP(rounds=2, noise_multiplier=multiplier)
        access = seen(scheme, task, SERVER)
        if pretend_clear:
            clear = tuple(replace(u, noisy=False) for u in access.observation.updates)
            access = RoleView(Observation(updates=clear))
        leaked = GradientLeakage(victims=6).reconstruct(access, knowledge(task), generator())
        work = honest_work(task, Share.GRADIENT, batch_size=1)
        errors = []
        for item in leaked:
            sender = item.update.sender
            truth = task.shards[sender.index][0][work[sender].records(item.update.round)]
            errors.append(float((item.images - truth).square().mean().sqrt()))
        return sorted(errors)[len(errors) // 2]

    assert error(0.0) < 1e-3
    assert error(0.01) < error(0.01, pretend_clear=True)
    assert error(1.0) > 0.3


def test_records_that_arrive_in_the_clear_are_no_gradient_leakage(task: Task) -> None:
    access = seen(Centralised(epochs=1, batch_size=4), task, SERVER)
    with pytest.raises(NotEnoughEvidence, match="no update was seen"):
        GradientLeakage().reconstruct(access, knowledge(task), generator())


def test_one_model_alone_is_not_enough_evidence(task: Task) -> None:
    access = seen(Centralised(epochs=1, batch_size=4), task, ME)
    with pytest.raises(NotEnoughEvidence, match="no update was seen"):
        GradientLeakage().reconstruct(access, knowledge(task), generator())


def test_what_must_be_known_is_asked_for(task: Task) -> None:
    with pytest.raises(ConfigError, match="gradient-leakage needs to know architecture, classes"):
        GradientLeakage().reconstruct(
            RoleView(Observation()), Knowledge(input_shape=(1, 4, 4)), generator()
        )


def test_exposure_reads_records_off_in_any_width_beside_other_columns_and_only_whole_ones(
    task: Task,
) -> None:
    record = task.shards[0][0][0]
    labelled = torch.cat([torch.zeros(5, 1), torch.stack([record.flatten()] * 5)], 1)
    for array in (record.numpy(), record.double().numpy(), labelled.numpy()):
        rows = PlaintextExposure().recover(
            RoleView(Observation(intermediates=(("x", array),))), Knowledge(input_shape=(1, 4, 4))
        )
        assert any(torch.equal(row, record) for row in rows)
    partial = Observation(intermediates=(("x", record.numpy().reshape(-1)[:15]),))
    assert not len(PlaintextExposure().recover(RoleView(partial), Knowledge(input_shape=(1, 4, 4))))
