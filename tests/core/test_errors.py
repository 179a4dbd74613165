import inspect
import re

import pytest

from tacit.core import errors
from tacit.core.errors import (
    ConfigError,
    Diverged,
    EndpointRefused,
    PeerRefused,
    TacitError,
    TooFewParties,
    UnknownName,
    by_name,
)


def drawn_tree():
    """(name, parent) of each class in the tree of the module's docstring."""
    path, found = [], []
    for line in errors.__doc__.splitlines():
        drawn = re.match(r"    (?P<stem>[│├└─ ]*)(?P<name>[A-Z]\w+)(?: {2,}|$)", line)
        if drawn:
            depth = len(drawn["stem"]) // 4
            path[depth:] = [drawn["name"]]
            found.append((drawn["name"], path[depth - 1] if depth else "Exception"))
    return found


def classes():
    return [
        item
        for _, item in inspect.getmembers(errors, inspect.isclass)
        if item.__module__ == errors.__name__ and not issubclass(item, Warning)
    ]


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes():
    drawn = drawn_tree()
    assert len(drawn) == len(dict(drawn)) > 15
    assert dict(drawn) == {kind.__name__: kind.__base__.__name__ for kind in classes()}


def test_every_error_has_the_root_and_a_docstring():
    assert all(issubclass(kind, TacitError) and kind.__doc__ for kind in classes())


def test_an_unknown_name_lists_the_close_ones_and_all_that_are_known():
    error = UnknownName("data set", "digitz", ["faces", "digits", "location30"])
    assert isinstance(error, ConfigError)
    assert str(error) == (
        "no data set is called 'digitz': did you mean digits? known are digits, faces, location30"
    )


def test_an_unknown_name_near_to_nothing_makes_no_guess():
    shown = str(UnknownName("attack", "zzz", ["membership"]))
    assert "did you mean" not in shown and "known are membership" in shown


def test_too_few_parties_names_who_is_missing_and_why():
    missing = {f"owner {i}": "no reply in time" for i in range(10)}
    error = TooFewParties(12, ["owner 10"], missing, wave=4)
    assert error.replied == ("owner 10",) and error.missing == missing
    shown = str(error)
    assert "wave 4: 1 replies where at least 12 are needed" in shown
    assert "owner 7: no reply in time; and 2 more" in shown and "owner 8" not in shown


@pytest.mark.parametrize("kind", classes(), ids=lambda kind: kind.__name__)
def test_every_class_that_a_peer_may_name_is_found_by_its_name(kind):
    found = by_name(kind.__name__)
    # A caller's mistakes are not a peer's to report, and two classes take more than a text.
    if issubclass(kind, (ConfigError, TooFewParties, EndpointRefused)):
        assert found is PeerRefused
    else:
        assert found is kind and str(found("text")) == "text"


@pytest.mark.parametrize(
    "name", ["", "ValueError", "Mapping", "difflib", "by_name", "__doc__", "Exception", "dataerror"]
)
def test_a_name_that_is_not_in_the_tree_is_a_refusal(name):
    assert by_name(name) is PeerRefused
    assert by_name("Diverged") is Diverged
