import subprocess
import sys
import time
from pathlib import Path

import pytest
from ml_collections import config_dict

from ptjax import config as cfg
from ptjax.errors import UserError

FILE = """
from ml_collections import config_dict

def get_config(arg="small"):
    c = config_dict.ConfigDict()
    c.steps = 100
    c.lr = 1e-3
    c.warmup = c.get_ref("steps") // 10
    c.packing = True
    c.remat = "full"
    c.clip = 1.0
    c.betas = (0.9, 0.95)
    c.stop = ["</s>"]
    c.limit = config_dict.placeholder(int)
    c.template = None
    c.size = arg
    c.loss = {}
    c.lora = dict(rank=8, targets="q|v")
    c.data = dict(sources=[dict(path="a.jsonl", weight=1.0, columns={})], max_length=64)
    return c
"""

REQUIRED = """
from ml_collections import config_dict
def get_config():
    r = config_dict.required_placeholder
    return config_dict.ConfigDict(dict(model=r(str), steps=1, data=dict(path=r(str), n=r(int))))
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "base.py"
    path.write_text(FILE)
    return str(path)


def parse(*argv, **kwargs):
    flags = (
        cfg.Flag("workdir", "where the run is kept"),
        cfg.Flag("dry_run", "stop before training", bool),
        cfg.Flag("port", "a port", int, 80),
    )
    given = {"prog": "train", "flags": flags, "example": "train --config=x.py"} | kwargs
    return cfg.parse(argv, **given)


def line(*argv, **kwargs):
    """The one line a bad command line gives."""
    with pytest.raises(UserError) as caught:
        parse(*argv, **kwargs)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write(tmp_path, text):
    path = tmp_path / "bad.py"
    path.write_text(text)
    return str(path)


def test_defaults_flags_and_argument(file):
    config, options = parse(f"--config={file}:big", "--workdir=w", "--dry-run")
    assert (config.size, config.steps, config.warmup, config.limit) == ("big", 100, 10, None)
    assert (options.workdir, options.dry_run, options.port) == ("w", True, 80)
    assert config.is_locked
    assert parse("--config", file, "--port", "1")[1].port == 1


@pytest.mark.parametrize(
    ("flag", "path", "expected"),
    [
        ("--config.steps=7", "steps", 7),
        ("--config.steps=1e4", "steps", 10_000),
        ("--config.steps=1_000", "steps", 1000),
        ("--config.lr=3e-4", "lr", 3e-4),
        ("--config.lr=1", "lr", 1.0),
        ("--config.packing=false", "packing", False),
        ("--noconfig.packing", "packing", False),
        ("--config.packing", "packing", True),
        ("--config.remat=none", "remat", "none"),
        ("--config.remat=None", "remat", None),
        ("--config.clip=none", "clip", None),
        ("--config.betas=(0.5,1)", "betas", (0.5, 1.0)),
        ("--config.betas=0.5,0.6", "betas", (0.5, 0.6)),
        ("--config.stop=a,b", "stop", ["a", "b"]),
        ("--config.stop=['1',2]", "stop", ["1", "2"]),
        ("--config.stop=[]", "stop", []),
        ("--config.limit=5", "limit", 5),
        ("--config.template=x.jinja", "template", "x.jinja"),
        ("--config.template=0.25", "template", 0.25),
        ("--config.template=a=b", "template", "a=b"),
        ("--config.loss.smoothing=0.1", "loss.smoothing", 0.1),
        ("--config.lora.rank=4", "lora.rank", 4),
        ("--config.data.max_length=8", "data.max_length", 8),
    ],
)
def test_overrides_take_the_defaults_type(file, flag, path, expected):
    config, _ = parse(flag, f"--config={file}")
    value = config
    for key in path.split("."):
        value = value[key]
    assert value == expected
    assert type(value) is type(expected)


def test_space_separated_values(file):
    config, options = parse(
        "--config", file, "--config.lr", "-1", "--config.packing", "--workdir=w"
    )
    assert (config.lr, config.packing, options.workdir) == (-1.0, True, "w")


def test_fields_of_lists_of_groups(file):
    config, _ = parse(
        f"--config={file}",
        "--config.data.sources[0].path=b.jsonl",
        "--config.data.sources.0.weight=2",
        "--config.data.sources[0].columns={'prompt': 'q'}",
        "--config.data.sources[0].limit=10",
        "--config.betas[1]=0.99",
    )
    source = config.data.sources[0]
    assert (source["path"], source["weight"]) == ("b.jsonl", 2.0)
    assert (source["columns"], source["limit"]) == ({"prompt": "q"}, 10)
    assert config.betas == (0.9, 0.99)


def test_a_group_given_whole_sets_only_the_keys_it_names(file):
    config, _ = parse(f"--config={file}", "--config.lora={'rank': 2}")
    assert config.lora.to_dict() == {"rank": 2, "targets": "q|v"}


def test_hyperparameters_are_the_methods_affair():
    """A recipe that sets some of them leaves the others to the command line."""
    made = cfg.defaults()
    made.hparams.update({"loss": "ipo", "beta": 0.1})
    cfg.override(made, "hparams.beta", "0.2")
    cfg.override(made, "hparams.length_normalized", "False")
    cfg.override(made, "hparams", "{'tau': 1}")
    cfg.override(made, "hparams.scale", "none")
    cfg.override(made, "hparams.kl_target", "None")
    assert made.hparams.to_dict() == {
        "loss": "ipo",
        "beta": 0.2,
        "length_normalized": False,
        "tau": 1,
        "scale": "none",
        "kl_target": None,
    }


@pytest.mark.parametrize("none", ["None", "none"])
def test_a_group_can_be_turned_off(file, none):
    assert parse(f"--config={file}", f"--config.lora={none}")[0].lora is None


def test_a_file_may_lock_what_it_returns(tmp_path):
    path = write(tmp_path, FILE.replace("return c", "c.lock(); return c"))
    config, _ = parse(f"--config={path}", "--config.loss.beta=1", "--config.steps=2")
    assert (config.loss.beta, config.steps, config.is_locked) == (1, 2, True)


def test_references_follow_an_override(file):
    assert parse(f"--config={file}", "--config.steps=50")[0].warmup == 5


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("--config.stepz=1", "config.stepz: unknown key 'stepz'; did you mean 'steps'?"),
        ("--config.rank=1", "config.rank: unknown key 'rank'; did you mean 'config.lora.rank'?"),
        ("--config.lora.x=1", "config.lora.x: unknown key 'x'; known: rank, targets"),
        ("--config.lora.x.y=1", "config.lora.x: unknown key 'x'; known: rank, targets"),
        ("--config.steps=ten", "config.steps expects an int, got 'ten'"),
        ("--config.steps=1.5", "config.steps expects an int, got '1.5'"),
        ("--config.steps=inf", "config.steps expects an int, got 'inf'"),
        ("--config.lr=fast", "config.lr expects a number, got 'fast'"),
        ("--config.packing=maybe", "config.packing expects true or false, got 'maybe'"),
        ("--config.betas=(0.9,", "config.betas expects a tuple such as (1, 2), got '(0.9,'"),
        ("--config.betas=a,b", "config.betas expects a tuple such as (1, 2), got 'a,b'"),
        ("--config.limit=x", "config.limit expects an int, got 'x'"),
        ("--config.lora=8", "config.lora is a group of settings; set one of: rank, targets"),
        ("--config.lora={'rnk': 8}", "config.lora.rnk: unknown key 'rnk'; did you mean 'rank'?"),
        ("--config.loss=8", "config.loss expects a dict such as {'key': 1}, got '8'"),
        ("--config.data.sources[1].path=x", "config.data.sources has 1 item(s), counted from 0"),
        ("--config.data.sources.path=x", "config.data.sources is a list; write [0]"),
        ("--config.data.sources[0].columns.a.b=1", "unknown key 'a'"),
        ("--config.template.x=1", "config.template is None, which has no keys"),
        ("--config.loss={[]: 1}", "config.loss expects a dict such as {'key': 1}"),
        ("--config.a..b=1", "config.a..b: not a path of keys"),
        ("--workdri=x", "train: unknown argument '--workdri'; did you mean '--workdir'?"),
        ("--port=x", "--port expects an int, got 'x'"),
    ],
)
def test_a_bad_flag_is_one_line(file, flag, expected):
    assert expected in line(f"--config={file}", flag)


def test_missing_config_shows_an_example():
    assert line() == "train: missing --config=FILE.py; for example: train --config=x.py"


def test_a_missing_file_names_its_neighbour(file, tmp_path):
    message = line(f"--config={tmp_path}/bsae.py")
    assert f"no such file; did you mean '{file}'?" in message
    assert "there is no folder" in line(f"--config={tmp_path}/none/base.py")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def get_config():\n    x = = 1\n", "bad.py:2: invalid syntax: x = = 1"),
        ("import math\n1 / 0\n", "bad.py:2: ZeroDivisionError: division by zero"),
        ("def get_config():\n    return nme\n", "bad.py:2: NameError: name 'nme' is not defined"),
        ("config = 1\n", "bad.py: defines no get_config()"),
        ("def get_config():\n    return 3\n", "get_config() returned int"),
        ("def get_config():\n    pass\n", "get_config() returned NoneType"),
        ("def get_config(size):\n    return {}\n", "needs an argument: --config="),
        ("raise SystemExit(0)\n", "bad.py:1: SystemExit: 0"),
        (
            "from ptjax.errors import UserError\ndef get_config():\n    raise UserError('no s')\n",
            "bad.py: no s",
        ),
    ],
)
def test_a_bad_file_is_one_line_with_its_place(tmp_path, text, expected):
    assert expected in line(f"--config={write(tmp_path, text)}")


def test_an_argument_that_the_file_does_not_take(tmp_path):
    path = write(tmp_path, "def get_config():\n    return {'a': 1}\n")
    assert "get_config() takes no argument" in line(f"--config={path}:big")
    assert parse(f"--config={path}")[0].a == 1


def test_every_missing_value_is_named_at_once(tmp_path):
    path = write(tmp_path, REQUIRED)
    message = line(f"--config={path}", "--config.data.n=3")
    assert "2 required value(s) missing; give" in message
    assert "--config.model=..." in message and "--config.data.path=..." in message
    given = ("--config.model=m", "--config.data.path=p", "--config.data.n=3")
    full, _ = parse(f"--config={path}", *given)
    assert full.to_dict() == {"model": "m", "steps": 1, "data": {"path": "p", "n": 3}}


def test_require_names_every_none():
    config = cfg.ConfigDict({"a": None, "b": {"c": None, "d": 1}})
    cfg.require(config, "b.d")
    with pytest.raises(UserError, match=r"--config\.a=\.\.\. --config\.b\.c=\.\.\."):
        cfg.require(config, "a", "b.c", "b.d")


def test_load_takes_python_values_and_checks_them(file):
    config = cfg.load(file, {"steps": 3, "lr": 1, "data.sources": [{"path": "z"}]})
    assert (config.steps, config.lr, config.data.sources) == (3, 1.0, [{"path": "z"}])
    with pytest.raises(UserError, match=r"config\.steps expects an int, got True"):
        cfg.load(file, {"steps": True})


def test_help_lists_flags_example_and_fields(file, capsys):
    with pytest.raises(SystemExit) as ended:
        parse("--help", f"--config={file}")
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for expected in ("--workdir", "--dry_run", "train --config=x.py", "--config.lora.rank=8"):
        assert expected in shown


def test_help_shows_required_fields_as_none(tmp_path, capsys):
    with pytest.raises(SystemExit):
        parse("--help", f"--config={write(tmp_path, REQUIRED)}")
    assert "--config.data.path=None" in capsys.readouterr().out


def test_a_command_without_config_takes_positionals():
    flags = (cfg.Flag("folder", "the checkpoint", required=True, positional=True),)
    assert cfg.parse(["x"], prog="verify", flags=flags, config=False)[1].folder == "x"
    with pytest.raises(UserError, match=r"missing FOLDER \(the checkpoint\)"):
        cfg.parse([], prog="verify", flags=flags, config=False)


def test_a_required_flag_is_named(file):
    flags = (cfg.Flag("workdir", "where the run is kept", required=True),)
    assert "missing --workdir=... (where the run is kept)" in line(f"--config={file}", flags=flags)


def test_json_round_trip_keeps_the_hash(file):
    config = cfg.load(file)
    again = cfg.from_json(cfg.to_json(config))
    assert cfg.config_hash(again) == cfg.config_hash(config) == cfg.config_hash(config.to_dict())
    assert cfg.changed_keys(config, again) == {}
    assert cfg.config_hash(cfg.load(file, {"lora.rank": 9})) != cfg.config_hash(config)


def test_changed_keys_names_path_old_and_new(file):
    new = cfg.load(file, {"lora.rank": 9, "data.sources[0].weight": 2, "loss.beta": 0.1})
    assert cfg.changed_keys(cfg.load(file), new) == {
        "lora.rank": (8, 9),
        "data.sources[0].weight": (1.0, 2.0),
        "loss": ({}, None),
        "loss.beta": (None, 0.1),
    }


def test_a_function_in_a_config_cannot_be_stored():
    with pytest.raises(UserError, match=r"config\.a\.f holds a function"):
        cfg.to_json(config_dict.ConfigDict({"a": {"f": lambda: 1}}))


def test_importing_config_needs_no_jax_and_is_quick():
    code = "import sys, ptjax.config; print('jax' in sys.modules)"
    start = time.perf_counter()
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "False"
    assert time.perf_counter() - start < 5


def test_a_length_given_in_the_other_unit_takes_the_place_of_the_files():
    configs = Path(__file__).parents[1] / "configs"
    needed = {"model.source": "m", "data.sources[0].path": "d.jsonl"}
    sft = cfg.load(configs / "sft.py", needed | {"steps": "2"})
    assert (sft.steps, sft.epochs) == (2, None)
    quick = cfg.load(configs / "quickstart.py", {"epochs": 1.5})
    assert (quick.steps, quick.epochs) == (None, 1.5)
    both = cfg.load(configs / "sft.py", needed | {"steps": 2, "epochs": 1.0})
    assert (both.steps, both.epochs) == (2, 1.0)
