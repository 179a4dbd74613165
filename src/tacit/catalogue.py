"""The one list of what exists: the fifteen systems of the survey, and the rows and columns of the matrix.

Survey: Shan Chang, Chao Li, "Privacy in Neural Network Learning: Threats and Countermeasures", IEEE Network
(2018). Where its tables slip, ``note`` says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from enum import Enum
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_type_hints

from tacit.attacks.curious import GradientLeakage
from tacit.attacks.likelihood_ratio import LiRA
from tacit.attacks.membership import LabelGap, LossThreshold, ShadowModels
from tacit.attacks.rmia import RMIA
from tacit.audit.all_but_one import StrongAdversary
from tacit.audit.cells import ExposureAt, LeakageAt, Plan
from tacit.audit.compare import Row, Watch
from tacit.audit.compare import compare as run_compare
from tacit.audit.federation import TWO_SERVER, Federation
from tacit.audit.gan_cells import InsiderAt
from tacit.audit.launch import launch
from tacit.audit.membership_cells import MembershipFrom, ReferenceModels
from tacit.audit.model_cells import ExtractionFrom, InversionFrom
from tacit.audit.train import Setting
from tacit.audit.train import train as run_train
from tacit.audit.world import Settings
from tacit.core.errors import ConfigError, UnknownName
from tacit.dp.accounting import Accountant
from tacit.nn.federated import Collaborative, Progress, silent
from tacit.parties.links.link import Shape
from tacit.parties.links.tcp import Note, unheard
from tacit.training.dp_sgd import DPSGD
from tacit.training.local_dp import LocalDP
from tacit.training.plain import Centralised, FederatedAveraging, FederatedSGD
from tacit.training.secure_aggregation import Federated, Graph, SecureAggregation
from tacit.training.selective_sgd import SelectiveSGD
from tacit.training.two_server import TwoServer
from tacit.training.user_level_dp import UserLevelDP

Status = Literal["planned", "part", "done"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Paper:
    """A system of the survey.

    Args:
        number: as the survey cites it.
        name: a short name.
        citation: authors, title, venue, year.
        protects: what it protects, or attacks.
        against: who the adversary is and where it stands.
        technique: how.
        training: the survey's training methodology.
        module: where its code is or will be, relative to ``tacit``.
        status: planned, part (some of it works) or done.
        note: where the survey's tables slip, or what works so far.
    """

    number: int
    name: str
    citation: str
    protects: str
    against: str
    technique: str
    training: str
    module: str
    status: Status = "planned"
    note: str = ""


PAPERS: tuple[Paper, ...] = (
    Paper(
        number=1,
        name="model inversion",
        citation="Fredrikson, Jha, Ristenpart, Model inversion attacks that exploit confidence information and basic "
        "countermeasures, CCS 2015",
        protects="attacks the faces that a recognition model was trained on",
        against="who queries or holds the model (black-box, white-box)",
        technique="descend from confidence to input",
        training="—",
        module="attacks/model_inversion.py",
        status="done",
        note="Also from labels or scores alone, by extracting the model first.",
    ),
    Paper(
        number=2,
        name="GAN insider",
        citation="Hitaj, Ateniese, Perez-Cruz, Deep models under the GAN: information leakage from collaborative deep "
        "learning, CCS 2017",
        protects="attacks other participants' classes",
        against="an active participant of collaborative training",
        technique="train a generator against the shared model and poison it with a fresh class",
        training="collaborative",
        module="attacks/gan_insider.py",
        status="done",
    ),
    Paper(
        number=3,
        name="selective SGD",
        citation="Shokri, Shmatikov, Privacy-preserving deep learning, CCS 2015",
        protects="training data",
        against="semi-honest server and participants",
        technique="share a selected part of the gradients only",
        training="collaborative",
        module="training/selective_sgd.py",
        status="done",
    ),
    Paper(
        number=4,
        name="differentially private SGD",
        citation="Abadi et al., Deep learning with differential privacy, CCS 2016",
        protects="private information in the trained model",
        against="who queries or holds the model (black-box, white-box)",
        technique="clip each record's gradient, add noise, account",
        training="any",
        module="training/dp_sgd.py",
        status="done",
        note="The survey lists it as collaborative; it is a way to run SGD anywhere.",
    ),
    Paper(
        number=5,
        name="SecureML",
        citation="Mohassel, Zhang, SecureML: a system for scalable privacy-preserving machine learning, S&P 2017",
        protects="training data",
        against="either of two servers that do not collude (semi-honest)",
        technique="secret sharing, Beaver triples, garbled circuits",
        training="centralised, two servers",
        module="training/two_server.py",
        status="done",
    ),
    Paper(
        number=6,
        name="secure aggregation",
        citation="Bonawitz et al., Practical secure aggregation for privacy-preserving machine learning, CCS 2017",
        protects="each participant's update",
        against="semi-honest or active server, with participants below a threshold",
        technique="double masking with threshold recovery",
        training="collaborative",
        module="training/secure_aggregation.py",
        status="done",
        note="The survey lists it as centralised; its members are users with local data.",
    ),
    Paper(
        number=7,
        name="interactive prediction",
        citation="Barni, Orlandi, Piva, A privacy-preserving protocol for neural-network-based computation, MM&Sec 2006",
        protects="prediction requests and the model",
        against="the other party (semi-honest)",
        technique="Paillier scalar products, layer by layer",
        training="—",
        module="prediction/interactive.py",
    ),
    Paper(
        number=8,
        name="multi-key deep learning",
        citation="Li et al., Multi-key privacy-preserving deep learning in cloud computing, FGCS 2017",
        protects="training data",
        against="the cloud and, in scheme 2, an authority that does not collude with it (semi-honest)",
        technique="multi-key homomorphic encryption; double decryption",
        training="collaborative",
        module="training/multikey.py",
    ),
    Paper(
        number=9,
        name="oblivious enclave",
        citation="Ohrimenko et al., Oblivious multi-party machine learning on trusted processors, USENIX Security 2016",
        protects="training data",
        against="the host of a trusted processor, its memory, disk and network traces",
        technique="attested enclave, data-oblivious training",
        training="centralised",
        module="training/enclave.py",
    ),
    Paper(
        number=10,
        name="arbitrarily partitioned data",
        citation="Yuan, Yu, Privacy preserving back-propagation neural network learning made practical with cloud "
        "computing, TPDS 2014",
        protects="arbitrarily partitioned training data",
        against="the cloud and the other parties (semi-honest)",
        technique="doubly homomorphic encryption (BGN), shares of every intermediate",
        training="collaborative",
        module="training/partitioned.py",
    ),
    Paper(
        number=11,
        name="encrypted SGD",
        citation="Phong et al., Privacy-preserving deep learning via additively homomorphic encryption, IEEE TIFS 2018",
        protects="gradients",
        against="the server (semi-honest), not a participant who colludes with it",
        technique="additively homomorphic encryption under a key that participants share",
        training="collaborative",
        module="training/encrypted_sgd.py",
        note="The survey calls it an improvement of [5]; it improves [3].",
    ),
    Paper(
        number=12,
        name="threshold SGD",
        citation="Zhang et al., Private, yet practical, multiparty deep learning, ICDCS 2017",
        protects="gradients",
        against="the server and fewer than p participants (semi-honest)",
        technique="local noise, homomorphic encryption, threshold decryption of the sum",
        training="collaborative",
        module="training/threshold_sgd.py",
    ),
    Paper(
        number=13,
        name="MiniONN",
        citation="Liu et al., Oblivious neural network predictions via MiniONN transformations, CCS 2017",
        protects="prediction requests and the model",
        against="the other party (semi-honest)",
        technique="shares of every layer, offline dot-product triplets, garbled circuits",
        training="—",
        module="prediction/oblivious.py",
    ),
    Paper(
        number=14,
        name="membership inference",
        citation="Shokri, Stronati, Song, Shmatikov, Membership inference attacks against machine learning models, "
        "S&P 2017",
        protects="attacks who is in the training data",
        against="who queries the model (black-box)",
        technique="shadow models teach an attack model what members look like",
        training="—",
        module="attacks/membership.py",
        status="done",
        note="Also LiRA, RMIA and others by shared reference models, and tacit audit for a model of one's own.",
    ),
    Paper(
        number=15,
        name="model extraction",
        citation="Tramer, Zhang, Juels, Reiter, Ristenpart, Stealing machine learning models via prediction APIs, USENIX "
        "Security 2016",
        protects="attacks the model's parameters",
        against="who queries the model (black-box)",
        technique="solve equations in the confidences; adaptive retraining",
        training="—",
        module="attacks/extraction.py",
        status="done",
        note="Also knockoff nets and exact extraction of ReLU networks, in process and against tacit serve.",
    ),
)


# --- the matrix


def rows(*, quick: bool = False, pace: float = 1.0) -> tuple[Row, ...]:
    """The protections that `tacit compare` knows, in the order of the matrix.

    Args:
        quick: train for fewer rounds.
        pace: factor of all learning rates.
    """
    less = 3 if quick else 1
    sgd = FederatedSGD(rounds=600 // less, learning_rate=0.3 * pace)
    average = FederatedAveraging(rounds=120 // less, learning_rate=0.1 * pace)
    local = LocalDP(rounds=600 // less, learning_rate=0.3 * pace)
    # One record a turn, as in the rows above, so that what differs is the selection alone.
    selective = SelectiveSGD(
        epochs=120 // less,
        local_steps=1,
        batch_size=1,
        learning_rate=0.1 * pace,
        decay=0.99**less,
    )
    private = replace(selective, gamma=0.05 * pace, tau=0.005 * pace)
    secure = SecureAggregation(rounds=120 // less, learning_rate=0.1 * pace)
    private_sgd = DPSGD(
        epochs=20, lot_size=64, clip=0.5, learning_rate=1.0 * pace, epsilon=8.0, delta=1e-4
    )
    return (
        Row(
            name="centralised",
            title="All records at the server",
            protection=Centralised(epochs=60 // less, learning_rate=0.1 * pace),
            unprotected=True,
        ),
        Row(name="federated-sgd", title="Federated SGD", protection=sgd, unprotected=True),
        Row(
            name="federated-averaging",
            title="Federated averaging",
            protection=average,
            unprotected=True,
        ),
        Row(
            name="local-dp-low",
            title="Local DP, little noise",
            protection=replace(local, noise_multiplier=0.02),
        ),
        Row(
            name="local-dp-high",
            title="Local DP, more noise",
            protection=replace(local, noise_multiplier=0.2),
        ),
        Row(
            name="selective-0.1",
            title="Selective SGD, a tenth shared",
            protection=selective,
            paper=3,
        ),
        Row(
            name="selective-0.01",
            title="Selective SGD, a hundredth shared",
            protection=replace(selective, theta_u=0.01),
            paper=3,
        ),
        Row(
            name="sparse-vector-low",
            title="Sparse vector, little noise",
            protection=replace(private, epsilon_over_c=100.0),
            paper=3,
        ),
        Row(
            name="sparse-vector-high",
            title="Sparse vector, more noise",
            protection=replace(private, epsilon_over_c=10.0),
            paper=3,
        ),
        Row(
            name="secure-aggregation",
            title="Secure aggregation",
            protection=secure,
            paper=6,
        ),
        Row(
            name="secure-aggregation-regular",
            title="Secure aggregation, regular graph",
            protection=replace(secure, graph=Graph.REGULAR, dropped=0.1),  # ten owners are few
            paper=6,
        ),
        Row(
            name="secure-aggregation-dp",
            title="Secure aggregation, noise shared out",
            protection=replace(
                secure,
                federated=Federated.SGD,
                rounds=120,  # fewer learn too little
                local_steps=1,
                batch_size=8,
                learning_rate=2.0 * pace,
                clip=0.5,
                epsilon=8.0,
                delta=1e-4,
            ),
            paper=6,
        ),
        Row(
            name="user-level-dp",
            title="DP of a whole participant, epsilon 8",
            protection=UserLevelDP(
                rounds=30,  # of more, each would carry more noise
                local_steps=10,
                batch_size=8,
                learning_rate=0.1 * pace,
                clip=0.7,
                epsilon=8.0,
                delta=1e-4,
                accountant=Accountant.RDP,  # without sampling close to exact, and at once
            ),
        ),
        Row(
            name="dp-sgd-eps8",
            title="DP-SGD, epsilon 8",
            protection=private_sgd,
            paper=4,
        ),
        Row(
            name="dp-sgd-eps1",
            title="DP-SGD, epsilon 1",
            protection=replace(private_sgd, epsilon=1.0),
            paper=4,
        ),
        Row(
            name="two-server",
            title="Two servers, on shares",
            protection=TwoServer(epochs=15 // less, batch_size=8, learning_rate=0.25 * pace),
            paper=5,
            frames=640,  # an epoch of 50 steps, of some 12 messages each
        ),
    )


def sabotaged_rows(*, quick: bool = False, pace: float = 1.0) -> tuple[Row, ...]:
    """Protections broken on purpose: where they stand, the attacks must win.

    Args:
        quick: train for fewer rounds.
        pace: factor of all learning rates.
    """
    broken = {
        "local-dp-low": ("local-dp-sabotaged", "Local DP with its noise left out"),
        "selective-0.1": ("selective-sabotaged", "Selective SGD that shares everything"),
        "sparse-vector-low": ("sparse-vector-sabotaged", "Sparse vector with its noise left out"),
        "secure-aggregation": (
            "secure-aggregation-sabotaged",
            "Secure aggregation with its masks left out",
        ),
        "secure-aggregation-dp": (
            "secure-aggregation-dp-sabotaged",
            "Secure aggregation with its masks and noise left out",
        ),
        "user-level-dp": (
            "user-level-dp-sabotaged",
            "DP of a whole participant, its noise left out",
        ),
        "dp-sgd-eps1": ("dp-sgd-sabotaged", "DP-SGD with its noise and bound left out"),
        "two-server": ("two-server-sabotaged", "Two servers with their masks left out"),
    }
    return tuple(
        Row(
            name=broken[row.name][0],
            title=broken[row.name][1],
            protection=row.protection.sabotaged(),
            paper=row.paper,
            control=True,
            twin_of=row.name,
            frames=row.frames,
        )
        for row in rows(quick=quick, pace=pace)
        if row.name in broken
        and isinstance(
            row.protection,
            (LocalDP, SelectiveSGD, SecureAggregation, DPSGD, TwoServer, UserLevelDP),
        )
    )


def plans(*, quick: bool = False) -> tuple[Plan, ...]:
    """The attacks that `tacit compare` knows, each at its vantage, in the order of the matrix.

    Args:
        quick: fewer steps, shadow models and reference models.
    """
    models = 8 if quick else 16
    leakage = GradientLeakage(iterations=300 if quick else 600)
    shadows = ShadowModels(shadows=3 if quick else 8)
    return (
        ExposureAt("server"),
        ExposureAt("participant"),
        LeakageAt("server", leakage),
        LeakageAt("participant", leakage),
        InsiderAt(),
        MembershipFrom(LossThreshold(), "Membership by loss, from scores", "scores"),
        MembershipFrom(shadows, "Membership by shadow models, from scores", "scores"),
        ReferenceModels(LiRA(), "Membership by likelihood ratio, from scores", models),
        ReferenceModels(RMIA(online=True), "Membership by RMIA, from scores", models),
        MembershipFrom(LabelGap(), "Membership from labels only", "labels"),
        StrongAdversary(models=6 if quick else 4),  # one seed alone must tell, or three together
        ExtractionFrom("scores"),
        ExtractionFrom("labels"),
        InversionFrom("holder"),
        InversionFrom("scores"),
        InversionFrom("labels"),
    )


def settings(dataset: str, *, quick: bool = False) -> Settings:
    """Sizes of a comparison on a data set.

    Args:
        dataset: its name.
        quick: one seed and fewer records.
    """
    full = Settings(dataset=dataset)
    records, population = 20, 400
    if (
        dataset == "att-faces"
    ):  # 400 faces of 40 people: all are needed. Large bright images make large steps.
        full = replace(full, records=10, population=200, hidden=64, pool=4, learning_rate=0.05)
        records, population = 10, 200
    elif dataset in ("pima", "wisconsin"):  # some 700 rows
        full = replace(full, records=20, population=260)
        records, population = 15, 200
    elif dataset == "iris":  # 150 rows
        full = replace(full, owners=5, records=5, population=100)
        records, population = 5, 100
    elif dataset == "cifar10":  # 3,072 bright pixels: large steps, as with faces
        full = replace(full, population=2000, hidden=64, learning_rate=0.02)
    elif dataset != "digits":
        full = replace(full, population=2000, hidden=64)
    return replace(full, seeds=1, records=records, population=population) if quick else full


def compare(  # noqa: PLR0913 - each is an option of `tacit compare`
    dataset: str = "digits",
    *,
    protections: Sequence[str | Row] | None = None,
    attacks: Sequence[str | Plan] | None = None,
    changes: Sequence[str] = (),
    controls: bool = True,
    seeds: int | None = None,
    seed: int = 0,
    owners: int | None = None,
    records: int | None = None,
    split: str = "iid",
    out: Path | None = None,
    overwrite: bool = False,
    quick: bool = False,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Run every attack against every protection: `tacit compare` as a call.

    Args:
        dataset: digits (bundled), mnist, cifar10, att-faces, location30, adult or another of `tacit data list`.
        protections: rows, by name or made by hand; all by default.
        attacks: columns, by name or made by hand; all by default.
        changes: settings to change, as ``"local-dp-low.clip=2"``.
        controls: add protections that were broken on purpose.
        seeds: independent repetitions, pooled.
        seed: the first of them.
        owners: owners among whom the training records are split.
        records: training records of each owner.
        split: iid, or label: each owner holds few labels.
        out: folder for the report; None writes nothing.
        overwrite: replace what the folder holds of another run.
        quick: fewer seeds and smaller sizes.
        watch: told after each step what is going on, how much is done, and of how much.

    Returns:
        The report, as ``tacit compare --json`` prints it.

    Raises:
        UnknownName: a name that nothing answers to.
        ConfigError: a setting is out of range, or the folder holds another run.
        DataError: the data set is missing or damaged.
        OutputError: the folder cannot be written to.
        Diverged: a training diverged; names the row, the owner, the round and the epoch.
    """
    sizes = settings(dataset, quick=quick)
    pace = sizes.learning_rate / Settings().learning_rate
    broken = sabotaged_rows(quick=quick, pace=pace) if controls else ()
    known = (*rows(quick=quick, pace=pace), *broken)
    chosen = _changed(_chosen("protection", protections, known), changes)
    sizes = replace(
        sizes,
        seed=seed,
        seeds=sizes.seeds if seeds is None else seeds,
        owners=sizes.owners if owners is None else owners,
        records=sizes.records if records is None else records,
        split=split,
    )
    columns = _chosen("attack", attacks, plans(quick=quick))
    return run_compare(
        sizes, chosen, columns, out=out, overwrite=overwrite, quick=quick, watch=watch
    )


