"""Makes heads.npz: scores that transformers' sequence classifiers of every family give.

    pip install torch transformers==5.23 safetensors
    python -m tests.golden.make_heads

Read with `tests.golden.weights.load("heads")`:

    ids           int32 [3, T], padded on the right with the model's padding token
    valid         bool [3, T]
    NAME          {"config": config.json as transformers 5 writes it, "shapes": {name: shape} of the
                  tensors that `save_pretrained` writes}
    NAME_scores   float32 [3], the one label's logit of each row, eager attention

The models are those of `make_models`, with one label in place of their vocabulary; the weights are
`weights.state_dict(shapes, config)`.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from tests.golden import weights
from tests.golden.make_models import BASE, FAMILIES, T, V

NAMES = ("llama3", "smollm2", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "smollm3", "olmo2")
LENGTHS = (T, 19, 22)


def batch() -> tuple[np.ndarray, np.ndarray]:
    """ids and valid, padded on the right: no padding id stands at a valid place."""
    ids = np.random.RandomState(11).randint(3, V, (3, T)).astype(np.int32)
    valid = np.arange(T) < np.array(LENGTHS)[:, None]
    return np.where(valid, ids, BASE["pad_token_id"]).astype(np.int32), valid


def build(hub_config: dict) -> tuple[torch.nn.Module, dict, dict[str, tuple[int, ...]]]:
    """The classifier with its deterministic weights, its config.json, its tensors' shapes."""
    name = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES[hub_config["model_type"]]
    with tempfile.TemporaryDirectory() as folder:
        hub_config = hub_config | {"architectures": [name]}
        Path(folder, "config.json").write_text(json.dumps(hub_config))
        config = AutoConfig.from_pretrained(folder, num_labels=1)
        AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
        config = json.loads(Path(folder, "config.json").read_text())
        with safe_open(f"{folder}/model.safetensors", "np") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
        save_file(weights.state_dict(shapes, config), f"{folder}/model.safetensors")
        model, report = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
        assert not any(report.values()), report
    return model.eval(), config, shapes


def main() -> None:
    """Writes the file."""
    ids, valid = batch()
    found = {"ids": ids, "valid": valid}
    for name in NAMES:
        model, config, shapes = build(BASE | FAMILIES[name])
        with torch.no_grad():
            logits = model(
                input_ids=torch.tensor(ids, dtype=torch.long),
                attention_mask=torch.tensor(valid, dtype=torch.long),
                use_cache=False,
            ).logits
        found[f"{name}_json"] = json.dumps({"config": config, "shapes": shapes})
        found[f"{name}_scores"] = logits[:, 0].numpy()
        print(name, found[f"{name}_scores"])
    np.savez_compressed(weights.FOLDER / "heads.npz", **found)


if __name__ == "__main__":
    main()
