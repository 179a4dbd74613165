"""A model of one's own as a target: whatever it is, attacks read the logits that it stands for."""

from __future__ import annotations

import copy
import math
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file
from safetensors.torch import save_model as save_safetensors
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from tacit.attacks.access import Scores
from tacit.attacks.shadows import ShadowEnsemble, halves
from tacit.audit.importing import imported
from tacit.audit.targets import open_target, target_of, train_function
from tacit.core.errors import BudgetExhausted, ConfigError, DataError, TacitWarning, UnknownName
from tacit.nn.networks import cnn, mlp
from tacit.nn.spec import save_model
from tacit.nn.stacked import Recipe, Trainer

N = 40


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def network(shape: tuple[int, ...] = (6,), classes: int = 3) -> nn.Module:
    return mlp(shape, (8,), classes, generator=torch.Generator().manual_seed(1))


def asked(model: nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return model(inputs)


# --- modules and functions


def test_a_module_s_logits_come_as_they_are_in_evaluation_mode_and_batches() -> None:
    sizes: list[int] = []

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.drop = network(), nn.Dropout(0.9)

        def forward(self, inputs: Tensor) -> Tensor:
            sizes.append(len(inputs))
            return self.drop(self.inner(inputs))

    net, inputs = Net().train(), drawn(1027, 6)
    target = target_of(net)
    assert (target.kind, target.gives, target.name) == ("module", "logits", "Net")
    assert target.parameters == 6 * 8 + 8 + 8 * 3 + 3 and target.device == torch.device("cpu")
    torch.testing.assert_close(asked(target.model, inputs), asked(net.inner, inputs))
    assert sizes == [1024, 3]
    assert target.module is net and target_of(np.zeros).module is None


def test_a_double_module_is_asked_in_its_own_type_and_answers_in_single() -> None:
    inputs = drawn(N, 6)
    wanted = asked(network(), inputs)
    found = asked(target_of(network().double()).model, inputs)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted)


def test_records_stay_as_they_are_whatever_the_model_does_with_its_own() -> None:
    def spoils(records: Any) -> Any:
        records += 1
        return np.full((len(records), 2), 0.5)

    inputs = drawn(N, 6)
    before = inputs.clone()
    asked(target_of(nn.Sequential(nn.ReLU(inplace=True), network())).model, inputs)
    asked(target_of(spoils).model, inputs)
    assert torch.equal(inputs, before)


@pytest.mark.parametrize("form", ["array", "float32", "lists", "tensor", "big-endian"])
def test_probabilities_of_a_function_are_those_that_scores_gives_back(form: str) -> None:
    inputs = drawn(N, 2, 3)
    wanted = np.asarray(torch.softmax(drawn(N, 4, seed=2).double(), 1))
    wanted[0] = [1, 0, 0, 0]
    given: list[Any] = []

    def predict(records: Any) -> Any:
        given.append(records)
        return {
            "array": wanted,
            "float32": wanted.astype(np.float32),
            "lists": wanted.tolist(),
            "tensor": torch.tensor(wanted).requires_grad_(),
            "big-endian": wanted.astype(">f8"),
        }[form]

    target = target_of(predict)
    assert (target.kind, target.gives, target.parameters) == ("callable", "probabilities", None)
    scores = Scores(target.model).scores(inputs)
    np.testing.assert_allclose(scores.numpy(), wanted, atol=1e-6)
    logits = asked(target.model, inputs)
    assert logits.dtype == torch.float32 and bool(torch.isfinite(logits).all())
    assert logits[0].tolist() == [0, -708, -708, -708]
    assert given[0].dtype == np.float32 and given[0].shape == (N, 2, 3)
    np.testing.assert_array_equal(given[0], inputs.numpy())


