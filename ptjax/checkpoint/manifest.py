"""The manifest of a step: what was saved, and the size and SHA-256 of every file. Written last."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any

NAME = "manifest.json"


class BadStep(Exception):
    """A step that must not be restored, with the reason in one line.

    Attributes:
      lasting: False where reading failed in a way that may pass (a permission, a network disk).

    """

    def __init__(self, reason: str, *, lasting: bool = True):
        super().__init__(" ".join(reason.split()))
        self.lasting = lasting


@dataclass(frozen=True)
class FileEntry:
    """Size in bytes and SHA-256 (hex) of one file of a step."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """All that a step says of itself."""

    step: int
    config_hash: str
    created: str
    """UTC, ISO 8601."""
    versions: dict[str, str]
    """ptjax, jax, orbax."""
    topology: dict[str, Any]
    """devices, platform, processes, mesh (axis name to size) of the run that saved."""
    metrics: dict[str, float]
    leaves: dict[str, list[Any]]
    """Name of an array to [shape, dtype]."""
    files: dict[str, FileEntry] = field(default_factory=dict)
    """Path inside the step's folder to size and hash."""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.files.values())


def dump(manifest: Manifest) -> str:
    """Returns the manifest's text: canonical JSON that ends in the SHA-256 of the rest."""
    body = asdict(manifest)
    return _text({**body, "seal": _seal(body)})


def parse(text: str) -> Manifest:
    """Reads what `dump` wrote.

    Raises:
      BadStep: for any text that `dump` cannot have written.

    """
    try:
        body = json.loads(text)
        seal = body.pop("seal")
        if _text({**body, "seal": seal}) != text or _seal(body) != seal:
            raise BadStep(f"{NAME} was changed after it was written")
        files = {path: FileEntry(**entry) for path, entry in body.pop("files").items()}
        return Manifest(**body, files=files)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise BadStep(f"{NAME} does not parse ({type(error).__name__}: {error})") from error


def _text(body: dict[str, Any]) -> str:
    return json.dumps(body, indent=1) + "\n"


def _seal(body: dict[str, Any]) -> str:
    return hashlib.sha256(_text(body).encode()).hexdigest()