SCHEMES: Mapping[str, Collaborative] = {
    "centralised": Centralised(),
    "dp-sgd": DPSGD(),
    "federated-sgd": FederatedSGD(),
    "federated-averaging": FederatedAveraging(),
    "local-dp": LocalDP(),
    "selective-sgd": SelectiveSGD(),
    "secure-aggregation": SecureAggregation(),
}
"""What `tacit train` runs as a star, with default settings."""

PAIRS: Mapping[str, TwoServer] = {TWO_SERVER: TwoServer()}
"""What it runs by two servers."""


def scheme_with(scheme: str, changes: Sequence[str] = ()) -> Collaborative | TwoServer:
    """A scheme of `SCHEMES` or `PAIRS` with some settings changed, as ``"theta_u=0.01"``.

    Raises:
        UnknownName: no such scheme or setting.
        ConfigError: a setting is out of range.
    """
    known: Mapping[str, Collaborative | TwoServer] = {**SCHEMES, **PAIRS}
    if scheme not in known:
        raise UnknownName("scheme", scheme, known)
    told = []
    for change in changes:
        setting, _, value = change.partition("=")
        if not value:
            raise ConfigError(
                f"a change is SETTING=VALUE, for instance theta_u=0.01; got {change!r}"
            )
        told.append((setting, change, value))
    made: Collaborative | TwoServer = _with(scheme, known[scheme], told)
    return made


