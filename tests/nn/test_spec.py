import json
import math
import os
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tacit.core.errors import ConfigError, OutputError, UnsupportedLayer
from tacit.nn import layers
from tacit.nn.networks import initialise
from tacit.nn.spec import (
    FORMAT,
    MAX_JSON_CHARACTERS,
    MAX_LAYERS,
    ModelSpec,
    load_model,
    save_model,
)

# Each is a model of one or two layers and the shape of an input.
MODELS = [
    (nn.Linear(6, 4), (6,)),
    (nn.Linear(6, 4, bias=False), (3, 6)),
    (nn.Conv2d(3, 5, 3), (3, 9, 8)),
    (nn.Conv2d(3, 5, (3, 2), stride=(2, 1), padding=(1, 0), bias=False), (3, 9, 8)),
    (nn.Conv2d(3, 5, (3, 5), padding="same"), (3, 9, 8)),
    (nn.Conv2d(3, 5, 4, padding="valid"), (3, 9, 8)),
    (nn.MaxPool2d(2), (3, 9, 8)),
    (nn.MaxPool2d((3, 2), stride=(1, 2), padding=(1, 0)), (3, 9, 8)),
    (nn.AvgPool2d(3, stride=2, padding=1), (3, 9, 8)),
    (nn.AvgPool2d(2, count_include_pad=False), (3, 9, 8)),
    (nn.ReLU(inplace=True), (4,)),
    (nn.LeakyReLU(0.2), (4,)),
    (nn.Sigmoid(), (4, 2)),
    (layers.SquareModule(), (4, 2)),
    (layers.PiecewiseLogisticModule(), (4, 2)),
    (nn.Tanh(), (4, 2, 2)),
    (nn.Flatten(), (3, 4, 2)),
    (nn.Softmax(dim=1), (4, 3)),
    (nn.Softmax(dim=-1), (4, 3)),
    (nn.LayerNorm((4, 3)), (2, 4, 3)),
    (nn.LayerNorm(3, eps=0.1, bias=False), (3,)),
    (nn.LayerNorm(3, elementwise_affine=False), (3,)),
    (nn.GroupNorm(2, 6), (6, 4, 4)),
    (nn.GroupNorm(3, 6, eps=0.1, affine=False), (6,)),
    (nn.BatchNorm1d(4), (4,)),
    (nn.BatchNorm1d(4, momentum=None, affine=False), (4, 3)),
    (nn.BatchNorm2d(3, eps=0.1, momentum=0.3), (3, 5, 5)),
    (nn.BatchNorm2d(3, track_running_stats=False), (3, 5, 5)),
]


def ident(value):
    return str(value) if isinstance(value, nn.Module) else None


@pytest.fixture
def deep(generator):
    """Nested, with a shared activation, something of each kind, and statistics that are not fresh."""
    act = nn.Tanh()
    model = nn.Sequential(
        OrderedDict(
            first=nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), act),
            gap=nn.Identity(),
            second=nn.Sequential(nn.Sequential(nn.AvgPool2d(2), act), nn.Dropout(0.0)),
            last=nn.Sequential(nn.Flatten(), nn.Linear(64, 3)),
        )
    )
    initialise(model, generator)
    model(torch.rand(16, 1, 8, 8, generator=generator))
    return model.eval()


@pytest.mark.parametrize(("module", "shape"), MODELS, ids=ident)
def test_every_layer_computes_the_same_after_a_round_trip(module, shape, generator):
    spec = ModelSpec.of(module, shape)
    rebuilt = ModelSpec.from_json(spec.to_json())
    assert rebuilt == spec
    copy = rebuilt.build()
    copy.load_state_dict({f"0.{name}": tensor for name, tensor in module.state_dict().items()})
    for mode in (True, False):
        batch = torch.randn(5, *shape, generator=generator)
        expected = module.train(mode)(batch.clone())
        found = copy.train(mode)(batch)
        assert torch.equal(found, expected)
        assert spec.output_shape == tuple(expected.shape[1:])
    assert spec.parameter_count == sum(parameter.numel() for parameter in module.parameters())


def test_nested_sequentials_are_flattened_and_empty_layers_left_out(deep):
    spec = ModelSpec.of(deep, (1, 8, 8))
    assert [type(layer) for layer in spec.layers] == [
        layers.Conv2d,
        layers.BatchNorm2d,
        layers.Tanh,
        layers.AvgPool2d,
        layers.Tanh,
        layers.Flatten,
        layers.Linear,
    ]
    assert spec.shapes() == ((4, 8, 8), (4, 8, 8), (4, 8, 8), (4, 4, 4), (4, 4, 4), (64,), (3,))
    assert spec.parameter_count == sum(parameter.numel() for parameter in deep.parameters())


