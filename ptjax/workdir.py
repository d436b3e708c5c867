"""A run's folder as a model: what stands beside its checkpoints, and `load` for every source.

    workdir/config.json               the whole config
    workdir/model/                    the Hugging Face layout without weights, and ptjax.json
    workdir/checkpoints/<step>/       trained leaves; frozen ones come again from config.model.source
"""

import dataclasses
import os
import tempfile
from pathlib import Path

from ptjax.models.config_out import write_configs, write_json
from ptjax.models.load import Bundle, load

__all__ = ["load", "write_model_files"]

RECORD = "ptjax.json"


def write_model_files(bundle: Bundle, folder: str | os.PathLike[str]) -> None:
    """Writes the Hugging Face layout without its weights, and what a checkpoint needs to be read.

    Args:
      bundle: the model as it is trained.
      folder: local or gs://; made where it does not exist.

    Raises:
      UserError: where it cannot be written.
    """
    if "://" not in os.fspath(folder):
        write_configs(bundle, folder)
        record = {
            "lora": dataclasses.asdict(bundle.model.lora) if bundle.model.lora else None,
            "tensor_dtypes": {name: str(dtype) for name, dtype in bundle.dtypes.items()},
        }
        write_json(Path(folder) / RECORD, record)
        return
    from etils import epath

    with tempfile.TemporaryDirectory() as local:
        write_model_files(bundle, local)
        target = epath.Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        for path in Path(local).iterdir():
            (target / path.name).write_bytes(path.read_bytes())
