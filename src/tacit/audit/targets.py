"""A model of one's own as the target of an audit: a torch module, any Python function, or an ONNX file.

Attacks read logits (`tacit.attacks.access`). What a model gives is declared, one of `Gives`, and every answer is checked
and brought to logits:

=================  ===================================================  ================================================
gives              an answer for n records                              what attacks read
=================  ===================================================  ================================================
``logits``         (n, classes) logits or log-probabilities; or (n,)    the same; of a binary model 0 and the logit
                   or (n, 1), the logit of class 1 of a binary model
``probabilities``  (n, classes), or (n,) or (n, 1), that of class 1     their logarithms, of 0 at least -708
``labels``         (n,) or (n, 1) whole numbers, the predicted classes  1 at the predicted class, 0 elsewhere
=================  ===================================================  ================================================

**Trust**: code that is named is imported and run, as the caller would run it; weights are read from safetensors and ONNX
files, which hold no code of Python's. Nothing is unpickled: a model that is kept in another way is loaded by a function of
the caller's own (`open_target`).
"""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from tacit.attacks.access import TrainFunction
from tacit.attacks.evidence import LEAST_LOG
from tacit.audit.importing import described, imported
from tacit.core.errors import ConfigError, DataError, TacitError, TacitWarning, UnknownName
from tacit.nn.spec import load_model
from tacit.nn.stacked import Trainer, is_out_of_memory

Gives = Literal["labels", "probabilities", "logits"]
Kind = Literal["module", "callable", "onnx", "endpoint"]

#: A model as a function: float32 records (n, *record shape) in; answers as an array, a tensor or nested lists out.
Predict = Callable[[npt.NDArray[np.float32]], Any]

#: Records that a model is asked about at once, at most.
BATCH = 1024

#: How far probabilities may be from a sum of one: those of real services are float32, or rounded.
ROUNDING = 1e-3

# So many single numbers in [0, 1] are not logits of a binary model by chance.
_SURE = 20

_FLOATS = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16}
_WHOLE = tuple(f"tensor({sign}int{bits})" for sign in ("", "u") for bits in (8, 16, 32, 64))


def _nothing() -> None:
    pass


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """A model as attacks can ask it.

    Args:
        model: float32 records (n, *record shape) on any device to logits (n, classes) float32 on the same, in batches of at
            most `BATCH`; raises as `target_of` says.
        gives: what the model itself answers with.
        kind: what the model is.
        name: what it is called in a report.
        parameters: how many; None where they cannot be seen.
        device: where the model computes.
        module: the caller's own, to train others of its architecture; None where there is none.
        queries: how many records it may still be asked about, those of these (n, *record shape) that it need not be asked
            about again among them; None for no limit.
        close: lets go of connections and files, where it has any (`contextlib.closing` calls it).
    """

    model: nn.Module = field(repr=False)
    gives: Gives
    kind: Kind
    name: str
    parameters: int | None
    device: torch.device
    module: nn.Module | None = field(default=None, repr=False)
    queries: Callable[[Tensor], int] | None = None
    close: Callable[[], None] = field(default=_nothing, repr=False)


def target_of(
    model: nn.Module | Predict, *, gives: Gives | None = None, classes: int | None = None
) -> Target:
    """A module or a function as a target.

    A module is put into evaluation mode, and gets records in its own type of float, on its own device. A function gets a
    copy of the records. Neither can change those of the audit.

    Args:
        model: what to audit.
        gives: what it answers with; None takes logits of a module and probabilities of a function.
        classes: how many it tells apart; None takes what the first answer has. Needed where it gives labels.

    Raises:
        ConfigError: the model is neither, or a setting is out of range. When it is asked: the model raised an error (which
            is the cause, and whose text is in the message).
        DataError: when it is asked: an answer is not what `gives` declares, or not finite.

    Warns:
        TacitWarning: when it is asked: declared logits are probabilities.
    """
    if isinstance(model, nn.Module):
        name = type(model).__name__
        return _target(_Asked(model, gives or "logits", classes, name), "module")
    if not callable(model):
        hint = ": give its predict_proba" if hasattr(model, "predict_proba") else ""
        raise ConfigError(
            f"a torch.nn.Module or a function of records expected, {type(model).__name__} came{hint}"
        )
    return _target(_Asked(model, gives or "probabilities", classes, _name(model)), "callable")


