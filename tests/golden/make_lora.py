"""Makes lora/*.npz: adapters of PEFT on the small Llama of models/llama3.npz.

    pip install torch transformers==5.23 peft==0.21.2 safetensors
    python -m tests.golden.make_lora

Each file (read with `tests.golden.weights.load("lora/NAME")`) holds

    adapter_config  adapter_config.json as PEFT writes it
    shapes          {name: shape} of adapter_model.safetensors
    logits          float32 [3, T, V] for the batch of models/llama3.npz, 0 where not valid
    nll             float64, as there
    gradients       float64 [len(shapes), 3], `weights.summary` of d nll / d tensor, as in `shapes`
    merged          {base tensor's name: summary of it after merging}, for the adapted ones only

The adapter's tensors are `weights.state_dict(shapes, config)`, under PEFT's names; the base's are
those of models/llama3.npz. No dropout acts.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.numpy import save_file

from tests.golden import make_models, weights

ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ADAPTERS = {
    "lora": dict(r=4, lora_alpha=2, target_modules=r".*\.(q_proj|v_proj|down_proj)"),
    "lora_all": dict(r=4, lora_alpha=2, lora_dropout=0.1, target_modules=ALL_LINEAR),
    "rslora": dict(r=5, lora_alpha=1, use_rslora=True, target_modules=ALL_LINEAR),
    "dora": dict(r=6, lora_alpha=3, use_dora=True, target_modules=ALL_LINEAR),
    "lora_patterns": dict(
        r=4,
        lora_alpha=2,
        target_modules=["q_proj", "o_proj"],
        rank_pattern={"o_proj": 2},
        alpha_pattern={"o_proj": 3},
        layers_to_transform=[0, 2],
    ),
}


def attach(base, options: dict) -> tuple[PeftModel, dict, dict[str, tuple[int, ...]]]:
    """The base under an adapter folder with our tensors, its adapter_config, its shapes."""
    with tempfile.TemporaryDirectory() as folder:
        config = LoraConfig(task_type="CAUSAL_LM", base_model_name_or_path="llama3", **options)
        model = get_peft_model(base, config)
        model.save_pretrained(folder, save_embedding_layers=False)
        path = Path(folder, "adapter_model.safetensors")
        with safe_open(path, "np") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
        tensors = {name: weights.tensor(name, shape) for name, shape in shapes.items()}
        save_file(tensors, path, {"format": "pt"})
        written = json.loads(Path(folder, "adapter_config.json").read_text())
        written["base_model_name_or_path"] = "llama3"
        if isinstance(written["target_modules"], list):
            written["target_modules"].sort()
        model = PeftModel.from_pretrained(model.unload(), folder, is_trainable=True)
    return model.eval(), written, shapes


def trained_name(name: str) -> str:
    """The live parameter's name for a name in adapter_model.safetensors."""
    head, _, tail = name.rpartition(".weight")
    return f"{head}.default.weight{tail}" if head else f"{name}.default.weight"


def main() -> None:
    """Writes one file an adapter."""
    (weights.FOLDER / "lora").mkdir(exist_ok=True)
    for name, options in ADAPTERS.items():
        base, _, _ = make_models.build(make_models.BASE | make_models.FAMILIES["llama3"])
        before = {key: value.numpy().copy() for key, value in base.state_dict().items()}
        model, adapter_config, shapes = attach(base, options)
        parameters = {key: value for key, value in model.named_parameters() if value.requires_grad}
        renamed = {trained_name(key): shape for key, shape in shapes.items()}
        assert set(renamed) == set(parameters), set(renamed) ^ set(parameters)
        arrays = make_models.numbers(model, renamed)
        # The projection is by the file's names, not by the live parameters'.
        arrays["gradients"] = np.stack(
            [weights.summary(key, parameters[trained_name(key)].grad.numpy()) for key in shapes]
        )
        after = {k: v.detach().numpy() for k, v in model.merge_and_unload().state_dict().items()}
        merged = {
            key: weights.summary(key, after[key]).tolist()
            for key in before
            if not np.array_equal(before[key], after[key])
        }
        np.savez_compressed(
            weights.FOLDER / "lora" / f"{name}.npz",
            adapter_config_json=json.dumps(adapter_config),
            shapes_json=json.dumps(shapes),
            merged_json=json.dumps(merged),
            **{key: arrays[key] for key in ("logits", "nll", "gradients")},
        )
        print(f"{name}: {len(shapes)} tensors, {len(merged)} merged, nll {arrays['nll']:.4f}")


if __name__ == "__main__":
    main()
