"""A model as a list of layers, to and from torch.

A `ModelSpec` says what a feed-forward network computes and holds none of its weights. Protocols
walk it to know what they have to evaluate, parties send it as JSON, and a saved model carries it,
so that no code has to be unpickled to load a model.

It covers what it can describe exactly and refuses the rest. `torch.nn.Identity` and
`torch.nn.Dropout(p=0)` compute nothing and are left out. Any other dropout is refused: its masks
come from torch's global generator, so a run with it could not be repeated.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from tacit.core.errors import ConfigError, UnsupportedLayer
from tacit.core.files import write_file
from tacit.nn.layers import (
    KINDS,
    OWN_MODULES,
    BatchNorm1d,
    BatchNorm2d,
    Layer,
    MisfitError,
    Shape,
    check_shape,
    short,
)

FORMAT = "tacit.model/1"
MAX_JSON_CHARACTERS = 1 << 20
MAX_LAYERS = 1024
MAX_ELEMENTS = 1 << 28  #: of the input or any layer's output, per example
MAX_PARAMETERS = 1 << 30

_READERS: Mapping[type[nn.Module], Callable[[Any, str], Layer]] = {
    OWN_MODULES.get(name) or getattr(nn, name): kind.of for name, kind in KINDS.items()
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """What a feed-forward network computes: the shape of an input and the layers in order.

    A spec that exists fits together: the constructor follows the shapes through every layer.

    Attributes:
        input_shape: shape of one input, without the batch.
        layers: the layers, first to last; at least one.

    Raises:
        ConfigError: a layer does not fit the output of the one before, or a bound is exceeded.
    """

    input_shape: Shape
    layers: tuple[Layer, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.layers, tuple) or not 1 <= len(self.layers) <= MAX_LAYERS:
            raise ConfigError(f"layers must be a tuple of 1 to {MAX_LAYERS} layers")
        for layer in self.layers:
            if not isinstance(layer, Layer):
                raise ConfigError(f"layers must hold layers of tacit.nn.layers, not {short(layer)}")
        held = self.parameter_count + sum(  # running statistics take memory too
            2 * layer.num_features
            for layer in self.layers
            if isinstance(layer, BatchNorm1d | BatchNorm2d)
        )
        if held > MAX_PARAMETERS:
            raise ConfigError(f"a model may hold at most {MAX_PARAMETERS} numbers, not {held}")
        self.shapes()

    @classmethod
    def of(cls, module: nn.Module, input_shape: Sequence[int]) -> ModelSpec:
        """Describe a torch model: one supported layer, or (nested) `torch.nn.Sequential` of them.

        Nested sequentials are flattened, and layers that compute nothing are left out. Whether the
        module is in training or evaluation mode is not part of the description.

        Args:
            module: the model; it is not changed.
            input_shape: shape of one input, without the batch.

        Raises:
            UnsupportedLayer: a layer, or an option of one, that a spec cannot express; or weights
                that two layers share.
            ConfigError: the layers do not fit each other or ``input_shape``.
        """
        named = list(_leaves(module))
        _check_unshared(named)
        layers = tuple(_read(path, leaf) for path, leaf in named)
        shape = tuple(input_shape)
        # Once with the module's own paths in the messages; the constructor only knows positions.
        _follow(shape, layers, [_label(path, leaf) for path, leaf in named])
        return cls(input_shape=shape, layers=layers)

    @property
    def parameter_count(self) -> int:
        """Number of trainable scalars."""
        return sum(layer.parameter_count for layer in self.layers)

    @property
    def output_shape(self) -> Shape:
        """Shape of one output, without the batch."""
        return self.shapes()[-1]

    def shapes(self) -> tuple[Shape, ...]:
        """Output shape of every layer, without the batch. No data run through the model."""
        labels = [f"{n} ({type(layer).__name__})" for n, layer in enumerate(self.layers)]
        return _follow(self.input_shape, self.layers, labels)

    def build(self) -> nn.Sequential:
        """The torch model, on the CPU in float32, with every parameter zero.

        Load or initialise it before use. Torch's global generator is neither read nor advanced.
        """
        model = self._on_meta().to_empty(device="cpu")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        for layer in model:
            if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
                layer.reset_running_stats()
        return model

    def to_json(self) -> str:
        """One line of JSON; equal specs give equal text."""
        layers = [{"type": type(layer).__name__, **asdict(layer)} for layer in self.layers]
        document = {"format": FORMAT, "input_shape": self.input_shape, "layers": layers}
        return json.dumps(document, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> ModelSpec:
        """Read what `to_json` wrote; the text may come from anyone.

        Raises:
            ConfigError: the text is too long, is not JSON, or does not describe a model that fits.
        """
        document = _parse(text)
        _check_keys("the description", document, {"format", "input_shape", "layers"})
        if document["format"] != FORMAT:
            raise ConfigError(
                f"the description's format must be {FORMAT!r}, not {short(document['format'])}"
            )
        listed = document["layers"]
        if not isinstance(listed, list) or not 1 <= len(listed) <= MAX_LAYERS:
            raise ConfigError(f"the description's layers must be a list of 1 to {MAX_LAYERS}")
        layers = tuple(_layer_from(entry, position) for position, entry in enumerate(listed))
        return cls(input_shape=_as_tuple(document["input_shape"]), layers=layers)

    def _on_meta(self) -> nn.Sequential:
        return nn.Sequential(*(layer.module() for layer in self.layers))


def save_model(module: nn.Module, input_shape: Sequence[int], path: Path | str) -> ModelSpec:
    """Write a model's weights and description to one safetensors file, whole or not at all.

    Args:
        module: the model, on any device; buffers (running statistics) are written too.
        input_shape: shape of one input, without the batch.
        path: the file; replaced if it exists.

    Returns:
        The description that was written.

    Raises:
        UnsupportedLayer: see `ModelSpec.of`; or parameters that are not all of one float type.
        ConfigError: the layers do not fit each other or ``input_shape``.
        OutputError: the file cannot be written.
    """
    spec = ModelSpec.of(module, input_shape)
    flat = nn.Sequential(*(leaf for _, leaf in _leaves(module)))
    # Copied, since weights may be views of one flat vector, which the format refuses.
    tensors = {
        name: tensor.cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in flat.state_dict().items()
    }
    _check_one_float_type(tensors, UnsupportedLayer, "the model")
    write_file(Path(path), safetensors_bytes(tensors, metadata={"tacit.spec": spec.to_json()}))
    return spec


def load_model(path: Path | str) -> nn.Sequential:
    """Read a model that `save_model` wrote; the file may come from anyone.

    Args:
        path: the safetensors file.

    Returns:
        The model on the CPU, in the float type it was saved in and in evaluation mode.

    Raises:
        ConfigError: the file cannot be read, is not a model of tacit, or its tensors do not match
            its description.
    """
    text, tensors = _read_safetensors(Path(path))
    try:
        model = ModelSpec.from_json(text)._on_meta()
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    _check_tensors(path, tensors, model.state_dict())
    # The file's tensors become the parameters: nothing is allocated on the description's word.
    model.load_state_dict(tensors, assign=True)
    return model.eval()


def _follow(shape: Shape, layers: Sequence[Layer], labels: Sequence[str]) -> tuple[Shape, ...]:
    check_shape("input_shape", shape)
    _check_elements("the input", shape)
    shapes = []
    for layer, label in zip(layers, labels, strict=True):
        try:
            following = layer.output_shape(shape)
        except MisfitError as misfit:
            raise ConfigError(
                f"layer {label} takes {misfit}, but gets shape {shape}: "
                "correct the layer or input_shape"
            ) from None
        _check_elements(f"the output of layer {label}", following)
        shapes.append(following)
        shape = following
    return tuple(shapes)


def _leaves(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    is_plain = type(module).forward is nn.Sequential.forward
    if isinstance(module, nn.Sequential) and is_plain:
        for name, child in zip(module._modules, module, strict=True):
            yield from _leaves(child, f"{path}.{name}" if path else name)
    elif not _computes_nothing(module):
        yield path, module


def _computes_nothing(module: nn.Module) -> bool:
    return type(module) is nn.Identity or (type(module) is nn.Dropout and module.p == 0)


def _label(path: str, module: nn.Module) -> str:
    return f"{path or 'of the model'} ({type(module).__name__})"


def _read(path: str, module: nn.Module) -> Layer:
    label = _label(path, module)
    if type(module) is nn.Dropout:
        raise UnsupportedLayer(
            f"layer {label} draws its masks from torch's global generator, so a run cannot be "
            "repeated: put nn.Identity() in its place (in evaluation mode it is that already)"
        )
    hooked = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
    reader = None if hooked else _READERS.get(type(module))
    if reader is None:
        raise UnsupportedLayer(
            f"layer {label} cannot be described: use nn.Sequential of {', '.join(KINDS)}, without hooks"
        )
    layer = reader(module, label)
    expected = {name: t.shape for name, t in layer.module().state_dict().items()}
    found = {name: t.shape for name, t in module.state_dict().items()}
    if found != expected:
        raise UnsupportedLayer(
            f"layer {label} should hold the tensors {_listed(expected)} but holds "
            f"{_listed(found)}: undo what was added to it (weight norm, pruning, adapters)"
        )
    return layer


def _check_unshared(named: Sequence[tuple[str, nn.Module]]) -> None:
    owners: dict[int, str] = {}
    for path, leaf in named:
        for tensor in (*leaf.parameters(), *leaf.buffers()):
            other = owners.setdefault(id(tensor), path)
            if other != path:
                raise UnsupportedLayer(
                    f"layers {other} and {_label(path, leaf)} share weights, which a list of "
                    "layers cannot express: give each its own"
                )


def _check_elements(what: str, shape: Shape) -> None:
    if math.prod(shape) > MAX_ELEMENTS:
        raise ConfigError(f"{what} may have at most {MAX_ELEMENTS} values, not shape {shape}")


def _parse(text: str) -> Any:
    if len(text) > MAX_JSON_CHARACTERS:
        raise ConfigError(
            f"the description of a model has at most {MAX_JSON_CHARACTERS} characters, "
            f"not {len(text)}"
        )
    try:
        return json.loads(text, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the description of a model must be JSON, but: {error}") from error


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise ValueError("an object names a key twice")
    return entries


def _check_keys(what: str, entry: object, keys: set[str]) -> None:
    if not isinstance(entry, dict):
        raise ConfigError(f"{what} must be an object, not {short(entry)}")
    if entry.keys() != keys:
        raise ConfigError(
            f"{what} must have exactly the keys {sorted(keys)}, not {short(sorted(entry))}"
        )


def _layer_from(entry: Any, position: int) -> Layer:
    what = f"layer {position} of the description"
    name = entry.get("type") if isinstance(entry, dict) else None
    kind = KINDS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise ConfigError(f"{what} must have a type out of {', '.join(KINDS)}, not {short(name)}")
    _check_keys(what, entry, {"type"} | {field.name for field in fields(kind)})
    options = {key: _as_tuple(value) for key, value in entry.items() if key != "type"}
    try:
        return kind(**options)
    except ConfigError as error:
        raise ConfigError(f"{what} ({name}): {error}") from error


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _listed(tensors: Mapping[str, torch.Size]) -> str:
    return ", ".join(f"{name} {tuple(shape)}" for name, shape in tensors.items()) or "none"


def _check_one_float_type(
    tensors: Mapping[str, Tensor], error: type[ConfigError | UnsupportedLayer], what: object
) -> None:
    allowed = {torch.float32, torch.float64, torch.float16, torch.bfloat16}
    found = {t.dtype for name, t in tensors.items() if not name.endswith("num_batches_tracked")}
    if len(found) > 1 or not found <= allowed:
        raise error(
            f"{what} must hold numbers of one type out of float32, float64, float16 and bfloat16, "
            f"not {', '.join(sorted(str(dtype) for dtype in found))}"
        )


def _check_tensors(
    path: Path | str, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> None:
    wanted = {name: t.shape for name, t in expected.items()}
    found = {name: t.shape for name, t in tensors.items()}
    differing = [name for name in {**wanted, **found} if wanted.get(name) != found.get(name)]
    if differing:
        name = differing[0]
        raise ConfigError(
            f"{path}: tensor {short(name)} should be {_shape_or_absent(wanted, name)} by the "
            f"description but is {_shape_or_absent(found, name)}: the file is damaged or forged"
        )
    _check_one_float_type(tensors, ConfigError, path)
    for name, tensor in tensors.items():
        if name.endswith("num_batches_tracked") and tensor.dtype != torch.int64:
            raise ConfigError(f"{path}: tensor {name} must be int64, not {tensor.dtype}")


def _shape_or_absent(shapes: Mapping[str, torch.Size], name: str) -> str:
    return f"of shape {tuple(shapes[name])}" if name in shapes else "absent"


def _read_safetensors(path: Path) -> tuple[str, dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("tacit.spec")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path} cannot be read as a safetensors file: {error}") from error
    if text is None:
        raise ConfigError(
            f"{path} has no description of its model (metadata key tacit.spec): "
            "write it with tacit.nn.spec.save_model"
        )
    return text, tensors
