"""What the package never does, by its source: unpickle, run a model's code, call home."""

import ast
from pathlib import Path

import pytest

import ptjax

ROOT = Path(ptjax.__file__).parent
TREES = {
    str(path.relative_to(ROOT)): ast.parse(path.read_text()) for path in sorted(ROOT.rglob("*.py"))
}
PICKLES = {"cloudpickle", "dill", "joblib", "pickle", "shelve", "torch"}
NETWORK = {
    "aiohttp",
    "ftplib",
    "http",
    "httpx",
    "requests",
    "smtplib",
    "socket",
    "socketserver",
    "ssl",
    "urllib",
    "urllib3",
    "websockets",
    "xmlrpc",
}
ASKED_FOR = {
    "rewards/chat_server.py": "a judge behind the address that the config names",
    "hosts/alike.py": "the host's name alone, to say which one differs",
    "hosts/joining.py": "whether the address of a run's process 0, from flags, can be used",
    "hosts/lifeline.py": "the connections between a run's own processes",
    "hosts/peers.py": "questions for tokens between a run's own processes",
    "metrics/board.py": "the host's name alone, for TensorBoard's file",
    "rewards/sandbox/inside/probe.py": "proves that a sandbox lets no socket be made",
}
"""Files that may import what reaches the network, and why."""
FETCHING = {"models/hub.py": {"snapshot_download"}, "data/tabular.py": {"load_dataset"}}
"""Files that fetch a hub id which the user named, and the call that does."""


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").split(".")[0]


def calls(tree):
    """(name, keywords) of every call."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            yield name, {keyword.arg: keyword.value for keyword in node.keywords}


@pytest.mark.parametrize("path", TREES)
def test_nothing_is_unpickled_and_no_code_of_a_model_runs(path):
    assert not PICKLES & set(imports(TREES[path]))
    for name, keywords in calls(TREES[path]):
        for allowed in ("allow_pickle", "trust_remote_code"):
            given = keywords.get(allowed)
            assert given is None or getattr(given, "value", None) is False, (path, name, allowed)


def test_the_network_is_used_where_it_was_asked_for():
    users = {path for path, tree in TREES.items() if NETWORK & set(imports(tree))}
    assert users == set(ASKED_FOR)
    fetching = {
        path: found
        for path, tree in TREES.items()
        if (
            found := {
                name
                for name, _ in calls(tree)
                if name in {"snapshot_download", "hf_hub_download", "load_dataset", "urlopen"}
            }
        )
    }
    assert fetching == FETCHING
