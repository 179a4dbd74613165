"""An insider takes an honest owner's place in every collaborative scheme, and the server's view has the same shape."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tacit import catalogue
from tacit.attacks.gan_insider import GANInsider, InsiderSlot, place
from tacit.core.coins import Coins
from tacit.core.errors import ConfigError
from tacit.core.wire import Message
from tacit.dp.accounting import Accountant
from tacit.nn.federated import Task
from tacit.nn.local_work import parameters_of
from tacit.nn.networks import mlp
from tacit.parties.credentials import load
from tacit.parties.durable import DurableMember
from tacit.parties.links.local import LocalHub
from tacit.parties.links.reactor import Limits
from tacit.parties.links.tcp import TcpHub, serve_member
from tacit.parties.roles import SERVER, Role
from tacit.parties.runs import Run
from tacit.parties.seats import Seat
from tacit.parties.secure_sum.agreement import Adversary
from tacit.parties.views import DIGEST
from tacit.training.dp_sgd import DPSGD
from tacit.training.plain import Centralised, FederatedAveraging
from tacit.training.secure_aggregation import SecureAggregation
from tacit.training.selective_sgd import Schedule, SelectiveSGD, share_of, upload_bytes
from tacit.training.two_server import TwoServer
from tacit.training.user_level_dp import UserLevelDP

WHO = Role("owner", 2)
ATTACK = GANInsider(
    target=0, fresh=4, start_accuracy=0.0, steps=2, batch=4, injected=3, latent=5, width=4, seed=1
)
FEW = SelectiveSGD(epochs=3, local_steps=2, batch_size=2)


def shortened(scheme: Any) -> Any:
    names = {f.name for f in fields(scheme)}
    return replace(scheme, **{name: 3 for name in ("rounds", "epochs") if name in names})


ROWS = (*catalogue.rows(quick=True), *catalogue.sabotaged_rows(quick=True))
EVERY: Mapping[str, Any] = {
    **{row.name: shortened(row.protection) for row in ROWS},
    "secure-aggregation-active": SecureAggregation(rounds=3, adversary=Adversary.ACTIVE),
    "selective-random-order": replace(FEW, schedule=Schedule.RANDOM_ORDER),
    "selective-asynchronous": replace(FEW, schedule=Schedule.ASYNCHRONOUS),
    "user-level": UserLevelDP(
        rounds=3,
        local_steps=2,
        batch_size=2,
        clip=5.0,
        noise_multiplier=0.01,
        accountant=Accountant.RDP,
    ),
}


def trains_itself(scheme: Any) -> bool:
    """Whether no owner trains in this scheme, or not as it likes."""
    noisy_sums = isinstance(scheme, SecureAggregation) and scheme.noisy
    return isinstance(scheme, Centralised | DPSGD | TwoServer) or noisy_sums


COLLABORATIVE = {name: scheme for name, scheme in EVERY.items() if not trains_itself(scheme)}
EACH = pytest.mark.parametrize("name", COLLABORATIVE)


@pytest.fixture
def attacked() -> Task:
    """Three owners, four classes and an output for a fifth; the last owner has no record of class 0."""
    generator = torch.Generator().manual_seed(3)
    centres = torch.rand(4, 1, 4, 4, generator=generator)
    shards = []
    for labels in ([0, 1, 2, 3] * 2, [0, 0, 1, 2] * 2, [1, 2, 3, 3] * 2):
        noise = 0.2 * torch.rand(8, 1, 4, 4, generator=generator)
        shards.append((centres[labels] * 0.8 + noise, torch.tensor(labels)))
    start = mlp((1, 4, 4), (12,), 5, generator=generator)
    return Task(
        name="attacked", start=start, shards=tuple(shards), input_shape=(1, 4, 4), classes=5
    )


def coins() -> Coins:
    return Coins.from_seed(b"insider")


def trained(scheme: Any, task: Task) -> Run[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of noise and clips, which are not the matter here
        return scheme.train(task, coins=coins(), recording=DIGEST)


def weights(run: Run[Any]) -> Any:
    return np.concatenate([array.reshape(-1) for array in parameters_of(run.output.value)])


@EACH
def test_the_server_s_view_has_the_shape_that_it_has_with_an_honest_member(
    name: str, attacked: Task
) -> None:
    scheme = COLLABORATIVE[name]
    task, slots = place(attacked, {WHO: ATTACK})
    honest, with_insider = trained(scheme, attacked), trained(scheme, task)
    assert slots[WHO].insider.began == 0
    assert [m.confidence is not None for m in slots[WHO].insider.moments] == [True] * 3
    seen, usual = (run.views[SERVER].shape for run in (with_insider, honest))
    if isinstance(scheme, SelectiveSGD) and scheme.epsilon_over_c is not None:
        # how many hits there are is drawn: what is the same is all but the sizes, and their bound
        parameters = weights(honest).size
        most = upload_bytes(share_of(scheme.theta_u, parameters), parameters, scheme.batch_size)
        assert all(size <= most for _, tag, size, _ in (*seen, *usual) if tag == "upload")
        seen, usual = ([(who, tag, wave) for who, tag, _, wave in of] for of in (seen, usual))
    assert seen == usual
    assert not np.array_equal(weights(honest), weights(with_insider)), "nothing was injected"


@EACH
def test_a_passive_insider_changes_nothing_at_all(name: str, attacked: Task) -> None:
    scheme = COLLABORATIVE[name]
    task, slots = place(attacked, {WHO: replace(ATTACK, injected=0)})
    np.testing.assert_array_equal(
        weights(trained(scheme, attacked)), weights(trained(scheme, task))
    )
    assert slots[WHO].insider.began == 0


@pytest.mark.parametrize("name", sorted(set(EVERY) - set(COLLABORATIVE)))
def test_a_scheme_in_which_no_owner_trains_as_it_likes_refuses_and_says_why(
    name: str, attacked: Task
) -> None:
    task, _ = place(attacked, {WHO: ATTACK})
    with pytest.raises(ConfigError, match="owner 2 cannot do anything in place of honest training"):
        trained(EVERY[name], task)


def test_several_insiders_take_part_at_once(attacked: Task) -> None:
    inputs, labels = attacked.shards[1]  # type: ignore[misc]
    one = labels != 3
    task = replace(
        attacked, shards=(attacked.shards[0], (inputs[one], labels[one]), attacked.shards[2])
    )
    second = replace(ATTACK, target=3, seed=2)
    task, slots = place(task, {WHO: ATTACK, Role("owner", 1): second})
    trained(FederatedAveraging(rounds=2, batch_size=2), task)
    assert {role: slot.insider.attack.target for role, slot in slots.items()} == {
        WHO: 0,
        Role("owner", 1): 3,
    }


# --- resumed


@EACH
def test_an_insider_that_was_killed_goes_on_as_if_nothing_had_happened(
    name: str, attacked: Task
) -> None:
    scheme = COLLABORATIVE[name]

    def answers(restart: bool) -> list[Message]:
        task, _ = place(attacked, {WHO: ATTACK})
        members = scheme.members_of(task, seat_of(scheme, task))
        again = scheme.members_of(task, seat_of(scheme, task))
        heard: list[Message] = []

        class Restarted:
            """After each answer the member's state goes to a fresh one."""

            member = members[WHO]

            def handle(self, request: Message) -> Message:
                heard.append(self.member.handle(request))
                if restart:
                    state = self.member.export()
                    self.member = again[WHO] if self.member is members[WHO] else members[WHO]
                    self.member.restore(state)
                return heard[-1]

            def export(self) -> bytes:
                return self.member.export()

            def restore(self, state: bytes) -> None:
                self.member.restore(state)

        hub = LocalHub({**members, WHO: Restarted()})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scheme.run(hub, task, seat_of(scheme, task))
        return heard

    assert [m.fields for m in map(plain, answers(True))] == [
        m.fields for m in map(plain, answers(False))
    ]