def scheme_of(federation: Federation) -> Collaborative | TwoServer:
    """The scheme that a federation runs, with its settings."""
    told = [f"{name}={value}" for name, value in federation.settings.items()]
    return scheme_with(federation.scheme, told)


LINKS = ("local", "tcp")
"""How the parties of `train` are linked."""


def train(  # noqa: PLR0913 - each is an option of `tacit train`
    scheme: str,
    *,
    dataset: str = "digits",
    model: str = "mlp",
    changes: Sequence[str] = (),
    owners: int = 10,
    records: int | None = None,
    split: str = "iid",
    seed: int = 0,
    link: str = "local",
    shape: Shape | None = None,
    out: Path | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
    note: Note = unheard,
    secret_seed: str | None = None,
) -> dict[str, Any]:
    """Train with one scheme on a data set: `tacit train` as a call.

    Args:
        scheme: a name in `SCHEMES` or `PAIRS`.
        dataset: one of `tacit data list`.
        model: mlp (64 hidden units), cnn, tanh-cnn (that of selective SGD), or ``module:factory`` (see `Setting`).
        changes: settings of the scheme to change, as ``"theta_u=0.01"``.
        owners: among whom the training rows are dealt.
        records: rows of each; None deals all of them.
        split: iid, or label: each owner holds few labels.
        seed: of the dealing, the first weights and the order of training; secrets do not follow from it.
        link: local, all parties in this process; or tcp, each in a process of its own on this machine, over TLS.
        shape: a network to imitate between processes.
        out: folder for model.safetensors and run.json; None writes nothing.
        overwrite: replace a model that the folder holds.
        progress: told how much is done, and of how much.
        note: told what the processes say.
        secret_seed: secrets follow from it: for tests alone. The run says so, and protects nobody.

    Returns:
        The run, as ``tacit train --json`` prints it.

    Raises:
        UnknownName: a name that nothing answers to.
        ConfigError: a setting is out of range, or the folder holds a model already.
        DataError: the data set is missing or damaged.
        OutputError: the folder cannot be written to.
        Diverged: the training diverged; names the owner.
    """
    protection = scheme_with(scheme, changes)
    on = Setting(
        dataset=dataset, model=model, owners=owners, records=records, split=split, seed=seed
    )
    if link not in LINKS:
        raise UnknownName("link", link, LINKS)
    if link == "tcp" and ":" in model:
        raise ConfigError("a model of one's own is trained in one process: leave --link tcp out")
    if link == "tcp":
        return launch(
            scheme, protection, changes, on, shape=shape, out=out, overwrite=overwrite, progress=progress, note=note,
            secret_seed=secret_seed,
        )  # fmt: skip
    if shape is not None:
        raise ConfigError("a network is imitated between processes: use link tcp")
    return run_train(
        scheme, protection, on, out=out, overwrite=overwrite, progress=progress, note=note, secret_seed=secret_seed,
    )  # fmt: skip


