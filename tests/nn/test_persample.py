"""Clipped sums against one sample at a time: every layer, shared parameters, refusals, and models left as they were."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from tacit.core.errors import ConfigError, DataError, UnsupportedLayer
from tacit.nn import persample, persample_layers
from tacit.nn.persample import (
    Clipping,
    ClipRule,
    clipped_sum,
    cross_entropy,
    samples_apart,
)

CLASSES = 5
few = settings(max_examples=12, deadline=None)
count, width = st.integers(1, 6), st.integers(1, 5)


def drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fill(model: nn.Module, seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
    generator = drawn(seed)
    model = model.to(dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64) * 0.5)
    return model


def numbers(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=drawn(seed), dtype=torch.float64).to(dtype)


def labels(n: int) -> Tensor:
    return torch.randint(CLASSES, (n,), generator=drawn(2))


def each_alone(model, loss, inputs, targets):
    """The gradients of one sample after another, and their norms for each module that owns parameters."""
    model = copy.deepcopy(model)
    owned = [p for p in model.parameters() if p.requires_grad]
    modules = [
        [i for i, p in enumerate(owned) if any(p is q for q in m.parameters(recurse=False))]
        for m in model.modules()
    ]
    seen: set[int] = set()
    groups = []
    for members in modules:
        new = [i for i in members if i not in seen]
        seen.update(new)
        if new:
            groups.append(new)
    samples = []
    for i in range(len(targets)):
        x = inputs[i : i + 1] if isinstance(inputs, Tensor) else tuple(t[i : i + 1] for t in inputs)
        out = model(x) if isinstance(x, Tensor) else model(*x)
        value = loss(out, targets[i : i + 1]).sum()
        got = torch.autograd.grad(value, owned, allow_unused=True)
        samples.append(
            [torch.zeros_like(p) if g is None else g for p, g in zip(owned, got, strict=True)]
        )
    return samples, groups


def norm_of(tensors) -> float:
    return math.sqrt(sum(float(t.double().square().sum()) for t in tensors))


def expected(samples, groups, rule):
    total = [torch.zeros_like(g) for g in samples[0]]
    for sample in samples:
        parts = groups if rule.how is Clipping.PER_LAYER else [list(range(len(sample)))]
        for members in parts:
            norm = norm_of(sample[i] for i in members)
            bound = rule.bound / math.sqrt(len(parts))
            if rule.how is Clipping.AUTOMATIC:
                factor = rule.bound / (norm + rule.gamma)
            else:
                factor = min(1.0, bound / norm) if norm > 0 else 1.0
            for i in members:
                total[i] += sample[i] * factor
    return total


def agree(
    model, inputs, targets, *, loss=cross_entropy, how=Clipping.FLAT, tolerance=1e-9, micro=None
):
    samples, groups = each_alone(model, loss, inputs, targets)
    norms = torch.tensor([norm_of(s) for s in samples], dtype=torch.float64)
    rule = ClipRule(bound=float(norms.median()) + 1e-6, how=how)
    result = clipped_sum(model, loss, inputs, targets, rule, micro=micro)
    wanted = expected(samples, groups, rule)
    largest = max(float(t.abs().max()) for t in wanted)
    for got, want in zip(result.gradients, wanted, strict=True):
        assert got.shape == want.shape and got.dtype == want.dtype
        assert float((got - want).abs().max()) <= tolerance * largest
    assert torch.allclose(result.norms.double(), norms.double(), rtol=max(tolerance, 1e-9), atol=0)
    assert result.nonfinite == 0
    return result


@pytest.fixture
def no_vmap(monkeypatch):
    """The layers alone must do; a model run sample by sample would hide a layer that is not recorded."""

    def refuse(*_):
        raise AssertionError("fell back to vmap")

    monkeypatch.setattr(persample, "_each_alone", refuse)


class Head(nn.Module):
    """A layer, then the mean over all but samples and features, then a linear layer."""

    def __init__(self, layer: nn.Module, features: int, axis: int = -1) -> None:
        super().__init__()
        self.layer, self.head, self.axis = layer, nn.Linear(features, CLASSES), axis

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x).movedim(self.axis, -1)
        return self.head(h.flatten(1, -2).mean(1) if h.dim() > 2 else h)


@pytest.mark.usefixtures("no_vmap")
class TestLayers:
    @few
    @given(
        n=count, d=width, p=width, lead=st.lists(st.integers(1, 7), max_size=2), bias=st.booleans()
    )
    def test_linear(self, n, d, p, lead, bias):
        model = fill(Head(nn.Linear(d, p, bias=bias), p))
        agree(model, numbers(n, *lead, d), labels(n))

    @pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
    @few
    @given(
        n=count,
        c=st.integers(1, 2),
        p=st.integers(1, 2),
        groups=st.sampled_from([1, 2]),
        kernel=st.tuples(st.integers(1, 3), st.integers(1, 4)),
        stride=st.integers(1, 3),
        dilation=st.integers(1, 2),
        padding=st.sampled_from(["valid", "same", 0, 1, (2, 0)]),
        bias=st.booleans(),
    )
    def test_conv2d(self, n, c, p, groups, kernel, stride, dilation, padding, bias):
        conv = nn.Conv2d(
            c * groups,
            p * groups,
            kernel,
            stride=1 if padding == "same" else stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            bias=bias,
        )
        model = fill(Head(nn.Sequential(conv, nn.Tanh()), p * groups, axis=1))
        agree(model, numbers(n, c * groups, 8, 9), labels(n))

    @few
    @given(
        n=count,
        kernel=st.integers(1, 4),
        stride=st.integers(1, 2),
        mode=st.sampled_from(["zeros", "circular"]),
    )
    def test_conv1d(self, n, kernel, stride, mode):
        conv = nn.Conv1d(2, 3, kernel, stride=stride, padding=1, padding_mode=mode)
        agree(fill(Head(conv, 3, axis=1)), numbers(n, 2, 9), labels(n))

    @few
    @given(
        n=count,
        t=st.integers(1, 7),
        words=st.integers(2, 6),
        padding=st.sampled_from([None, 0, -1]),
    )
    def test_embedding(self, n, t, words, padding):
        model = fill(Head(nn.Embedding(words, 3, padding_idx=padding), 3))
        agree(model, torch.randint(words, (n, t), generator=drawn(3)), labels(n))

    @few
    @given(
        n=count, t=st.integers(1, 6), d=st.integers(2, 5), affine=st.booleans(), bias=st.booleans()
    )
    def test_layer_norm(self, n, t, d, affine, bias):
        norm = nn.LayerNorm(d, elementwise_affine=affine, bias=bias)
        agree(fill(Head(nn.Sequential(nn.Linear(3, d), norm), d)), numbers(n, t, 3), labels(n))

    def test_layer_norm_of_two_dimensions_and_rms_norm(self):
        agree(fill(Head(nn.LayerNorm((3, 4)), 4)), numbers(5, 3, 4), labels(5))
        agree(fill(Head(nn.RMSNorm(4), 4)), numbers(5, 3, 4), labels(5))

    @few
    @given(
        n=count,
        groups=st.integers(1, 2),
        c=st.integers(1, 3),
        space=st.lists(st.integers(2, 4), min_size=1, max_size=2),
    )
    def test_group_norm(self, n, groups, c, space):
        model = fill(Head(nn.GroupNorm(groups, groups * c), groups * c, axis=1))
        agree(model, numbers(n, groups * c, *space), labels(n))

    @pytest.mark.parametrize("kept", [1, 1 << 23])
    @pytest.mark.parametrize("positions", [2, 40])
    def test_each_way_to_a_norm(self, monkeypatch, kept, positions):
        """Gram matrices, gradients kept, gradients made twice: few or many positions, much or no memory."""
        monkeypatch.setattr(persample_layers, "KEPT", kept)
        monkeypatch.setattr(persample, "KEPT", kept)
        monkeypatch.setattr(persample_layers, "BLOCK", 64)
        agree(fill(Head(nn.Linear(8, 6), 6)), numbers(4, positions, 8), labels(4))
        agree(
            fill(Head(nn.Conv1d(4, 6, 3, groups=2), 6, axis=1)),
            numbers(4, 4, positions + 2),
            labels(4),
        )


ATTENTION = {
    "before": lambda **k: nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, norm_first=True, **k),
    "after": lambda **k: nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, norm_first=False, **k),
}


class Attend(nn.Module):
    """Attention of x over x, over one other sequence, or over two of other widths."""

    def __init__(self, kind: str, **options) -> None:
        super().__init__()
        wide = {"kdim": 3, "vdim": 3} if kind == "widths" else {}
        self.kind, self.memory = kind, nn.Linear(8, 3 if kind == "widths" else 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **wide, **options)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        memory = x if self.kind == "self" else self.memory(x)
        key = memory.flip(1) if self.kind == "two" else memory
        out, _ = self.attention(x, key, memory, need_weights=self.kind == "two")
        return self.head(out.mean(1))


@pytest.mark.usefixtures("no_vmap")
@pytest.mark.parametrize(
    "length", [3, 4, 8]
)  # the batch has 4: another dimension as long, and a multiple
class TestAttention:
    @pytest.mark.parametrize("order", ATTENTION)
    @pytest.mark.parametrize("training", [True, False])
    def test_encoder(self, order, length, training):
        model = fill(Head(ATTENTION[order](batch_first=True), 8)).train(training)
        agree(model, numbers(4, length, 8), labels(4))

    @pytest.mark.parametrize("kind", ["self", "cross", "two", "widths"])
    @pytest.mark.parametrize("bias", [True, False])
    def test_attention(self, kind, bias, length):
        agree(fill(Attend(kind, bias=bias)), numbers(4, length, 8), labels(4))


class SequenceFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(x.transpose(0, 1)).square().mean(0))


@pytest.mark.parametrize("length", [3, 4])
def test_samples_in_another_dimension_are_not_mistaken(length):
    """With as many positions as samples, shapes alone would take the positions for the samples."""
    agree(fill(SequenceFirst()), numbers(4, length, 4), labels(4))


class Tied(nn.Module):
    """An embedding used as the output layer; ``strange`` by an operation that is not a layer."""

    def __init__(self, strange: bool) -> None:
        super().__init__()
        self.strange, self.table, self.inner = strange, nn.Embedding(CLASSES, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(self.table(x)).mean(1)
        return h @ self.table.weight.T if self.strange else functional.linear(h, self.table.weight)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.conv = nn.Linear(5, 5), nn.Conv1d(5, 5, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.one(torch.tanh(self.one(x)))).mT
        return self.conv(torch.tanh(self.conv(h))).mean(2)


class Scaled(nn.Module):
    """Parameters of the root module itself, in no layer; a frozen layer beside."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.inner = nn.Parameter(torch.ones(4)), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(torch.tanh(x * self.scale))


