"""What the documentation says exists: config fields, files, commands, methods, figures."""

import ast
import functools
import importlib.util
import inspect
import re
import sys
from pathlib import Path

import jax
import pytest

from ptjax import config
from ptjax.algorithms import METHODS
from ptjax.algorithms.dpo import LOSSES
from ptjax.algorithms.online import PRESETS
from ptjax.data.config import DataConfig, SourceConfig
from ptjax.rewards import REWARDS
from ptjax.rewards.base import reward, settings_of
from ptjax.stages.base import GROUP
from tests.judged import abstract

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [*(ROOT / "docs").rglob("*.md"), *(ROOT / name for name in ("README.md", "CONTRIBUTING.md"))]
)
PAGE_OF = {
    **dict.fromkeys(("cpo", "simpo", "alphapo", "orpo"), "reference_free"),
    **dict.fromkeys(("bco", "apo_zero_unpaired"), "kto"),
    **dict.fromkeys(("awr", "dro", *PRESETS), "grpo"),
    **dict.fromkeys(("gkd", "gkd_mixed", "gkd_on_policy", "on_policy_distillation"), "distill"),
    **dict.fromkeys(("reward_ranked", "reward_regression", "outcome_reward"), "reward"),
}
"""Methods whose page has another's name."""
BESIDE = {"spin": ("dpo",), "online_dpo": ("dpo",)}
"""Methods whose page leaves to another's what they share."""
SOURCES = sorted([*(ROOT / "ptjax").rglob("*.py"), *(ROOT / "configs").glob("*.py")])

_FLAG = re.compile(r"--(?:no)?config\.([\w\[\].]+)")
_FIELD = re.compile(r"(?<![\w./])config\.([a-z_]\w*(?:\[\d+\])?(?:\.[a-z_]\w*)*)")
_QUOTED = re.compile(r"`([a-z]+)\.([a-z_0-9]+)(?:[ =][^`]*)?`")
_PATH = re.compile(r"(?<![\w/.:-])((?:ptjax|tests|configs|docs|benchmarks|colabs)/[\w./*-]*\w/?)")
_MODULE = re.compile(r"python -m (ptjax[\w.]*)")
_ROW = re.compile(r"^\| `([\w.]+)` \| (.+?) \| .*\|$", re.MULTILINE)
_COMMAND = re.compile(
    r"(?:python3? -m ((?:ptjax|benchmarks|tests)[\w.]*)|\b(benchmarks/[\w/]+\.py))(?=\s|$)(.*)"
)
_FENCE = re.compile(r"^```\w*\n(.*?)^```", re.DOTALL | re.MULTILINE)
_FILES = {"md", "py", "json", "jsonl", "gguf", "safetensors", "toml", "ipynb", "npz"}


def fields():
    """Every field of a config and its default, by dotted path."""
    whole = config.defaults()
    whole.lora = config.lora()
    whole.model.source = ""
    return dict(_leaves(whole.to_dict(), ""))


def _leaves(group, prefix):
    for name, value in group.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


@pytest.fixture(scope="module")
def known():
    """Fields, groups, and the fields of a source of data."""
    paths = set(fields())
    groups = {path.rsplit(".", n)[0] for path in paths for n in range(1, path.count(".") + 1)}
    sources = {name: set(SourceConfig.__dataclass_fields__) for name in ("sources", "validation")}
    inside = {f"data.{name}[0].{field}" for name, of in sources.items() for field in of}
    return paths | groups | inside | {f"data.{name}[0]" for name in sources}


def is_field(path, known):
    path = re.sub(r"\[\w+\]", "[0]", path.rstrip("."))
    return path in known or path.startswith("hparams.")