T = TypeVar("T", Row, Plan)


def _chosen(kind: str, wanted: Sequence[str | T] | None, known: Sequence[T]) -> list[T]:
    by_name = {item.name: item for item in known}
    if wanted is None:
        return list(known)
    out: list[T] = []
    for item in wanted:
        if not isinstance(item, str):
            out.append(item)
        elif item in by_name:
            out.append(by_name[item])
        else:
            raise UnknownName(kind, item, by_name)
    return out


def _changed(chosen: Sequence[Row], changes: Sequence[str]) -> list[Row]:
    by_name = {row.name: row for row in chosen}
    told: dict[str, list[tuple[str, str, str]]] = {}
    for change in changes:
        target, _, value = change.partition("=")
        name, _, setting = target.rpartition(".")
        if not name or not value:
            raise ConfigError(
                f"a change is PROTECTION.SETTING=VALUE, for instance local-dp-low.clip=2; got {change!r}"
            )
        if name not in by_name:
            raise UnknownName("protection in this run", name, by_name)
        told.setdefault(name, []).append((setting, change, value))
    for name, settings_told in told.items():
        changed = _with(name, by_name[name].protection, settings_told)
        by_name[name] = replace(by_name[name], protection=changed)
        for twin in [row for row in by_name.values() if row.twin_of == name]:
            by_name[twin.name] = replace(twin, protection=changed.sabotaged())
    return [by_name[row.name] for row in chosen]