def test_build_is_zero_fresh_and_leaves_the_global_generator_alone(deep):
    before = torch.get_rng_state()
    built = ModelSpec.of(deep, (1, 8, 8)).build()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(
        (parameter == 0).all() and parameter.requires_grad for parameter in built.parameters()
    )
    assert torch.equal(built[1].running_var, torch.ones(4))
    assert built[1].num_batches_tracked == 0


class Scaled(nn.Sequential):
    def forward(self, x):
        return 2 * super().forward(x)


class Wide(nn.Linear):
    pass


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (
            nn.Sequential(nn.ReLU(), nn.Sequential(nn.LSTM(3, 2))),
            r"1\.0 \(LSTM\).*nn\.Sequential of Linear",
        ),
        (nn.LSTM(3, 2), r"\(LSTM\)"),
        (
            nn.Sequential(OrderedDict(body=nn.Sequential(nn.Dropout(0.5)))),
            r"body\.0 \(Dropout\).*nn\.Identity",
        ),
        (nn.Sequential(nn.ReLU(), Scaled(nn.ReLU())), r"1 \(Scaled\)"),
        (nn.Sequential(Wide(3, 2)), r"0 \(Wide\)"),
        (nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)), r"0 \(Conv2d\) has groups=2.*groups=1"),
        (nn.Sequential(nn.Conv2d(4, 4, 3, dilation=2)), r"dilation=\(2, 2\)"),
        (
            nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")),
            "padding_mode='reflect'",
        ),
        (nn.Sequential(nn.Conv2d(4, 4, 2, padding="same")), "padding='same'"),
        (nn.Sequential(nn.MaxPool2d(2, ceil_mode=True)), "ceil_mode=True"),
        (nn.Sequential(nn.MaxPool2d(2, dilation=2)), "dilation=2"),
        (nn.Sequential(nn.MaxPool2d(2, return_indices=True)), "return_indices"),
        (nn.Sequential(nn.AvgPool2d(2, ceil_mode=True)), "ceil_mode"),
        (nn.Sequential(nn.AvgPool2d(2, divisor_override=3)), "divisor_override=3"),
        (nn.Sequential(nn.AvgPool2d(2, padding=1, count_include_pad=False)), "count_include_pad"),
        (nn.Sequential(nn.Flatten(start_dim=2)), "start_dim=2"),
        (nn.Sequential(nn.Softmax(dim=0)), "dim=0"),
        (nn.Sequential(nn.Softmax()), "dim=None"),
        (
            nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))),
            r"0 \(Parametrized",
        ),
    ],
)
def test_what_a_spec_cannot_express_is_refused_by_path(module, said):
    with pytest.raises(UnsupportedLayer, match=said):
        ModelSpec.of(module, (4, 8, 8))


def test_tensors_added_to_a_layer_are_refused():
    layer = nn.Linear(3, 2)
    layer.register_parameter("adapter", nn.Parameter(torch.zeros(3)))
    with pytest.raises(UnsupportedLayer, match=r"0 \(Linear\).*adapter"):
        ModelSpec.of(nn.Sequential(layer), (3,))


def test_shared_weights_are_refused():
    layer = nn.Linear(3, 3)
    tied = nn.Linear(3, 3)
    tied.weight = layer.weight
    for model in (nn.Sequential(layer, layer), nn.Sequential(layer, nn.ReLU(), tied)):
        with pytest.raises(UnsupportedLayer, match="share weights"):
            ModelSpec.of(model, (3,))


