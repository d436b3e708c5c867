"""What a run takes on devices that need not be there, by their compiler.

python -m ptjax.plan --config=configs/sft_v5e_8.py --topology=v5e:2x4
"""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ptjax.config import Config, Flag, parse
from ptjax.errors import UserError
from ptjax.errors import run as run_command
from ptjax.plan.environment import no_tpu
from ptjax.writable import check_folder

if TYPE_CHECKING:
    from ptjax.plan.search import Trial

FLAGS = (
    Flag("topology", "v5e:2x4, v5p:4x4x4, ..., h100:8, ...; cpu or gpu for the devices at hand"),
    Flag("slices", "how many slices of that shape, or machines, there are", type=int, default=1),
    Flag("search", "looks for the settings that fit, and plans with those", type=bool),
    Flag("out", "folder to write plan.json and plan.md into"),
)


def main(argv: list[str] | None = None) -> None:
    """The command. Nothing heavy is imported before its arguments are known to be good."""
    given, options = parse(
        argv,
        prog="python -m ptjax.plan",
        flags=FLAGS,
        description="Compiles every program of a run for some devices, and says what it takes.",
        example="python -m ptjax.plan --config=configs/grpo.py --topology=v5e:2x4 "
        "--config.model.source=qwen3-0.6b --config.accumulate=2",
    )
    if not options.topology:
        raise UserError("missing --topology=v5e:2x4, or cpu for the devices at hand")
    if options.slices < 1:
        raise UserError(f"--slices={options.slices}: at least 1")
    if options.out:
        check_folder(options.out, "--out")
    if ":" in options.topology:  # a compiler alone, never its devices
        no_tpu()
    from ptjax.plan.page import page, search_page
    from ptjax.plan.report import plan
    from ptjax.plan.search import answers_need_of, changed, need_of, search
    from ptjax.plan.topology import topology

    config: Config = given
    where = topology(options.topology, slices=options.slices, dtype=config.model.dtype)
    text, searched = "", {}
    if options.search:
        if where.chip.memory is None:
            raise UserError(f"--search: nothing says how much memory a {where.chip.kind} has")
        needs = need_of(where), answers_need_of(where)
        looked = search(config, len(where.devices), where.chip.memory, *needs, tell=_tell)
        searched = {"search": looked.as_dict()}
        text = search_page(looked.as_dict()) + "\n"
        config = changed(config, looked.changes or {})
    found = plan(config, where) | searched
    text += page(found)
    print(text)
    if options.out:
        folder = Path(options.out)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "plan.json").write_text(json.dumps(found, indent=1) + "\n")
        (folder / "plan.md").write_text(text)


def _tell(trial: "Trial") -> None:
    """What was compiled, while a search goes on."""
    asked = ", ".join(f"{path} {value}" for path, value in trial.changes.items())
    fits = "fits" if trial.fits else "does not fit"
    print(f"tried {asked}: {trial.need / 2**30:.2f} GiB, {fits}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_command(main)