def strings(path):
    """The docstrings and messages of a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_fields_that_a_page_names_exist(page, known):
    text = page.read_text()
    ours = set(config.__all__) | {"json", "get_ref"}
    named = [*_FLAG.findall(text)]
    named += [f for f in _FIELD.findall(text) if f.split(".")[0] not in ours]
    groups = {path.split(".")[0] for path in known}
    named += [f"{g}.{f}" for g, f in _QUOTED.findall(text) if g in groups and f not in _FILES]
    shown_as_mistakes = {"stepz", "model.sources"}
    assert [f for f in named if not is_field(f, known) and f not in shown_as_mistakes] == []


def test_flags_that_docstrings_and_messages_name_exist(known):
    wrong = []
    for path in SOURCES:
        if path.parent.name == "config":
            continue  # it explains the syntax with fields of its own
        flags = [f for text in strings(path) for f in _FLAG.findall(text)]
        wrong += [(path.name, f) for f in flags if not is_field(f, known)]
    assert wrong == []


def test_every_field_is_documented_with_its_default():
    text = (ROOT / "docs" / "configuration.md").read_text()
    rows = dict(_ROW.findall(text))
    source = {field: rows[field] for field in SourceConfig.__dataclass_fields__}
    assert source["path"] == "required"
    for path, default in fields().items():
        assert path in rows, f"docs/configuration.md does not list {path}"
        wanted = "required" if path == "model.source" else f"`{default!r}`".replace("|", r"\|")
        assert rows[path] == wanted, path
    unknown = set(rows) - set(fields()) - set(SourceConfig.__dataclass_fields__) - {"lora"}
    assert unknown == set()


def test_defaults_of_the_data_are_those_of_its_reader():
    ours = {k.removeprefix("data."): v for k, v in fields().items() if k.startswith("data.")}
    assert ours.keys() == DataConfig.__dataclass_fields__.keys()
    for name, field in DataConfig.__dataclass_fields__.items():
        if name != "sources":
            assert ours[name] == field.default, name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page):
    users = {"configs/mine.py"}
    missing = [
        name
        for name in _PATH.findall(page.read_text())
        if name not in users and not list(ROOT.glob(name.rstrip("/")))
    ]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_that_a_page_names_exist(page):
    for module in set(_MODULE.findall(page.read_text())):
        spec = importlib.util.find_spec(module)
        assert spec is not None, module
        if spec.submodule_search_locations:
            assert importlib.util.find_spec(f"{module}.__main__") is not None, module


@functools.cache
def flags_of(path):
    """The flags that a command's source defines, and those of them that it cannot do without."""
    tree = ast.parse(path.read_text())
    known, required = {"--help"}, set()
    words = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").endswith(".command"):
            more, needed = flags_of(ROOT / (node.module.replace(".", "/") + ".py"))
            known, required = known | more, required | needed
        if isinstance(node, ast.Import):  # a parser that scripts share
            beside = [path.with_name(f"{name.name}.py") for name in node.names]
            for more, needed in map(flags_of, filter(Path.exists, beside)):
                known, required = known | more, required | needed
        if not isinstance(node, ast.Call):
            continue
        called = getattr(node.func, "attr", getattr(node.func, "id", ""))
        said = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
        if called == "parse" and said.get("config", True):
            known.add("--config")
        if called not in ("add_argument", "Flag") or said.get("positional"):
            continue
        name = getattr(node.args[0], "value", None)
        if name is None:  # made in a loop over names
            known |= {f"--{word}" for word in words}
        elif called == "Flag" or name.startswith("--"):
            flag = f"--{name.removeprefix('--')}"
            known.add(flag)
            required |= {flag} if said.get("required") else set()
    return known, required


def wrong_flags(text):
    """Of the commands in a text: flags that they do not have, and required ones that are not given.

    A command is a line of a block, a line that begins with it, or stands between backticks.
    """
    text = text.replace("\\\n", " ")
    blocks, plain = "\n".join(_FENCE.findall(text)), _FENCE.sub("", text)
    lines = [line for line in plain.splitlines() if re.match(r"\s*(\w+=\S+ )*python3? ", line)]
    quoted = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", plain)]
    wrong = []
    for line in (*blocks.splitlines(), *lines, *quoted):
        for module, script, rest in _COMMAND.findall(line):
            rest = re.split(r"\s(?:#|\||&&)\s?", rest)[0]
            given = set(re.findall(r"(?<=\s)--[\w.-]+", rest))
            given = {f for f in given if not f.startswith(("--config.", "--noconfig."))}
            path = ROOT / (script or module.replace(".", "/"))
            if not path.suffix:
                path = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
            known, required = flags_of(path)
            wrong += [f"{path.name} {flag}" for flag in sorted(given - known)]
            if rest.strip() and "..." not in rest:
                wrong += [f"{path.name} without {flag}" for flag in sorted(required - given)]
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_flags_of_the_commands_that_a_page_names_exist(page):
    assert wrong_flags(page.read_text()) == []