class Doubled(nn.Linear):
    """A subclass that is not what its class says."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + functional.linear(x.square(), self.weight * 2)


class TestUses:
    def test_shared_layers(self, no_vmap):
        agree(fill(Twice()), numbers(4, 6, 5), labels(4))

    @pytest.mark.parametrize("strange", [False, True])
    def test_tied_embedding(self, strange):
        agree(fill(Tied(strange)), torch.randint(CLASSES, (5, 3), generator=drawn(3)), labels(5))

    @pytest.mark.parametrize("model", [Scaled(), Doubled(4, CLASSES)], ids=["root", "subclass"])
    def test_strange_uses_run_one_by_one(self, model, monkeypatch):
        calls = []
        real = persample._each_alone
        monkeypatch.setattr(persample, "_each_alone", lambda *a: calls.append(1) or real(*a))
        agree(fill(model), numbers(5, 4), labels(5))
        assert calls

    def test_the_losses_own_parameters_are_seen(self):
        model = fill(nn.Linear(4, CLASSES))

        def penalised(outputs, targets):
            return cross_entropy(outputs, targets) + model.weight.square().sum()

        with pytest.raises(UnsupportedLayer, match="part of the model's output"):
            clipped_sum(model, penalised, numbers(3, 4), labels(3), ClipRule(bound=1.0))

    def test_in_place_activations(self, no_vmap):
        model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, CLASSES))
        agree(fill(copy.deepcopy(model)), numbers(5, 4), labels(5))
        agree(fill(Head(model, CLASSES)), numbers(5, 3, 4), labels(5))

    def test_an_input_changed_in_place_is_refused(self):
        class Overwrites(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.one, self.two = nn.Linear(4, 4), nn.Linear(4, CLASSES)

            def forward(self, x):
                out = self.two(self.one(x))
                x.zero_()
                return out

        with pytest.raises(UnsupportedLayer, match="in place"):
            clipped_sum(
                fill(Overwrites()), cross_entropy, numbers(3, 4), labels(3), ClipRule(bound=1.0)
            )

    def test_frozen_and_unused_parameters(self, no_vmap):
        class Partial(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.one, self.idle, self.two = (
                    nn.Linear(4, 6),
                    nn.Linear(2, 2),
                    nn.Linear(6, CLASSES),
                )
                self.one.weight.requires_grad_(False)

            def forward(self, x):
                self.two(self.one(x).relu())  # a branch that leads nowhere
                return self.two(self.one(x).tanh())

        agree(fill(Partial()), numbers(5, 4), labels(5))

    def test_several_inputs(self):
        class Both(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a, self.b = nn.Linear(3, CLASSES), nn.Linear(2, CLASSES, bias=False)

            def forward(self, x, y):
                return self.a(x) * self.b(y)

        agree(fill(Both()), (numbers(4, 3), numbers(4, 2)), labels(4))

    def test_checkpointed_blocks(self, no_vmap):
        class Saves(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.block = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 4))
                self.head = nn.Linear(4, CLASSES)

            def forward(self, x):
                h = torch.utils.checkpoint.checkpoint(self.block, x, use_reentrant=False)
                return self.head(h)

        agree(fill(Saves()), numbers(4, 4), labels(4))

    def test_dropout_draws_one_mask(self):
        model = fill(nn.Sequential(nn.Dropout(0.5), nn.Linear(40, CLASSES)))
        seen = set()
        for _ in range(4):  # the norm and the sum are of the same mask
            got = clipped_sum(model, cross_entropy, numbers(1, 40), labels(1), ClipRule(bound=1e6))
            assert math.isclose(norm_of(got.gradients), float(got.norms), rel_tol=1e-9)
            seen.add(float(got.norms))
        assert len(seen) > 1


@pytest.mark.parametrize("how", Clipping)
class TestRules:
    @few
    @given(n=st.integers(1, 6), scale=st.floats(1e-3, 1e3), bound=st.floats(1e-2, 1e2))
    def test_no_sample_exceeds_the_bound(self, how, n, scale, bound):
        model = fill(
            nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, CLASSES)), dtype=torch.float32
        )
        x, y = numbers(n, 4, dtype=torch.float32) * scale, labels(n)
        for i in range(n):
            got = clipped_sum(
                model, cross_entropy, x[i : i + 1], y[i : i + 1], ClipRule(bound=bound, how=how)
            )
            assert norm_of(got.gradients) <= bound * (1 + 1e-5)

    def test_against_one_by_one(self, how):
        agree(fill(Head(nn.Linear(4, 6), 6)), numbers(6, 3, 4), labels(6), how=how)
        agree(
            fill(Tied(strange=True)),
            torch.randint(CLASSES, (6, 3), generator=drawn(3)),
            labels(6),
            how=how,
        )

    @pytest.mark.parametrize("micro", [1, 3, 100])
    def test_micro_batches_change_nothing(self, how, micro):
        result = agree(fill(Twice()), numbers(7, 6, 5), labels(7), how=how, micro=micro)
        assert len(result.norms) == len(result.losses) == 7

    def test_single_precision(self, how):
        model = fill(
            nn.Sequential(
                nn.Conv2d(1, 4, 3),
                nn.GroupNorm(2, 4),
                nn.ReLU(),
                nn.Flatten(),
                nn.Linear(144, CLASSES),
            ),
            dtype=torch.float32,
        )
        agree(model, numbers(8, 1, 8, 8, dtype=torch.float32), labels(8), how=how, tolerance=1e-3)


class TestBadSamples:
    @pytest.mark.parametrize("bad", [math.nan, math.inf, 1e38])
    @pytest.mark.parametrize(
        "model",
        [
            nn.Linear(4, CLASSES),
            Scaled(),
            nn.Sequential(
                nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 2, 3), nn.Flatten(), nn.Linear(4, CLASSES)
            ),
        ],
        ids=["linear", "vmap", "conv"],
    )
    def test_add_nothing_and_are_counted(self, model, bad):
        if isinstance(model, Scaled) and math.isfinite(bad):
            bad = math.inf  # tanh takes any finite number
        model = fill(copy.deepcopy(model), dtype=torch.float32)
        x, y = numbers(6, 4, dtype=torch.float32), labels(6)
        rule = ClipRule(bound=0.5)
        keep = [0, 1, 3, 5]
        wanted = clipped_sum(model, cross_entropy, x[keep], y[keep], rule)
        x[2], x[4] = bad, -bad
        got = clipped_sum(model, cross_entropy, x, y, rule)
        assert got.nonfinite == 2 and got.clipped == wanted.clipped
        for a, b in zip(got.gradients, wanted.gradients, strict=True):
            assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)

    def test_an_empty_batch_gives_zeros(self):
        model = fill(nn.Linear(4, CLASSES))
        got = clipped_sum(model, cross_entropy, numbers(0, 4), labels(0), ClipRule(bound=1.0))
        assert [g.shape for g in got.gradients] == [p.shape for p in model.parameters()]
        assert not any(g.any() for g in got.gradients)
        assert got.norms.shape == got.losses.shape == (0,) and got.clipped == got.nonfinite == 0


class TestRefusals:
    @pytest.mark.parametrize(
        "layer",
        [
            nn.BatchNorm2d(2),
            nn.BatchNorm2d(2, affine=False, track_running_stats=False),
            nn.InstanceNorm2d(2, track_running_stats=True),
            nn.SyncBatchNorm(2),
        ],
    )
    def test_statistics_of_the_batch(self, layer):
        model = nn.Sequential(nn.Conv2d(1, 2, 3), layer, nn.Flatten(), nn.Linear(32, CLASSES))
        with pytest.raises(UnsupportedLayer, match="GroupNorm or LayerNorm"):
            clipped_sum(
                model, cross_entropy, torch.ones(3, 1, 6, 6), labels(3), ClipRule(bound=1.0)
            )

    def test_functional_batch_norm(self):
        class Hidden(nn.Linear):
            def forward(self, x):
                return functional.batch_norm(super().forward(x), None, None, training=True)

        with pytest.raises(UnsupportedLayer, match="GroupNorm or LayerNorm"):
            clipped_sum(
                Hidden(4, CLASSES), cross_entropy, torch.ones(3, 4), labels(3), ClipRule(bound=1.0)
            )

    def test_batch_norm_that_is_fixed_is_fine(self):
        model = nn.Sequential(
            nn.Conv1d(1, 2, 3), nn.BatchNorm1d(2), nn.Flatten(), nn.Linear(8, CLASSES)
        )
        agree(fill(model).eval(), numbers(3, 1, 6), labels(3))

    @pytest.mark.parametrize(
        "options", [{"max_norm": 1.0}, {"scale_grad_by_freq": True}, {"sparse": True}]
    )
    def test_embedding_options(self, options):
        model = Head(nn.Embedding(4, 3, **options), 3)
        with pytest.raises(UnsupportedLayer, match="max_norm"):
            clipped_sum(
                model,
                cross_entropy,
                torch.ones(3, 2, dtype=torch.long),
                labels(3),
                ClipRule(bound=1.0),
            )

    def test_what_vmap_cannot_run(self):
        class Branches(Scaled):
            def forward(self, x):
                return super().forward(x if x.sum() > 0 else -x)

        with pytest.raises(UnsupportedLayer, match="vmap"):
            clipped_sum(Branches(), cross_entropy, torch.ones(3, 4), labels(3), ClipRule(bound=1.0))

    def test_settings_and_shapes(self):
        model, x, rule = nn.Linear(4, CLASSES), torch.ones(3, 4), ClipRule(bound=1.0)
        for settings_ in ({"bound": 0.0}, {"bound": math.nan}, {"bound": 1.0, "gamma": 0.0}):
            with pytest.raises(ConfigError):
                ClipRule(**settings_)
        with pytest.raises(DataError, match="as many"):
            clipped_sum(model, cross_entropy, x, labels(2), rule)
        with pytest.raises(DataError, match="reduction='none'"):
            clipped_sum(model, functional.cross_entropy, x, labels(3), rule)
        with pytest.raises(ConfigError, match="micro"):
            clipped_sum(model, cross_entropy, x, labels(3), rule, micro=0)
        with pytest.raises(ConfigError, match="nothing to clip"):
            clipped_sum(
                nn.Linear(4, CLASSES).requires_grad_(False), cross_entropy, x, labels(3), rule
            )


def test_samples_that_mix_are_found():
    class Mixes(nn.Linear):
        def forward(self, x):
            h = super().forward(x)
            return h - h.mean(0)

    x, y = torch.ones(4, 4), labels(4)
    assert samples_apart(nn.Linear(4, CLASSES), cross_entropy, x, y)
    assert not samples_apart(Mixes(4, CLASSES), cross_entropy, x, y)
    model = fill(Head(ATTENTION["after"](batch_first=True), 8))
    assert samples_apart(model, cross_entropy, numbers(4, 3, 8), y)


def everything(model: nn.Module) -> list[object]:
    """All that a module holds, by identity, with the values of what could be changed in place."""
    held: list[object] = []
    for module in model.modules():
        for name, value in sorted(vars(module).items()):
            size = len(value) if hasattr(value, "__len__") else value
            held.append((name, id(value), size))
    for p in [*model.parameters(), *model.buffers()]:
        held += [id(p), id(p.grad), p.requires_grad, p._version, sorted(vars(p)), p._backward_hooks]
    return held


@pytest.mark.parametrize(
    "model",
    [Twice(), Scaled(), Head(ATTENTION["after"](batch_first=True), 8)],
    ids=["layers", "vmap", "attention"],
)
def test_the_model_is_left_as_it_was(model):
    fill(model)
    x = {Twice: numbers(4, 3, 5), Scaled: numbers(4, 4)}.get(type(model), numbers(4, 3, 8))
    for i, p in enumerate(model.parameters()):
        p.grad = torch.ones_like(p) if i % 2 else None
    before = everything(model)
    clipped_sum(model, cross_entropy, x, labels(4), ClipRule(bound=1.0))
    assert everything(model) == before

    def fails(outputs, targets):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        clipped_sum(model, fails, x, labels(4), ClipRule(bound=1.0))
    assert everything(model) == before


def test_a_compiled_model_gives_the_same():
    model = fill(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, CLASSES)))
    x, y, rule = numbers(5, 4), labels(5), ClipRule(bound=1.0)
    wanted = clipped_sum(model, cross_entropy, x, y, rule)
    compiled = torch.compile(model, backend="eager")
    assert torch.equal(compiled(x), model(x))
    got = clipped_sum(compiled, cross_entropy, x, y, rule)
    assert all(torch.equal(a, b) for a, b in zip(got.gradients, wanted.gradients, strict=True))


def test_mixed_precision():
    model = fill(Head(nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6)), 6), dtype=torch.float32)
    x, y = numbers(6, 3, 4, dtype=torch.float32), labels(6)
    rule = ClipRule(bound=1.0)
    exact = clipped_sum(model, cross_entropy, x, y, rule)
    with torch.autocast("cpu", torch.bfloat16):
        half = clipped_sum(model, cross_entropy, x, y, rule)
    assert half.norms.dtype == torch.float32 and half.gradients[0].dtype == torch.float32
    largest = max(float(g.abs().max()) for g in exact.gradients)
    for a, b in zip(half.gradients, exact.gradients, strict=True):
        assert float((a - b).abs().max()) <= 0.05 * largest


def test_half_precision_parameters():
    model = fill(
        nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, CLASSES)), dtype=torch.bfloat16
    )
    got = clipped_sum(
        model, cross_entropy, numbers(6, 4, dtype=torch.bfloat16), labels(6), ClipRule(bound=1.0)
    )
    assert got.gradients[0].dtype == torch.bfloat16 and got.norms.dtype == torch.float32
    exact = clipped_sum(
        copy.deepcopy(model).double(),
        cross_entropy,
        numbers(6, 4, dtype=torch.bfloat16).double(),
        labels(6),
        ClipRule(bound=1.0),
    )
    assert torch.allclose(got.norms.double(), exact.norms, rtol=0.05)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu():
    model = fill(Head(nn.Linear(4, 6), 6)).cuda()
    agree(model, numbers(5, 3, 4).cuda(), labels(5).cuda())