@pytest.mark.parametrize("shape", [(N,), (N, 1)])
def test_a_binary_model_s_single_number_becomes_two_columns(shape: tuple[int, ...]) -> None:
    z = drawn(N, seed=3).double()
    p = torch.sigmoid(z)
    wanted = torch.stack([1 - p, p], 1)
    for gives, answer in (("logits", z), ("probabilities", p)):
        model = target_of(lambda records, answer=answer: answer.reshape(shape), gives=gives).model  # fmt: skip
        logits = asked(model, drawn(N, 5))
        torch.testing.assert_close(torch.softmax(logits.double(), 1), wanted, atol=1e-6, rtol=0)


def test_a_binary_module_needs_no_second_output() -> None:
    net = nn.Sequential(nn.Linear(5, 1), nn.Flatten(0))
    inputs = drawn(N, 5)
    found = asked(target_of(net).model, inputs)
    torch.testing.assert_close(found[:, 1], asked(net, inputs))
    assert not found[:, 0].any()


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.float32])
def test_labels_become_one_at_the_label(kind: Any) -> None:
    labels = (np.arange(N) % 3).astype(kind)
    target = target_of(lambda records: labels[:, None], gives="labels", classes=4)
    logits = asked(target.model, drawn(N, 5))
    assert logits.shape == (N, 4) and target.gives == "labels"
    np.testing.assert_array_equal(logits.argmax(1), labels.astype(int))
    np.testing.assert_array_equal(logits.sum(1), 1)


def test_a_logarithm_of_zero_among_logits_is_a_finite_floor() -> None:
    with np.errstate(divide="ignore"):
        answers = np.log(np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]))
    logits = asked(target_of(lambda records: answers, gives="logits").model, drawn(2, 5))
    assert logits[1].tolist() == [0, -708, -708]
    assert float(logits[0, 2]) == pytest.approx(math.log(0.5) - 708)


def row(*numbers: float) -> np.ndarray[Any, Any]:
    return np.tile(np.array(numbers), (N, 1))


