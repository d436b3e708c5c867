"""Makes composite.npz: a small Gemma 3 with a vision tower, and its logits of text alone.

    pip install torch transformers==5.23 safetensors
    python -m tests.golden.make_composite

`weights.load("composite")` gives `config` and `shapes` as `save_pretrained` writes them, and `ids`,
`valid`, `positions` and `logits` as those of `make_models`. The weights are
`weights.state_dict(shapes, config)`.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from transformers import AutoConfig, Gemma3Config, Gemma3ForConditionalGeneration

from tests.golden import weights
from tests.golden.make_models import BASE, FAMILIES, batch

VISION = dict(
    hidden_size=32,
    intermediate_size=40,
    num_hidden_layers=1,
    num_attention_heads=4,
    image_size=56,
    patch_size=14,
)


def main() -> None:
    """Writes the file."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(BASE | FAMILIES["gemma3"]))
        text = AutoConfig.from_pretrained(folder)
    whole = Gemma3Config(
        text_config=text, vision_config=VISION, mm_tokens_per_image=4, image_token_index=2
    )
    with tempfile.TemporaryDirectory() as folder:
        Gemma3ForConditionalGeneration(whole).save_pretrained(folder)
        config = json.loads(Path(folder, "config.json").read_text())
        with safe_open(f"{folder}/model.safetensors", "np") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
        tensors = weights.state_dict(shapes, config)
        save_file(tensors, f"{folder}/model.safetensors", {"format": "pt"})
        model, report = Gemma3ForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
    assert not any(report.values()), report
    ids, valid, positions = batch()
    with torch.no_grad():
        logits = model.eval()(
            input_ids=torch.tensor(ids, dtype=torch.long),
            attention_mask=torch.tensor(valid, dtype=torch.long),
            position_ids=torch.tensor(positions, dtype=torch.long),
            use_cache=False,
        ).logits.numpy()
    np.savez_compressed(
        weights.FOLDER / "composite.npz",
        config_json=json.dumps(config),
        shapes_json=json.dumps(shapes),
        ids=ids,
        valid=valid,
        positions=positions,
        logits=np.where(valid[..., None], logits, 0).astype(np.float32),
    )
    print(f"{len(shapes)} tensors, logits' std {logits[valid].std():.2f}")


if __name__ == "__main__":
    main()
