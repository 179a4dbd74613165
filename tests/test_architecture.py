"""What holds for every source file, checked on its syntax tree: layers, no pickle, no hidden randomness."""

import ast
from functools import cache
from pathlib import Path

import pytest

import tacit

SOURCE = Path(tacit.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))

LAYERS = (
    {"cli", "web"},
    {"catalogue", "audit"},
    {"training", "prediction", "attacks"},
    {"parties", "dp", "nn", "crypto"},
    {"core"},
)
RANK = {part: rank for rank, parts in enumerate(LAYERS) for part in parts}
PAPERS = {"training", "prediction", "attacks"}  # these do not know each other ...
ALONE = {"training", "prediction"}  # ... and in these no file knows another


@cache
def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def module_of(path):
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path) for path in FILES}


def imports(tree):
    """(line, module) of everything imported, inside functions too; of ``from a import b``, also ``a.b``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield node.lineno, "a relative import"
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"


def part_of(module):
    """The package, or the single file, below ``tacit`` that a module belongs to."""
    return module.split(".")[1] if "." in module else ""


def under(name, banned):
    return any(name == one or name.startswith(f"{one}.") for one in banned)


def wrong_imports(module, tree):
    """Imports of ``module`` that do not run to the right."""
    here = part_of(module)
    for line, name in imports(tree):
        if name == "a relative import":
            yield f"{module}:{line}: {name}"
        if name != "tacit" and not name.startswith("tacit."):
            continue
        there = part_of(name)
        if there in ("", "__version__"):
            continue  # the version
        bad = (
            there not in RANK
            or (here in RANK and RANK[there] < RANK[here])
            or (here in PAPERS and there in PAPERS and here != there)
            or (here in ALONE and there == here and not under(name, {module}))
        )
        if bad:
            yield f"{module}:{line}: imports {name}"


def test_there_are_files_to_check_and_each_has_a_layer():
    assert len(FILES) > 30
    assert {part_of(module) for module in MODULES} - {""} <= set(RANK)


def test_imports_only_run_to_the_right():
    assert [found for path in FILES for found in wrong_imports(module_of(path), tree_of(path))] == []  # fmt: skip


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("tacit.core.coins", "import tacit.dp.mechanisms"),
        ("tacit.core.coins", "from tacit import parties"),
        ("tacit.dp.mechanisms", "from tacit.training.plain import Centralised"),
        ("tacit.nn.spec", "def load():\n    from tacit.audit import compare"),
        ("tacit.training.plain", "import tacit.catalogue as c"),
        ("tacit.training.plain", "from tacit.attacks.access import Knowledge"),
        ("tacit.attacks.curious", "from tacit.training import plain"),
        ("tacit.prediction.plain", "import tacit.attacks.access"),
        ("tacit.training.local_dp", "from tacit.training.plain import FederatedSGD"),
        ("tacit.training.local_dp", "from tacit.training import plain"),
        ("tacit.audit.report", "if TYPE_CHECKING:\n    from tacit.cli import main"),
        ("tacit.audit.report", "from tacit import unheard_of"),
        ("tacit.audit.report", "from . import compare"),
    ],
)
def test_an_import_to_the_left_is_caught(module, source):
    assert list(wrong_imports(module, ast.parse(source)))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("tacit.cli.main", "def f():\n    from tacit.audit.compare import compare"),
        ("tacit.audit.cells", "from tacit.attacks.access import Labels"),
        ("tacit.attacks.curious", "from tacit.attacks.access import Knowledge"),
        ("tacit.training.plain", "from tacit.core.coins import Coins\nimport torch"),
        ("tacit.audit.compare", "import tacit\nfrom tacit import __version__"),
        ("tacit.catalogue", "from tacit.audit.compare import Row"),
    ],
)
def test_an_import_to_the_right_is_allowed(module, source):
    assert not list(wrong_imports(module, ast.parse(source)))


# --- calls, by the full name of what is called


def names_in(tree):
    """What each imported name stands for: ``t`` for ``torch`` after ``import torch as t``."""
    known = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.asname:
                    known[alias.asname] = alias.name
                else:
                    known[alias.name.split(".")[0]] = alias.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                known[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return known


def full_name(node, known):
    """The dotted name of an expression, imports resolved; what is not a name is ``?``."""
    if isinstance(node, ast.Name):
        return known.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        return f"{full_name(node.value, known)}.{node.attr}"
    return "?"


def outermost_names(tree):
    """Every use of a name: ``a.b.c`` counts once, and not as ``a.b`` and ``a`` too."""
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, (ast.Name, ast.Attribute)) and id(node) not in inner:
            yield node


def is_constant(node, value):
    return isinstance(node, ast.Constant) and node.value is value


# --- nothing that executes what it reads

UNPICKLERS = {
    "pickle", "_pickle", "cPickle", "cloudpickle", "dill", "shelve", "marshal", "jsonpickle",
    "joblib.dump", "joblib.load", "joblib.numpy_pickle", "torch.load", "torch.save",
    "torch.serialization", "pandas.read_pickle", "numpy.core.multiarray.fromfile",
}  # fmt: skip
EVALUATORS = {"eval", "exec", "builtins.eval", "builtins.exec"}


def dangers(module, tree):
    """Pickle in any dress, eval and exec, and assert statements."""
    known = names_in(tree)
    for line, name in imports(tree):
        if under(name, UNPICKLERS):
            yield f"{module}:{line}: imports {name}"
    for node in outermost_names(tree):
        name = full_name(node, known)
        if under(name, UNPICKLERS | EVALUATORS):
            yield f"{module}:{node.lineno}: uses {name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            yield f"{module}:{node.lineno}: asserts; -O would drop the check"
        if (
            isinstance(node, ast.keyword)
            and node.arg == "allow_pickle"
            and not is_constant(node.value, False)
        ):
            yield f"{module}:{node.lineno}: allows pickle"


def test_nothing_unpickles_evaluates_or_asserts():
    assert [found for path in FILES for found in dangers(module_of(path), tree_of(path))] == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import pickle as p",
        "from pickle import loads",
        "def f():\n    import dill",
        "import shelve",
        "import marshal",
        "import joblib\njoblib.load('m')",
        "from joblib import dump",
        "import torch\ntorch.load('m.pt', weights_only=True)",
        "import torch as t\nread = t.load",
        "from torch import load as read",
        "import torch\ntorch.serialization.load('m')",
        "import numpy as np\nnp.load('a.npy', allow_pickle=True)",
        "import numpy as np\nnp.load('a.npy', allow_pickle=trust)",
        "eval('1')",
        "run = exec",
        "assert x > 0",
    ],
)
def test_each_danger_is_caught(source):
    assert list(dangers("control", ast.parse(source)))


@pytest.mark.parametrize(
    "source",
    [
        "model.eval()",
        "from joblib import Parallel, delayed",
        "import numpy as np\nnp.load('a.npy', allow_pickle=False)",
        "import json\njson.load(file)",
        "from safetensors.torch import load",
    ],
)
def test_what_is_harmless_is_let_through(source):
    assert not list(dangers("control", ast.parse(source)))


# --- randomness

SECRET = {"core", "crypto", "dp", "parties", "training", "prediction"}  # draw from Coins alone
COINS = "tacit.core.coins"  # where they come from

# Without a generator of their own to take, or seeding one that all share: nowhere.
GLOBAL = {
    "random", "numpy.random", "scipy.stats.qmc", "torch.random", "torch.seed", "torch.manual_seed",
    "torch.initial_seed", "torch.get_rng_state", "torch.set_rng_state", "torch.default_generator",
    "torch.cuda.manual_seed", "torch.cuda.manual_seed_all", "torch.mps.manual_seed",
}  # fmt: skip
OS = {"os.urandom", "os.getrandom", "secrets", "uuid.uuid1", "uuid.uuid4", "random.SystemRandom"}

TORCH_DRAWS = {
    f"torch.{name}"
    for name in (
        "rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like",
        "normal", "bernoulli", "multinomial", "poisson", "binomial",
    )
}  # fmt: skip
METHOD_DRAWS = {
    "uniform_", "normal_", "random_", "bernoulli_", "exponential_", "cauchy_", "geometric_",
    "log_normal_", "bernoulli", "multinomial", "new_rand", "new_randn",
}  # fmt: skip
INIT_DRAWS = {
    "uniform_", "normal_", "trunc_normal_", "xavier_uniform_", "xavier_normal_", "orthogonal_",
    "kaiming_uniform_", "kaiming_normal_", "sparse_",
}  # fmt: skip


def is_draw(name):
    before, _, last = name.rpartition(".")
    if name in TORCH_DRAWS:
        return True
    if before.endswith("nn.init") or before == "init":
        return last in INIT_DRAWS
    return bool(before) and last in METHOD_DRAWS


def draws(module, tree):
    """Uses of a global generator; and draws: any, where secrets are, and those without ``generator=`` elsewhere."""
    if module == COINS:
        return
    known = names_in(tree)
    secret = part_of(module) in SECRET
    banned = GLOBAL | OS if secret else GLOBAL
    for line, name in imports(tree):
        if under(name, banned):
            yield f"{module}:{line}: imports {name}"
    called = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in outermost_names(tree):
        name = full_name(node, known)
        if under(name, banned) and name.split(".")[0] in known.values():
            yield f"{module}:{node.lineno}: uses {name}"
        if not is_draw(name):
            continue
        call = called.get(id(node))
        given = call is not None and any(
            keyword.arg == "generator" and not is_constant(keyword.value, None)
            for keyword in call.keywords
        )
        if secret or not given:
            yield f"{module}:{node.lineno}: draws by {name}"


def test_secrets_come_from_coins_and_every_other_draw_takes_a_generator():
    assert [found for path in FILES for found in draws(module_of(path), tree_of(path))] == []


def test_there_are_draws_to_check():
    used = []
    for path in FILES:
        known = names_in(tree_of(path))
        used += [full_name(node, known) for node in outermost_names(tree_of(path))]
    assert len([name for name in used if is_draw(name)]) >= 8
    assert "os.urandom" in used


NOWHERE = [
    "import random",
    "import numpy as np\nnp.random.normal(3)",
    "from numpy import random",
    "from numpy.random import default_rng",
    "import numpy as np\nrng = np.random.default_rng(1)",
    "import torch\ntorch.manual_seed(3)",
    "import torch\ntorch.rand(3)",
    "import torch\ntorch.rand(3, generator=None)",
    "import torch as t\nt.randn(3)",
    "from torch import randperm as shuffle\nshuffle(9)",
    "import torch\ntorch.randint(0, 4, (2,))",
    "import torch\ntorch.randn_like(x)",
    "import torch\ndraw = torch.bernoulli",
    "import torch\ntorch.empty(3).normal_()",
    "import torch\ntorch.multinomial(p, 2)",
    "x.data.uniform_(0, 1)",
    "from torch import nn\nnn.init.xavier_uniform_(w)",
    "import torch\ntorch.nn.init.normal_(w)",
    "from torch.nn import init\ninit.kaiming_normal_(w)",
    "from torch.nn.init import trunc_normal_\ntrunc_normal_(w)",
]
ELSEWHERE = [
    "import torch\ntorch.rand(3, generator=g)",
    "import torch\ntorch.empty(3).normal_(generator=g)",
    "from torch import nn\nnn.init.xavier_uniform_(w, generator=g)",
    "import secrets\nsecrets.token_hex(4)",
    "import os\nos.urandom(4)",
]
EVERYWHERE = [
    "import torch\ng = torch.Generator().manual_seed(3)\nshuffled(order, generator=g)",
    "from torch import nn\nnn.init.zeros_(w)",
    "coins.permutation(3)\ncoins.unit(4)",
    "def random(self):\n    return random",
]


@pytest.mark.parametrize("source", NOWHERE)
def test_a_draw_without_a_generator_is_caught_everywhere(source):
    for module in ("tacit.attacks.curious", "tacit.nn.spec", "tacit.dp.mechanisms"):
        assert list(draws(module, ast.parse(source)))


@pytest.mark.parametrize("source", ELSEWHERE)
def test_a_draw_with_a_generator_is_caught_only_where_secrets_are(source):
    for part in SECRET:
        assert list(draws(f"tacit.{part}.file", ast.parse(source)))
    for part in ("nn", "attacks", "audit"):
        assert not list(draws(f"tacit.{part}.file", ast.parse(source)))


@pytest.mark.parametrize("source", EVERYWHERE)
def test_what_draws_nothing_is_let_through(source):
    for module in ("tacit.training.plain", "tacit.nn.spec"):
        assert not list(draws(module, ast.parse(source)))