def test_flags_of_the_commands_that_docstrings_name_exist():
    files = (*SOURCES, *(ROOT / "benchmarks").rglob("*.py"))
    wrong = [(path, wrong_flags(text)) for path in files for text in strings(path)]
    assert [one for one in wrong if one[1]] == []


def test_a_wrong_flag_is_found():
    assert wrong_flags("`python -m ptjax.train --config=a.py --wordkir=runs --config.steps=2`") == [
        "train.py --wordkir"
    ]
    block = "```sh\npython benchmarks/sft.py --mode=ours \\\n  --data=chats.jsonl  # one run\n```\n"
    assert wrong_flags(block) == ["sft.py without --model"]
    assert wrong_flags("    python -m ptjax.preferences --model=a --prompt=b --out=c") == [
        "__main__.py --prompt",
        "__main__.py without --prompts",
    ]


def page_of(method):
    """The page that a method is described on."""
    return ROOT / "docs" / "methods" / f"{PAGE_OF.get(method, method)}.md"


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_page_in_the_navigation(method):
    assert f"methods/{page_of(method).name}" in (ROOT / "mkdocs.yml").read_text()
    assert f"`{method}`" in page_of(method).read_text() or page_of(method).stem == method
    assert f"`{method}`" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("method", METHODS)
def test_a_methods_page_explains_its_settings_and_metrics(method):
    text = "".join(page_of(one).read_text() for one in (method, *BESIDE.get(method, ())))
    if any(stage.sequences == GROUP for stage in METHODS[method].stages):
        text += (ROOT / "docs" / "rollouts.md").read_text()
    settings = METHODS[method].hyperparameters()
    assert [name for name in settings if f"`hparams.{name}" not in text] == []
    bound = METHODS[method].bind({}, "hparams")
    for one in (bound, bound.judged):
        outputs, columns = abstract(one)
        _, metrics = jax.eval_shape(one.terms, outputs, columns | abstract(bound)[1])
        prefix = "" if one is bound else "eval/"
        assert [name for name in metrics if f"`{prefix}{name}`" not in text] == []
    stages = "".join(inspect.getsource(sys.modules[s.run.__module__]) for s in bound.stages)
    for name in re.findall(r'ctx\.logged\["([\w/]+)"\]', stages):
        assert f"`{name}`" in text, name


def test_every_loss_of_pairs_is_in_its_table():
    text = page_of("dpo").read_text()
    assert [name for name in LOSSES if f"\n| `{name}` |" not in text] == []


@pytest.mark.parametrize("name", REWARDS)
def test_every_reward_is_in_its_table_with_its_settings(name):
    text = (ROOT / "docs" / "rewards.md").read_text()
    row = re.search(rf"^\| `{name}` \|.*$", text, re.MULTILINE)
    assert row, name
    shared = text[text.index("| setting | default | of all three |") :].split("\n\n")[0]
    told = row[0] + (shared if name.startswith("judge") else "")
    assert [key for key in settings_of(REWARDS[name]) if f"`{key}" not in told] == []


def test_rewards_in_the_page_of_rewards_are_read_as_a_config_is():
    text = (ROOT / "docs" / "rewards.md").read_text()
    blocks = re.findall(r"^```python\n(\{.*?)^```", text, re.DOTALL | re.MULTILINE)
    made = [reward(ast.literal_eval(block)) for block in blocks]
    assert len({one.name for one in made}) > 10


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").rglob("*.md"):
        assert str(page.relative_to(ROOT / "docs")) in navigation, page


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_no_figure_is_left_to_be_measured(page):
    marker = "MEASURE" + ":"
    left = [line for line in page.read_text().splitlines() if marker in line]
    assert left == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_in_a_page_compiles(page):
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
        compile(block, str(page), "exec")