def _with(name: str, protection: Any, changes: Sequence[tuple[str, str, str]]) -> Any:
    """The protection with some settings changed, all at once: one may need another."""
    known = [f.name for f in fields(protection)]
    kinds = get_type_hints(type(protection))
    values = {}
    for setting, change, value in changes:
        if setting not in known:
            raise UnknownName(f"setting of {name}", setting, known)
        values[setting] = _converted(change, value, kinds[setting])
    return replace(protection, **values)


def _converted(change: str, value: str, kind: Any) -> Any:
    """A setting's value from its text; ``kind`` is a number, text, an `Enum`, or one of these or None."""
    kinds = get_args(kind) or (kind,)
    if type(None) in kinds and value == "none":
        return None
    plain = [
        k
        for k in kinds
        if k in (int, float, str, bool) or (isinstance(k, type) and issubclass(k, Enum))
    ]
    if len(plain) != 1:
        raise ConfigError(
            f"{change}: a setting of type {kind} cannot be given as text: make the row in Python"
        )
    (one,) = plain
    if one is bool:
        if value.lower() not in ("true", "false"):
            raise ConfigError(f"{change}: true or false expected, got {value!r}")
        return value.lower() == "true"
    try:
        return one(value)
    except ValueError:
        closed = issubclass(one, Enum)
        names = [e.value for e in one] if closed else [one.__name__]
        expected = ", ".join(names + ["none"] * (type(None) in kinds))
        raise ConfigError(f"{change}: {expected} expected, got {value!r}") from None