def seat_of(scheme: Any, task: Task) -> Seat:
    seat = Seat(coins=coins())
    active = isinstance(scheme, SecureAggregation) and scheme.adversary is Adversary.ACTIVE
    return seat.with_identities(task.owners) if active else seat


def plain(message: Message) -> Message:
    """With arrays as bytes, so that messages compare."""

    def of(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return value.tobytes()
        return [of(one) for one in value] if isinstance(value, list | tuple) else value

    return Message(message.tag, **{key: of(value) for key, value in message.fields.items()})


# --- between processes


def test_an_insider_over_tls_is_the_insider_in_process(attacked: Task, certificates: Path) -> None:
    scheme = FederatedAveraging(rounds=2, batch_size=2)
    here = trained(scheme, place(attacked, {WHO: ATTACK})[0])
    limits = Limits(heartbeat=0.5, patience=5.0)
    ended: list[Exception] = []

    def serve(role: Role, address: tuple[str, int]) -> None:
        held = load(certificates / f"owner-{role.index}")
        own = attacked.only(role)
        if role == WHO:  # who else could say so?
            own = replace(own, instead={WHO: InsiderSlot(ATTACK)})
        (member,) = scheme.members_of(own, Seat(coins=coins())).values()
        try:
            serve_member(DurableMember(member), held, address, limits=limits)
        except Exception as error:
            ended.append(error)

    with TcpHub(
        load(certificates / "server-0"), attacked.owners, ("127.0.0.1", 0), limits=limits
    ) as hub:
        threads = [
            threading.Thread(target=serve, args=(role, hub.address), daemon=True)
            for role in attacked.owners
        ]
        for thread in threads:
            thread.start()
        hub.wait(deadline=30)
        there = scheme.run(hub, attacked.only(), Seat(coins=coins()))
    for thread in threads:
        thread.join(10)
    assert not ended
    np.testing.assert_array_equal(weights(here), weights(there))


def test_nobody_can_act_in_another_process_s_name(attacked: Task) -> None:
    with pytest.raises(ConfigError, match=r"owner 2 cannot do anything .* no records in this"):
        replace(attacked.only(Role("owner", 0)), instead={WHO: InsiderSlot(ATTACK)})
    assert place(attacked, {WHO: ATTACK})[0].only(Role("owner", 0)).instead == {}