def open_target(
    name: str,
    *,
    weights: Path | None = None,
    gives: Gives | None = None,
    classes: int | None = None,
) -> Target:
    """A target that is named, as on a command line.

    ====================  ============  ==================================================================================
    name                  weights       what is audited
    ====================  ============  ==================================================================================
    ``module:factory``    safetensors   the `torch.nn.Module` that ``factory()`` gives, with these weights
    ``module:attribute``                a module with the weights that it has; a function of records; or what a function
                                        without arguments gives, either of the two
    ``*.safetensors``                   a model that `tacit.nn.spec.save_model` wrote, as ``tacit train`` does
    ``*.onnx``                          a model with one input of floats, run by onnxruntime on the processor. The first
                                        axis counts records; where it is fixed, records come in lots of that size, the
                                        last filled up. Of several outputs the one of floats of shape (n, classes) is read
    ====================  ============  ==================================================================================

    Args:
        name: one of the above; modules are looked for in the working directory too.
        weights: a safetensors file with the names and shapes of the module's ``state_dict``.
        gives: as in `target_of`; None takes probabilities of an ONNX file.
        classes: as in `target_of`.

    Raises:
        ConfigError: there is no such model; its weights do not fit; onnxruntime is not installed; or as in `target_of`.
        DataError: a file is damaged; or as in `target_of`.
    """
    suffix = Path(name).suffix.lower()
    if suffix in (".onnx", ".safetensors"):
        if weights is not None:
            raise ConfigError(f"{name} holds its own weights: leave out {weights}")
        if suffix == ".safetensors":
            return target_of(load_model(Path(name)), gives=gives, classes=classes)
        model = _Onnx(Path(name), gives, classes)
        return _target(_Asked(model, gives or "probabilities", classes, Path(name).name), "onnx")
    if ":" not in name:
        raise ConfigError(
            f"module:attribute, a .onnx or a .safetensors file expected as the model, {name!r} came"
        )
    found = imported(name)
    if weights is not None:
        return target_of(_weighted(name, found, weights), gives=gives, classes=classes)
    if inspect.isclass(found):
        raise ConfigError(
            f"{name} is a class: give the weights of its model, or name a model or a function"
        )
    if not isinstance(found, nn.Module) and _is_factory(found):
        found = _called(found, name)
    return target_of(found, gives=gives, classes=classes)


def train_function(
    train_fn: Callable[[Tensor, Tensor, torch.Generator], nn.Module | Predict],
    gives: Gives | None = None,
    classes: int | None = None,
) -> TrainFunction:
    """A training function of one's own as shadow models need it: what it gives is wrapped as `target_of` does.

    Args:
        train_fn: of inputs (n, *record shape) float32, labels (n,) int64 and a generator. It trains on these records alone,
            from scratch, and gives a module or a function of records. A `tacit.nn.stacked.Trainer` comes back as it is.
        gives: what its models answer with; None takes logits of a module and probabilities of a function.
        classes: as in `target_of`. A model that was trained without records of a class must answer for it all the same.

    Raises:
        ConfigError: a setting is out of range. When it is called: it raised an error, or gave neither.
    """
    if isinstance(train_fn, Trainer):
        return train_fn
    _check(gives, classes)
    if not callable(train_fn):
        raise ConfigError(
            f"a function of (inputs, labels, generator) expected, {type(train_fn).__name__} came"
        )
    return _TrainFunction(train_fn, gives, classes)


class _TrainFunction:
    """See `train_function`. Its name, by which a folder of shadow models knows it, is that of the function within."""

    def __init__(
        self, train_fn: Callable[..., Any], gives: Gives | None, classes: int | None
    ) -> None:
        self._train_fn, self._gives, self._classes = train_fn, gives, classes
        self._told: set[str] = set()
        named = train_fn
        while isinstance(named, partial):
            named = named.func
        self.__module__ = named.__module__
        name = getattr(named, "__qualname__", type(named).__qualname__)
        self.__qualname__ = name if gives is None else f"{name} ({gives})"

    def __call__(self, inputs: Tensor, labels: Tensor, generator: torch.Generator) -> nn.Module:
        """Train one model.

        Raises:
            ConfigError: see `train_function`.
        """
        name = self.__qualname__
        model = _called(partial(self._train_fn, inputs, labels, generator), name, inputs)
        if not callable(model):
            raise ConfigError(
                f"{name} must give a torch.nn.Module or a function of records, gave {type(model).__name__}"
            )
        usual: Gives = "logits" if isinstance(model, nn.Module) else "probabilities"
        return _Asked(
            model, self._gives or usual, self._classes, f"a model of {name}", self._told
        ).eval()