@pytest.mark.parametrize(
    ("module", "shape", "said"),
    [
        (
            nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(5, 2))),
            (2, 3),
            r"1\.0 \(Linear\).*5 features.*\(6,\)",
        ),
        (nn.Sequential(nn.Conv2d(3, 2, 3)), (1, 8, 8), r"\(3, height, width\).*\(1, 8, 8\)"),
        (nn.Sequential(nn.Conv2d(3, 2, 3)), (8,), "height"),
        (nn.Sequential(nn.Conv2d(3, 2, 9)), (3, 8, 8), "9x9"),
        (nn.Sequential(nn.MaxPool2d(4)), (3, 3, 8), "4x4"),
        (nn.Sequential(nn.BatchNorm2d(3)), (3, 8), "height"),
        (nn.Sequential(nn.BatchNorm1d(3)), (4,), r"\(3,\)"),
        (nn.Sequential(nn.GroupNorm(1, 3)), (4,), "3 channels"),
        (nn.Sequential(nn.LayerNorm(3)), (3, 4), r"\(3,\)"),
        (nn.Sequential(nn.Softmax(2)), (4,), "axis 2"),
        (nn.Sequential(nn.ReLU()), (), "input_shape"),
        (nn.Sequential(nn.ReLU()), (0,), "input_shape"),
        (nn.Sequential(nn.ReLU()), (1 << 15, 1 << 15), "at most"),
        (nn.Sequential(nn.Identity()), (3,), "1 to"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(module, shape, said):
    with pytest.raises(ConfigError, match=said):
        ModelSpec.of(module, shape)


def described(*entries, shape=(4,), form=FORMAT):
    return json.dumps({"format": form, "input_shape": shape, "layers": entries})


def linear(**changes):
    return {"type": "Linear", "in_features": 4, "out_features": 2, "bias": True, **changes}


def conv(**changes):
    sizes = {"kernel_size": [1, 1], "stride": [1, 1], "padding": [0, 0]}
    return {"type": "Conv2d", "in_channels": 4, "out_channels": 2, "bias": True, **sizes, **changes}


HOSTILE = {
    "empty": "",
    "not json": "{",
    "a number": "3",
    "null": "null",
    "deep": "[" * 200_000,
    "deep in place": '{"format":' * 50_000,
    "long": '"' + "x" * MAX_JSON_CHARACTERS + '"',
    "long number": described(linear(in_features=4)).replace("4", "9" * 5000, 1),
    "surrogate": '{"\\ud800": 1}',
    "repeated key": described(linear()).replace('"bias": true', '"bias": false, "bias": true'),
    "no layers": described(),
    "layers an object": described().replace("[]", "{}"),
    "too many layers": described(*[{"type": "ReLU"}] * (MAX_LAYERS + 1)),
    "other format": described(linear(), form="tacit.model/2"),
    "a list for a layer": described([1, 2]),
    "unknown layer": described({"type": "LSTM"}),
    "type a list": described({"type": ["ReLU"]}),
    "private layer": described({"type": "_BatchNorm"}),
    "dunder": described({"type": "ReLU", "__class__": 1}),
    "missing option": described({"type": "Linear", "in_features": 4, "out_features": 2}),
    "extra option": described(linear(device="cuda")),
    "size a string": described(linear(out_features="2")),
    "size a bool": described(linear(out_features=True)),
    "size a float": described(linear(out_features=2.0)),
    "size zero": described(linear(out_features=0)),
    "size negative": described(linear(out_features=-1)),
    "size huge": described(linear(out_features=1 << 62)),
    "size null": described(linear(out_features=None)),
    "size an object": described(linear(out_features={})),
    "bias a number": described(linear(bias=1)),
    "parameters huge": described(
        *[linear(in_features=1 << 14, out_features=1 << 14)] * 20, shape=(1 << 14,)
    ),
    "activations huge": described(conv(padding=[1 << 20, 1 << 20]), shape=(4, 8, 8)),
    "kernel one number": described(conv(kernel_size=3), shape=(4, 8, 8)),
    "kernel three numbers": described(conv(kernel_size=[1, 1, 1]), shape=(4, 8, 8)),
    "kernel zero": described(conv(kernel_size=[0, 1]), shape=(4, 8, 8)),
    "stride zero": described(conv(stride=[0, 1]), shape=(4, 8, 8)),
    "padding negative": described(conv(padding=[-1, 0]), shape=(4, 8, 8)),
    "pool padding": described(
        {"type": "MaxPool2d", "kernel_size": [2, 2], "stride": [1, 1], "padding": [2, 2]},
        shape=(4, 8, 8),
    ),
    "slope NaN": described({"type": "LeakyReLU", "negative_slope": math.nan}),
    "slope infinite": described({"type": "LeakyReLU", "negative_slope": math.inf}),
    "slope overflow": described({"type": "LeakyReLU", "negative_slope": 10**400}),
    "slope a bool": described({"type": "LeakyReLU", "negative_slope": True}),
    "softmax over the batch": described({"type": "Softmax", "dim": 0}),
    "softmax axis huge": described({"type": "Softmax", "dim": 10**30}),
    "groups": described(
        {"type": "GroupNorm", "num_groups": 3, "num_channels": 4, "eps": 0.1, "affine": True}
    ),
    "eps negative": described(
        {"type": "GroupNorm", "num_groups": 2, "num_channels": 4, "eps": -1, "affine": True}
    ),
    "input scalar": described(linear(), shape=4),
    "input empty": described(linear(), shape=()),
    "input of strings": described(linear(), shape=("4",)),
    "input too deep": described({"type": "ReLU"}, shape=(1,) * 9),
    "does not fit": described(linear(), shape=(5,)),
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_json_is_refused_in_a_short_message(text):
    with pytest.raises(ConfigError) as refused:
        ModelSpec.from_json(text)
    assert len(str(refused.value)) < 600


def test_the_hostile_descriptions_are_wrong_in_one_thing_only():
    assert ModelSpec.from_json(described(linear())).output_shape == (2,)
    assert ModelSpec.from_json(described(conv(), shape=(4, 8, 8))).output_shape == (2, 8, 8)


def test_any_small_change_to_a_description_is_read_or_refused(generator):
    text = ModelSpec.of(
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 2)), (1, 8, 8)
    ).to_json()
    for position in range(len(text)):
        for letter in '"0-[{':
            try:
                spec = ModelSpec.from_json(text[:position] + letter + text[position + 1 :])
            except ConfigError:
                continue
            assert spec.to_json()