@pytest.mark.parametrize(
    ("answer", "settings", "said"),
    [
        (row(2.0, -1.0), {}, "sum to 1 .* 40 of 40 .* declare gives='logits'"),
        (row(0.5, 0.502), {}, r"least 0.5, sum off by 0.002"),
        (row(1.1, -0.1), {}, "at least 0"),
        (row(0.3, 0.3, 0.4), {"classes": 4}, r"shape|4 classes expected, for 3"),
        (row(0.5, 0.5)[:-1], {}, r"shape \(40, classes\) expected for 40 records, \(39, 2\) came"),
        (row(0.5, np.nan), {}, "40 of 40 records with numbers that are not finite"),
        (row(0.5, np.inf), {"gives": "logits"}, "not finite"),
        (row(-np.inf, -np.inf), {"gives": "logits"}, "not finite"),
        (row(0.5)[:, 0], {"classes": 3}, r"shape \(40, 3\) expected"),
        (np.ones(N, np.int64), {}, "int64 of shape .* declare gives='labels'"),
        (np.arange(N) * 1.0, {}, "gives='labels'"),
        (np.arange(N), {"gives": "labels", "classes": 39}, "0 to 38 expected, 1 of 40 .* first 39"),
        (np.full(N, 0.5), {"gives": "labels", "classes": 39}, "whole numbers"),
        (-np.ones(N), {"gives": "labels", "classes": 39}, "first -1 for record 0"),
        (row(0.5, 0.5), {"gives": "labels", "classes": 2}, "declare gives='probabilities'"),
        (np.array(["cat"] * N), {}, "one array of numbers expected"),
        ([[0.5], [0.2, 0.3]], {}, "one array of numbers expected"),
        ({"logits": 1}, {}, "dict came: wrap it"),
        (network(), {}, "came: wrap it"),
        (None, {}, "numbers expected, NoneType"),
        ((row(0.5, 0.5), row(1.0)), {}, "numbers expected, tuple"),
    ],
)  # fmt: skip
def test_an_answer_that_is_not_what_was_declared_is_refused(
    answer: Any, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(DataError, match=said):
        target_of(lambda records: answer, **settings).model(drawn(N, 5))


def test_answers_of_another_number_of_classes_than_before_are_refused() -> None:
    tenths, halves_ = row(*[0.1] * 10), row(0.5, 0.5)
    model = target_of(lambda records: tenths if len(records) == N else halves_[:2]).model
    assert model(drawn(N, 5)).shape == (N, 10)
    with pytest.raises(DataError, match="for 10 classes expected, for 2 came"):
        model(drawn(2, 5))


def test_rounded_probabilities_pass() -> None:
    rounded = row(0.3335, 0.3335, 0.3335)
    assert asked(target_of(lambda records: rounded).model, drawn(N, 5)).shape == (N, 3)


@pytest.mark.parametrize("binary", [False, True])
def test_probabilities_declared_as_logits_are_told_once(binary: bool) -> None:
    last = nn.Sigmoid() if binary else nn.Softmax(1)
    target = target_of(nn.Sequential(network(classes=1 if binary else 3), last))
    with pytest.warns(TacitWarning, match="declare gives='probabilities'") as caught:
        asked(target.model, drawn(N, 6))
        asked(target.model, drawn(N, 6))
    assert len(caught) == 1
    asked(target_of(nn.Sequential(network(), nn.LogSoftmax(1))).model, drawn(N, 6))
    asked(target_of(nn.Sequential(network(), nn.Softmax(1)), gives="probabilities").model, drawn(N, 6))  # fmt: skip


def test_an_error_of_the_model_comes_with_what_was_asked_and_where_it_arose() -> None:
    def predict(records: Any) -> Any:
        raise KeyError("no such column")

    said = r"predict, asked \(40, 5\) torch.float32, failed with KeyError: .*test_targets.py, line"
    with pytest.raises(ConfigError, match=said) as caught:
        target_of(predict).model(drawn(N, 5))
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(ConfigError, match=r"Sequential, asked \(40, 5\).* RuntimeError: mat1 and"):
        target_of(nn.Sequential(network())).model(drawn(N, 5))

    def spent(records: Any) -> Any:
        raise BudgetExhausted("no more")

    with pytest.raises(BudgetExhausted, match="no more"):
        target_of(spent).model(drawn(N, 5))


def test_what_is_not_a_model_is_refused() -> None:
    fitted = LogisticRegression().fit(np.eye(4), [0, 1, 0, 1])
    assert target_of(fitted.predict_proba).name == "LogisticRegression.predict_proba"
    with pytest.raises(ConfigError, match="give its predict_proba"):
        target_of(fitted)
    with pytest.raises(ConfigError, match="a function of records expected, str"):
        target_of("model")  # type: ignore[arg-type]
    with pytest.raises(UnknownName, match="did you mean logits"):
        target_of(network(), gives="logit")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="at least 2 classes"):
        target_of(network(), classes=1)
    with pytest.raises(ConfigError, match="say of how many classes"):
        target_of(network(), gives="labels")


def test_the_names_of_functions() -> None:
    def inner(records: Any) -> Any:
        return records

    class Endpoint:
        def __call__(self, records: Any) -> Any:
            return records

    assert target_of(partial(partial(inner))).name.endswith("inner")
    assert target_of(Endpoint()).name.endswith("Endpoint")


# --- training functions


def fits(inputs: Tensor, labels: Tensor, generator: torch.Generator) -> Any:
    """A function that gives a function."""
    fitted = LogisticRegression(max_iter=500, C=100).fit(inputs.numpy(), labels.numpy())
    return fitted.predict_proba


def trains(inputs: Tensor, labels: Tensor, generator: torch.Generator) -> nn.Module:
    """A binary module of one output, trained by least squares."""
    ones = torch.cat([inputs, torch.ones(len(inputs), 1)], 1)
    weights = torch.linalg.pinv(ones) @ (2.0 * labels - 1)
    net = nn.Linear(inputs.shape[1], 1)
    net.weight.data[:], net.bias.data[:] = 3 * weights[:-1], 3 * weights[-1]
    return net