def _target(asked: _Asked, kind: Kind) -> Target:
    asked.eval()
    module = asked.asked if isinstance(asked.asked, nn.Module) else None
    return Target(
        model=asked, gives=asked.gives, kind=kind, name=asked.name, device=asked.place()[0], module=module,
        parameters=None if module is None else sum(one.numel() for one in module.parameters()),
    )  # fmt: skip


def _check(gives: Gives | None, classes: int | None) -> None:
    if gives not in (None, *get_args(Gives)):
        raise UnknownName("kind of answer", str(gives), get_args(Gives))
    if classes is not None and classes < 2:
        raise ConfigError(f"at least 2 classes expected, {classes} came")


def _name(function: Callable[..., Any]) -> str:
    """What a function is called in a report."""
    while isinstance(function, partial):
        function = function.func
    owner = getattr(function, "__self__", None)
    if owner is not None and not inspect.ismodule(owner):
        kind = owner if inspect.isclass(owner) else type(owner)
        return f"{kind.__name__}.{getattr(function, '__name__', '')}"
    return str(getattr(function, "__qualname__", type(function).__qualname__))


def _called(function: Callable[[], Any], name: str, inputs: Tensor | None = None) -> Any:
    """Call the caller's code; an error of its own comes out as the cause of one that says what was asked."""
    try:
        return function()
    except Exception as error:
        if isinstance(error, TacitError) or is_out_of_memory(error):
            raise
        asked = "" if inputs is None else f", asked {tuple(inputs.shape)} {inputs.dtype},"
        raise ConfigError(f"{name}{asked} failed with {described(error)}") from error


# --- asking