def test_a_spec_takes_layers_only():
    with pytest.raises(ConfigError, match="layers must hold"):
        ModelSpec(input_shape=(3,), layers=(nn.ReLU(),))
    with pytest.raises(ConfigError, match="tuple"):
        ModelSpec(input_shape=(3,), layers=[layers.ReLU()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_saved_model_computes_the_same(deep, dtype, tmp_path, generator):
    deep.to(dtype)
    path = tmp_path / "model.safetensors"
    spec = save_model(deep, (1, 8, 8), path)
    loaded = load_model(path)
    batch = torch.rand(4, 1, 8, 8, generator=generator).to(dtype)
    assert torch.equal(loaded(batch), deep(batch))
    assert not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert ModelSpec.of(loaded, (1, 8, 8)) == spec
    assert os.listdir(tmp_path) == ["model.safetensors"]


def test_weights_that_are_views_of_one_vector_can_be_saved(deep, tmp_path, generator):
    nn.utils.vector_to_parameters(
        nn.utils.parameters_to_vector(deep.parameters()), deep.parameters()
    )
    save_model(deep, (1, 8, 8), tmp_path / "m")
    batch = torch.rand(4, 1, 8, 8, generator=generator)
    assert torch.equal(load_model(tmp_path / "m")(batch), deep(batch))


def test_saving_fails_whole(deep, tmp_path):
    with pytest.raises(OutputError, match="missing"):
        save_model(deep, (1, 8, 8), tmp_path / "missing" / "model")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="folder"):
        save_model(deep, (1, 8, 8), tmp_path / "folder")
    assert os.listdir(tmp_path) == ["folder"]
    deep[0].half()
    with pytest.raises(UnsupportedLayer, match=r"float16, torch\.float32"):
        save_model(deep, (1, 8, 8), tmp_path / "model")


def test_loading_refuses_what_is_not_a_model(tmp_path, deep):
    absent = tmp_path / "absent"
    noise = tmp_path / "noise"
    noise.write_bytes(b"\xff" * 100)
    bare = tmp_path / "bare"
    save_file({"0.weight": torch.zeros(2)}, bare)
    whole = tmp_path / "whole"
    save_model(deep, (1, 8, 8), whole)
    cut = tmp_path / "cut"
    cut.write_bytes(whole.read_bytes()[:-10])
    for path, said in (
        (absent, "cannot be read"),
        (noise, "cannot be"),
        (bare, "save_model"),
        (cut, "cannot be"),
    ):
        with pytest.raises(ConfigError, match=said):
            load_model(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"0.weight": torch.zeros(2, 4)}, r"'0\.bias' should be of shape \(2,\).* is absent"),
        ({"0.weight": torch.zeros(4, 2), "0.bias": torch.zeros(2)}, r"\(2, 4\).*\(4, 2\)"),
        (
            {"0.weight": torch.zeros(2, 4), "0.bias": torch.zeros(2), "x": torch.zeros(1)},
            "'x' should be absent",
        ),
        ({"0.weight": torch.zeros(2, 4, dtype=torch.int64), "0.bias": torch.zeros(2)}, "int64"),
        (
            {
                "0.weight": torch.zeros(2, 4, dtype=torch.int32),
                "0.bias": torch.zeros(2, dtype=torch.int32),
            },
            "int32",
        ),
    ],
)
def test_tensors_that_belie_the_description_are_refused(tensors, said, tmp_path):
    save_file(tensors, tmp_path / "m", metadata={"tacit.spec": described(linear())})
    with pytest.raises(ConfigError, match=said):
        load_model(tmp_path / "m")


def test_a_batch_counter_that_is_no_integer_is_refused(tmp_path):
    model = nn.Sequential(nn.BatchNorm1d(3))
    tensors = {**model.state_dict(), "0.num_batches_tracked": torch.tensor(0.0)}
    save_file(tensors, tmp_path / "m", metadata={"tacit.spec": ModelSpec.of(model, (3,)).to_json()})
    with pytest.raises(ConfigError, match="num_batches_tracked must be int64"):
        load_model(tmp_path / "m")


def test_a_small_file_cannot_claim_large_memory(tmp_path):
    """The description asks for 3 GiB; the file has a few bytes."""
    text = described(*[linear(in_features=1 << 14, out_features=1 << 14)] * 3, shape=(1 << 14,))
    save_file({"0.weight": torch.zeros(1)}, tmp_path / "m", metadata={"tacit.spec": text})
    with pytest.raises(ConfigError, match="should be of shape"):
        load_model(tmp_path / "m")