def test_functions_of_one_s_own_train_shadow_models() -> None:
    inputs, labels = drawn(30, 6), torch.arange(30) % 2
    inside = halves(30, 4, torch.Generator().manual_seed(1))
    for train_fn in (fits, trains):
        ensemble = ShadowEnsemble(train_fn=train_function(train_fn))
        references = ensemble.train(inputs, labels, inside, torch.Generator().manual_seed(2))
        assert references.logits.shape == (4, 1, 30, 2)
        rows = inside[1]
        generator = torch.Generator()
        model = train_fn(inputs[rows], labels[rows], generator)
        wanted = (
            np.log(model(inputs.numpy()))
            if train_fn is fits
            else np.pad(asked(model, inputs).numpy(), ((0, 0), (1, 0)))
        )
        np.testing.assert_allclose(references.logits[1, 0], wanted, rtol=1e-4, atol=1e-5)


def test_a_training_function_keeps_its_name_and_can_be_copied() -> None:
    wrapped = train_function(partial(fits))
    assert (wrapped.__module__, wrapped.__qualname__) == (fits.__module__, "fits")
    again = copy.deepcopy(wrapped)
    assert (again.__module__, again.__qualname__) == (fits.__module__, "fits")
    assert again(drawn(20, 6), torch.arange(20) % 2, torch.Generator())(drawn(5, 6)).shape == (5, 2)
    # What models answer with changes what is kept of them.
    assert train_function(fits, "logits").__qualname__ != "fits"


def test_a_trainer_comes_back_as_it_is() -> None:
    trainer = Trainer(network=network(), recipe=Recipe(epochs=1, batch_size=4, learning_rate=0.1))
    assert train_function(trainer) is trainer


def test_a_training_function_that_fails_says_on_what() -> None:
    def breaks(inputs: Tensor, labels: Tensor, generator: torch.Generator) -> Any:
        return 1 / 0

    def nothing(inputs: Tensor, labels: Tensor, generator: torch.Generator) -> Any:
        return None

    given = drawn(20, 6), torch.arange(20) % 2, torch.Generator()
    with pytest.raises(ConfigError, match=r"breaks, asked \(20, 6\).*ZeroDivisionError"):
        train_function(breaks)(*given)
    with pytest.raises(ConfigError, match="nothing must give a torch"):
        train_function(nothing)(*given)
    with pytest.raises(ConfigError, match="a function of"):
        train_function(None)  # type: ignore[arg-type]
    with pytest.raises(UnknownName):
        train_function(fits, "logit")  # type: ignore[arg-type]
    # One class only: a column is missing.
    model = train_function(lambda i, y, g: lambda r: np.ones((len(r), 2)) / 2, classes=3)(*given)
    with pytest.raises(DataError, match="for 3 classes expected, for 2 came"):
        model(given[0])


def test_warnings_of_many_shadow_models_come_once() -> None:
    soft = train_function(lambda i, y, g: nn.Sequential(network(), nn.Softmax(1)))
    given = drawn(20, 6), torch.arange(20) % 2, torch.Generator()
    with pytest.warns(TacitWarning) as caught:
        for _ in range(3):
            asked(soft(*given), given[0])
    assert len(caught) == 1


# --- what is named