class _Asked(nn.Module):
    """A module or function whose every answer is checked and brought to logits.

    Args:
        model: what is asked.
        gives: what it answers with.
        classes: how many; None until the first answer.
        name: what it is called in errors.
        told: warnings that were given and are not repeated; models may share it.
    """

    def __init__(
        self, model: nn.Module | Predict, gives: Gives, classes: int | None, name: str, told: set[str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        _check(gives, classes)
        if gives == "labels" and classes is None:
            raise ConfigError(f"{name} gives labels: say of how many classes")
        self.asked: nn.Module | Predict = model
        self.gives, self.name = gives, name
        self._classes, self._told = classes, set() if told is None else told

    def place(self) -> tuple[torch.device, torch.dtype]:
        """Where the model computes, and in which type of float."""
        held = [*self.parameters(), *self.buffers()]
        kinds = [one.dtype for one in held if one.is_floating_point()]
        device = held[0].device if held else torch.device("cpu")
        return device, kinds[0] if kinds else torch.float32

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (n, classes) float32 of records (n, *record shape); raises as `target_of` says."""
        answers = [self._answer(part) for part in torch.split(inputs, BATCH)]
        return torch.cat(answers).to(inputs.device)

    def _answer(self, records: Tensor) -> Tensor:
        model = self.asked
        if isinstance(model, nn.Module):
            device, kind = self.place()
            given = records.to(device, kind, copy=True)
            said = _called(lambda: model(given), self.name, given)
        else:
            array = np.array(records.detach().float().cpu().numpy(), order="C")
            said = _called(lambda: model(array), self.name, records)
        answers = self._numbers(said)
        logits = logits_from(
            answers, self.gives, self._classes, name=self.name, records=len(records)
        )
        if self.gives == "logits":
            self._tell_probabilities(answers)
        self._classes = logits.shape[1]
        return logits.float()

    def _numbers(self, said: Any) -> Tensor:
        """An answer as a tensor of its own type."""
        if isinstance(said, Tensor):
            return said
        wrong = f"{self.name} gives {self.gives}: one array of numbers expected, {type(said).__name__} came"
        if isinstance(said, (dict, nn.Module)) or callable(said):
            raise DataError(f"{wrong}: wrap it in a function that gives the array alone")
        try:
            array = np.asarray(said)
        except Exception as error:
            raise DataError(f"{wrong} ({described(error)})") from error
        if array.dtype.kind not in "biuf":
            raise DataError(f"{wrong} with {array.dtype}")
        if array.dtype.kind == "f":
            array = array.astype(np.float64)
        elif array.dtype.kind == "u":
            array = array.astype(np.int64)
        return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("=")))

    def _tell_probabilities(self, values: Tensor) -> None:
        if values.dim() == 1 or values.shape[1] == 1:
            like = len(values) >= _SURE and bool(((values >= 0) & (values <= 1)).all())
        else:
            like = bool((values >= 0).all() and ((values.sum(1) - 1).abs() <= ROUNDING).all())
        if like and len(values) and "probabilities" not in self._told:
            self._told.add("probabilities")
            warnings.warn(
                f"{self.name} gives logits, as declared, and all of them are probabilities: declare gives='probabilities', "
                "else attacks that read scores see a model that is hardly sure of anything",
                TacitWarning,
                stacklevel=2,
            )


def logits_from(
    answers: Tensor, gives: Gives, classes: int | None, *, name: str, records: int
) -> Tensor:
    """An answer, checked, as the logits that it stands for.

    Args:
        answers: see the table above.
        gives: what they are.
        classes: how many; None takes the answer's. Needed for labels.
        name: what the model is called in errors.
        records: n, how many answers are expected.

    Returns:
        (n, classes) float64, finite.

    Raises:
        DataError: they are not what ``gives`` says, of another shape, or not finite.
    """
    if gives == "labels":
        return _of_labels(answers, classes, name, records)
    shape = tuple(answers.shape)
    binary = shape in ((records,), (records, 1)) and classes in (None, 2)
    if not binary and (len(shape) != 2 or shape[0] != records or shape[1] < 2):
        wanted = "classes" if classes is None else classes
        raise DataError(
            f"{name} gives {gives}: shape ({records}, {wanted}) expected for {records} records, {shape} came"
        )
    if binary and not answers.is_floating_point():
        raise DataError(
            f"{name} gives {gives}: numbers with a fraction expected, {answers.dtype} of shape {shape} came: "
            "where these are predicted classes, declare gives='labels'"
        )
    if not binary and classes not in (None, shape[1]):
        raise DataError(
            f"{name}: answers for {classes} classes expected, for {shape[1]} came: a model must answer for every class, "
            "also for one that it was not trained on"
        )
    values = answers.reshape(records, -1).double()
    # The logarithm of a probability of zero is the one number that need not be finite.
    zero = (values == -torch.inf) & (gives == "logits") & (not binary)
    if bad := _first((~torch.isfinite(values) & ~zero).any(1) | zero.all(1)):
        raise DataError(
            f"{name} answered {bad[1]} of {records} records with numbers that are not finite, first record {bad[0]} of a "
            "batch: its training diverged, or it was not trained on inputs like these"
        )
    if gives == "probabilities":
        return _of_probabilities(values, name)
    if binary:
        return torch.cat([torch.zeros_like(values), values], 1)
    return torch.where(zero, values.amax(1, keepdim=True) - LEAST_LOG, values)


def _of_labels(answers: Tensor, classes: int | None, name: str, records: int) -> Tensor:
    if classes is None or tuple(answers.shape) not in ((records,), (records, 1)):
        raise DataError(
            f"{name} gives labels: shape ({records},) expected, {tuple(answers.shape)} came: where it gives a number a "
            "class, declare gives='probabilities' or 'logits'"
        )
    flat = answers.reshape(records).detach().double()
    if bad := _first(~((flat >= 0) & (flat < classes) & (flat == flat.round()))):
        place, total = bad
        raise DataError(
            f"{name} gives labels: whole numbers 0 to {classes - 1} expected, {total} of {records} are not, first "
            f"{flat[place]:g} for record {place} of a batch"
        )
    return nn.functional.one_hot(flat.long(), classes).double()


def _of_probabilities(values: Tensor, name: str) -> Tensor:
    if values.shape[1] == 1:
        values = torch.cat([1 - values, values], 1)
    least, off = values.amin(1), values.sum(1) - 1
    if bad := _first((least < 0) | (off.abs() > ROUNDING)):
        place, total = bad
        raise DataError(
            f"{name} gives probabilities: numbers of at least 0 that sum to 1 expected, {total} of {len(values)} answers "
            f"are not, first that for record {place} of a batch (least {least[place]:.3g}, sum off by {off[place]:.3g}): "
            "declare gives='logits' for logits and log-probabilities, gives='labels' for predicted classes; else bring the "
            "sums to 1"
        )
    return values.log().clamp_min(-LEAST_LOG)


def _first(bad: Tensor) -> tuple[int, int] | None:
    """The first of what is marked, and how many there are; None if nothing is."""
    places = torch.nonzero(bad).reshape(-1)
    return (int(places[0]), len(places)) if len(places) else None


# --- what is named


def _is_factory(function: Any) -> bool:
    """Whether a function takes no argument at all."""
    try:
        return callable(function) and not inspect.signature(function).parameters
    except ValueError:  # of functions that are not Python's the signature may not be known
        return False


def _weighted(name: str, found: Any, weights: Path) -> nn.Module:
    """The module that a factory gives, or that was named, with weights from a file."""
    model = found
    if not isinstance(found, nn.Module):
        if not callable(found):
            raise ConfigError(
                f"{name} must be a function without arguments that gives a torch.nn.Module, is {type(found).__name__}"
            )
        model = _called(found, name)
    if not isinstance(model, nn.Module):
        raise ConfigError(f"{name} must give a torch.nn.Module, gave {type(model).__name__}")
    if not weights.is_file():
        raise ConfigError(f"there is no file {weights}")
    try:
        tensors = load_file(weights)
    except (SafetensorError, OSError) as error:
        raise DataError(f"{weights} cannot be read as a safetensors file: {error}") from error
    held = model.state_dict()
    # Weights that two names share are written once.
    written = {held[key].data_ptr() for key in tensors.keys() & held.keys()}
    missing = [
        key for key, own in held.items() if key not in tensors and own.data_ptr() not in written
    ]
    other = [
        f"{key} is {tuple(tensors[key].shape)} and not {tuple(own.shape)}"
        for key, own in held.items()
        if key in tensors and tensors[key].shape != own.shape
    ]
    wrong = [
        text
        for text, which in (
            ("lacks ", missing),
            ("has none for ", sorted(tensors.keys() - held.keys())),
            ("", other),
        )
        if which
        for text in (f"{text}{_few(which)}",)
    ]
    if wrong:
        raise ConfigError(f"{weights} does not fit the model of {name}: {'; '.join(wrong)}")
    model.load_state_dict(tensors, strict=False)
    return model


def _few(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


class _Onnx:
    """An ONNX model as a function of records, run by onnxruntime.

    Args:
        path: of the file.
        gives: see `open_target`.
        classes: see `open_target`.

    Raises:
        ConfigError: onnxruntime is not installed, or the model has not one input of floats and one output that fits.
        DataError: the file is damaged.
    """

    def __init__(self, path: Path, gives: Gives | None, classes: int | None) -> None:
        if not path.is_file():
            raise ConfigError(f"there is no file {path}")
        try:
            runtime: Any = importlib.import_module("onnxruntime")
        except ImportError as error:
            raise ConfigError(
                f"{path} needs onnxruntime, which is not installed here ({error}): pip install 'tacit[onnx]'"
            ) from error
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self._session: Any = runtime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise DataError(
                f"{path} cannot be read as an ONNX model: {described(error)}"
            ) from error
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or inputs[0].type not in _FLOATS or not inputs[0].shape:
            raise ConfigError(
                f"{path}: one input of floats, the records, expected, it has {_listed(inputs)}: export a model of one "
                "input, or wrap it in a function of your own"
            )
        self._input, self._output = inputs[0], _output(path, self._session, gives, classes)
        first = self._input.shape[0]
        self._lot = first if isinstance(first, int) and first > 0 else None

    def __call__(self, records: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        """Answers for records (n, *record shape)."""
        records = records.astype(_FLOATS[self._input.type])
        if self._lot is None:
            return self._run(records)
        count = len(records)
        filled = np.concatenate([records, np.repeat(records[-1:], -count % self._lot, 0)])
        lots = np.split(filled, len(filled) // self._lot)
        return np.concatenate([self._run(lot) for lot in lots])[:count]

    def _run(self, records: npt.NDArray[Any]) -> npt.NDArray[Any]:
        (answer,) = self._session.run([self._output.name], {self._input.name: records})
        return np.asarray(answer)


def _listed(ports: Any) -> str:
    return ", ".join(f"{one.name} {one.type} {one.shape}" for one in ports) or "none"


def _output(path: Path, session: Any, gives: Gives | None, classes: int | None) -> Any:
    """The output that holds the answers."""
    outputs = session.get_outputs()
    kinds = (*_WHOLE, "tensor(bool)") if gives == "labels" else tuple(_FLOATS)
    fit = [one for one in outputs if one.type in kinds]
    if gives != "labels" and len(fit) > 1:
        fit = [
            one
            for one in fit
            if len(one.shape) == 2
            and (classes is None or not isinstance(one.shape[1], int) or one.shape[1] == classes)
        ]
    if gives == "labels" and not fit and len(outputs) == 1:
        fit = list(outputs)  # whole numbers may come as floats
    if len(fit) == 1:
        return fit[0]
    wanted = "whole numbers (n,)" if gives == "labels" else "floats (n, classes)"
    hint = (
        ": export it without ZipMap (options={'zipmap': False})"
        if any(one.type.startswith("seq(map") for one in outputs)
        else ": wrap it in a function of your own that gives one of them"
    )
    raise ConfigError(f"{path}: one output of {wanted} expected, it has {_listed(outputs)}{hint}")