MINE = """
import numpy as np, torch
from torch import nn
from tacit.nn.networks import mlp

def build():
    return mlp((6,), (8,), 3, generator=torch.Generator().manual_seed(9))

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Linear(6, 3)
        self.two = nn.Linear(6, 3)
        self.two.weight = self.one.weight
    def forward(self, x):
        return self.one(x) + self.two(x)

class Api:
    def ask(self, records):
        return np.full((len(records), 3), 1 / 3)

ready = build()
api = Api()
number = 3
def uniform(records):
    return np.full((len(records), 3), 1 / 3)
def load():
    return uniform
def broken():
    raise OSError("no such checkpoint")
def half_done(path="x"):
    return ready
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("own_nets", "own_broken", "own_syntax"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / "own_nets.py").write_text(MINE)
    (tmp_path / "own_broken.py").write_text("1 / 0")
    (tmp_path / "own_syntax.py").write_text("def")
    return tmp_path


def test_a_factory_gets_the_weights_of_a_file(mine: Path) -> None:
    net = network()
    save_file(net.state_dict(), mine / "w.safetensors")
    target = open_target("own_nets:build", weights=mine / "w.safetensors")
    inputs = drawn(N, 6)
    torch.testing.assert_close(asked(target.model, inputs), asked(net, inputs))
    assert not torch.allclose(
        asked(open_target("own_nets:build").model, inputs), asked(net, inputs)
    )


def test_weights_that_two_names_share_may_be_written_once(mine: Path) -> None:
    own_nets = imported("own_nets:build.__globals__")
    net = own_nets["Net"]()
    save_safetensors(net, str(mine / "w.safetensors"))
    target = open_target("own_nets:Net", weights=mine / "w.safetensors")
    inputs = drawn(N, 6)
    torch.testing.assert_close(asked(target.model, inputs), asked(net, inputs))


def test_a_file_of_tacit_s_own_needs_no_code(tmp_path: Path) -> None:
    net, inputs = network(), drawn(N, 6)
    save_model(net, (6,), tmp_path / "model.safetensors")
    target = open_target(str(tmp_path / "model.safetensors"))
    torch.testing.assert_close(asked(target.model, inputs), asked(net, inputs))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("own_nets:ready", "module"),
        ("own_nets:build", "module"),
        ("own_nets:uniform", "callable"),
        ("own_nets:load", "callable"),
        ("own_nets:api.ask", "callable"),
    ],
)
def test_models_functions_and_what_loads_them_can_be_named(
    mine: Path, name: str, kind: str
) -> None:
    target = open_target(name)
    assert target.kind == kind and asked(target.model, drawn(N, 6)).shape == (N, 3)


@pytest.mark.parametrize(
    ("name", "weights", "said"),
    [
        ("own_nets", None, "module:attribute, a .onnx or a .safetensors file expected"),
        ("own_nothing:build", None, "No module named"),
        ("own_nets:biuld", None, "biuld"),
        ("own_nets:", None, "no model at"),
        (":build", None, "no model at"),
        ("own_broken:build", None, r"import of own_broken failed with ZeroDivisionError: .*own_broken.py, line 1"),
        ("own_syntax:build", None, "own_syntax failed with SyntaxError"),
        ("own_nets:Net", None, "is a class: give the weights"),
        ("own_nets:number", None, "int came"),
        ("own_nets:broken", None, "broken failed with OSError: no such checkpoint"),
        ("own_nets:number", "fit", "must be a function without arguments"),
        ("own_nets:uniform", "fit", "uniform failed with TypeError"),
        ("own_nets:load", "fit", "must give a torch.nn.Module, gave function"),
        ("own_nets:build", "absent", "there is no file"),
        ("own_nets:build", "damaged", "cannot be read as a safetensors file"),
        ("own_nets:build", "shapes", r"is \(9, 6\) and not \(8, 6\)"),
        ("own_nets:build", "names", r"lacks .* and 1 more; has none for a.0, a.1, a.2 and 2 more"),
        ("other.onnx", "fit", "holds its own weights"),
        ("fit.safetensors", None, "describ|spec"),
    ],
)  # fmt: skip
def test_what_cannot_be_opened_says_why(
    mine: Path, name: str, weights: str | None, said: str
) -> None:
    state = network().state_dict()
    save_file(state, mine / "fit.safetensors")
    save_file({f"a.{i}": torch.ones(1) for i in range(5)}, mine / "names.safetensors")
    first = next(iter(state))
    save_file({**state, first: torch.ones(9, 6)}, mine / "shapes.safetensors")
    (mine / "damaged.safetensors").write_bytes(b"no such thing")
    with pytest.raises(ConfigError, match=said):
        open_target(name, weights=None if weights is None else mine / f"{weights}.safetensors")


def test_a_factory_with_a_default_is_asked_as_a_function_and_says_so(mine: Path) -> None:
    with pytest.raises(DataError, match="came: wrap it"):
        open_target("own_nets:half_done").model(drawn(N, 6))


# --- ONNX


def small_cnn() -> nn.Sequential:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 4 * 4, 3))
    generator = torch.Generator().manual_seed(4)
    for one in net.parameters():
        one.data.normal_(generator=generator)
    return net


def written(
    path: Path,
    net: nn.Sequential,
    batch: int | str = "n",
    *,
    extra: tuple[Any, ...] = (),
    outputs: tuple[Any, ...] = (),
    inputs: tuple[Any, ...] = (),
) -> str:
    """The network as an ONNX file: Conv, Relu, Flatten, Gemm."""
    conv, linear = net[0], net[3]
    weights = {"cw": conv.weight, "cb": conv.bias, "gw": linear.weight, "gb": linear.bias}
    nodes = [
        helper.make_node("Conv", ["x", "cw", "cb"], ["c"]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Flatten", ["r"], ["f"]),
        helper.make_node("Gemm", ["f", "gw", "gb"], ["y"], transB=1),
        *extra,
    ]
    given = [value("x", TensorProto.FLOAT, batch, 1, 6, 6), *inputs]
    gives = outputs or (value("y", TensorProto.FLOAT, batch, 3),)
    graph = helper.make_graph(
        nodes, "net", given, list(gives),
        [numpy_helper.from_array(v.detach().numpy(), k) for k, v in weights.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return str(path)


@pytest.mark.parametrize("batch", ["n", 1, 7])
@pytest.mark.parametrize("count", [1, 7, 20])
def test_an_onnx_model_answers_as_torch_does(tmp_path: Path, batch: int | str, count: int) -> None:
    net, inputs = small_cnn(), drawn(count, 1, 6, 6)
    target = open_target(written(tmp_path / "net.onnx", net, batch), gives="logits")
    assert (target.kind, target.name, target.parameters) == ("onnx", "net.onnx", None)
    torch.testing.assert_close(asked(target.model, inputs), asked(net, inputs), atol=1e-4, rtol=1e-4)  # fmt: skip


def test_an_onnx_model_of_doubles_gets_doubles(tmp_path: Path) -> None:
    node = helper.make_node("Softmax", ["x"], ["y"], axis=1)
    ports = [value(name, TensorProto.DOUBLE, "n", 3) for name in "xy"]
    graph = helper.make_graph([node], "soft", ports[:1], ports[1:])
    sets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=sets, ir_version=9), str(tmp_path / "m.onnx"))
    inputs = drawn(9, 3)
    found = asked(open_target(str(tmp_path / "m.onnx")).model, inputs)
    torch.testing.assert_close(found, torch.log_softmax(inputs, 1))


def value(name: str, kind: int, *shape: int | str) -> Any:
    return helper.make_tensor_value_info(name, kind, list(shape))


LABEL_AND_PROBABILITIES = {
    "extra": (
        helper.make_node("Softmax", ["y"], ["p"], axis=1),
        helper.make_node("ArgMax", ["y"], ["l"], axis=1, keepdims=0),
    ),
    "outputs": (value("l", TensorProto.INT64, "n"), value("p", TensorProto.FLOAT, "n", 3)),
}


def test_of_label_and_probabilities_the_declared_one_is_read(tmp_path: Path) -> None:
    net, inputs = small_cnn(), drawn(20, 1, 6, 6)
    path = written(tmp_path / "net.onnx", net, **LABEL_AND_PROBABILITIES)
    wanted = torch.softmax(asked(net, inputs), 1)
    target = open_target(path)
    assert target.gives == "probabilities"
    torch.testing.assert_close(torch.softmax(asked(target.model, inputs), 1), wanted, atol=1e-5, rtol=1e-4)  # fmt: skip
    labels = asked(open_target(path, gives="labels", classes=3).model, inputs)
    assert torch.equal(labels.argmax(1), wanted.argmax(1)) and bool((labels.sum(1) == 1).all())


def test_of_several_float_outputs_the_one_of_the_right_shape_is_read(tmp_path: Path) -> None:
    net = small_cnn()
    features = (value("f", TensorProto.FLOAT, "n", 32), value("y", TensorProto.FLOAT, "n", 3))
    path = written(tmp_path / "net.onnx", net, outputs=features)
    inputs = drawn(20, 1, 6, 6)
    found = asked(open_target(path, gives="logits", classes=3).model, inputs)
    torch.testing.assert_close(found, asked(net, inputs), atol=1e-4, rtol=1e-4)
    with pytest.raises(
        ConfigError, match=r"one output of floats \(n, classes\) expected, it has f .*, y "
    ):
        open_target(path, gives="logits")


def test_logits_of_an_onnx_model_that_were_not_declared_are_refused(tmp_path: Path) -> None:
    target = open_target(written(tmp_path / "net.onnx", small_cnn()))
    with pytest.raises(DataError, match="declare gives='logits'"):
        target.model(drawn(20, 1, 6, 6))


def test_records_of_another_shape_are_refused_by_the_onnx_model(tmp_path: Path) -> None:
    target = open_target(written(tmp_path / "net.onnx", small_cnn()), gives="logits")
    with pytest.raises(ConfigError, match=r"net.onnx, asked \(20, 1, 5, 5\).*invalid dimensions"):
        target.model(drawn(20, 1, 5, 5))


def test_onnx_models_of_other_forms_are_refused(tmp_path: Path) -> None:
    net, path = small_cnn(), tmp_path / "net.onnx"
    two = (value("m", TensorProto.FLOAT, "n", 3),)
    masked = (helper.make_node("Add", ["y", "m"], ["z"]),)
    written(path, net, inputs=two, extra=masked, outputs=(value("z", TensorProto.FLOAT, "n", 3),))
    with pytest.raises(ConfigError, match=r"one input of floats.* it has x .*, m .*: export a model of one"):  # fmt: skip
        open_target(str(path))
    written(path, net, **{**LABEL_AND_PROBABILITIES, "outputs": (value("l", TensorProto.INT64, "n"),)})  # fmt: skip
    with pytest.raises(ConfigError, match="one output of floats"):
        open_target(str(path))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="cannot be read as an ONNX model"):
        open_target(str(path))
    with pytest.raises(ConfigError, match="there is no file"):
        open_target(str(tmp_path / "other.onnx"))


def test_a_zipmap_is_refused_with_the_way_out(tmp_path: Path) -> None:
    label = helper.make_tensor_value_info("l", TensorProto.INT64, ["n"])
    maps = onnx.ValueInfoProto()
    maps.name = "z"
    held = maps.type.sequence_type.elem_type.map_type
    held.key_type = TensorProto.INT64
    held.value_type.tensor_type.elem_type = TensorProto.FLOAT
    graph = helper.make_graph(
        [
            helper.make_node("ArgMax", ["x"], ["l"], axis=1, keepdims=0),
            helper.make_node("ZipMap", ["x"], ["z"], domain="ai.onnx.ml", classlabels_int64s=[0, 1]),
        ],
        "net", [value("x", TensorProto.FLOAT, "n", 2)], [label, maps],
    )  # fmt: skip
    sets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(graph, opset_imports=sets, ir_version=9), str(tmp_path / "m.onnx"))
    with pytest.raises(ConfigError, match="without ZipMap"):
        open_target(str(tmp_path / "m.onnx"))
    labels = asked(
        open_target(str(tmp_path / "m.onnx"), gives="labels", classes=2).model, torch.eye(2)
    )
    assert labels.tolist() == [[1, 0], [0, 1]]


def test_without_onnxruntime_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "net.onnx", small_cnn())
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"pip install 'tacit\[onnx\]'"):
        open_target(path)


def test_a_convolutional_module_keeps_its_shape() -> None:
    net = cnn((1, 12, 12), 3, generator=torch.Generator().manual_seed(1))
    inputs = drawn(5, 1, 12, 12)
    torch.testing.assert_close(asked(target_of(net).model, inputs), asked(net, inputs))
