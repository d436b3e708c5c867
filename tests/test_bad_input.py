"""What users get wrong: each is one line, an exit code, and nothing half-done."""

import contextlib
import importlib
import json
import logging
import os
import signal
import subprocess
import sys
import types

import pytest

from ptjax import errors
from ptjax.checkpoint import Checkpoints
from ptjax.train import main
from tests import tiny, xla


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What a run needs, and beside it everything that is broken."""
    folder = tiny.write(tmp_path_factory.mktemp("tiny"))
    tiny.write_config(folder)
    _data(folder)
    _models(folder)
    (folder / "template.jinja").write_text("{% for m in messages %}{{ m['content'] }}")
    (folder / "key.py").write_text(_config(folder, "config.optim.lr = 0.1"))
    (folder / "group.py").write_text(_config(folder, "config.optimizer = {'name': 'adamw'}"))
    (folder / "kind.py").write_text(_config(folder, "config.steps = 'ten'"))
    line = "with config.ignore_type(): config.method = print"
    (folder / "method.py").write_text(_config(folder, line))
    (folder / "raises.py").write_text(_config(folder, "config.steps = 1 // 0"))
    (folder / "nothing.py").write_text("x = 1\n")
    (folder / "syntax.py").write_text("def get_config(:\n")
    (folder / "number.py").write_text("def get_config():\n    return 3\n")
    (folder / "import.py").write_text("import nothing_here\n")
    (folder / "division.jinja").write_text("{{ 1 / 0 }}")
    (folder / "constant.jinja").write_text("hello")
    (folder / "export").mkdir()
    (folder / "export" / "precious").write_text("")
    (folder / "file").write_text("")
    return folder


def _data(folder):
    good = (folder / "chats.jsonl").read_text().splitlines()
    torn = [*good[:6], good[6][:20], *good[7:]]
    for name, lines in {
        "torn": torn,
        "column": [json.dumps({"question": "q", "answer": "a"})],
        "role": [json.dumps({"messages": [{"content": "q"}]})],
        "number": [json.dumps({"messages": 3})],
        "empty": [],
        "user_only": [json.dumps({"messages": [{"role": "user", "content": "q"}]})],
        "one": good[:1],
    }.items():
        (folder / f"{name}.jsonl").write_text("".join(line + "\n" for line in lines))
    (folder / "latin.jsonl").write_bytes(b'{"text": "caf\xe9"}\n')
    (folder / "utf16.jsonl").write_text('{"text": "a"}\n', encoding="utf-16")
    (folder / "nul.jsonl").write_bytes(b"\0\0\n")
    (folder / "chats.xyz").write_text("hello")
    (folder / "folder.jsonl").mkdir()
    (folder / "bad.parquet").write_bytes(b"PAR1 no parquet")


def _models(folder):
    model = folder / "model"
    weights = (model / "model.safetensors").read_bytes()
    broken = ("cut", "missing", "shape", "kind", "json", "tokens", "bare", "quantised", "heads")
    for name in (*broken, "activation", "ends", "untold", "weightless", "latin"):
        other = folder / name
        other.mkdir()
        for path in model.iterdir():
            (other / path.name).write_bytes(path.read_bytes())
    (folder / "cut" / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    raw = json.loads((model / "config.json").read_text())
    for name, change in {
        "missing": {"tie_word_embeddings": False},
        "shape": {"hidden_size": 48},
        "kind": {"model_type": "lama"},
        "quantised": {"quantization_config": {"bits": 4}},
        "heads": {"num_attention_heads": 0},
        "activation": {"hidden_act": "gelo"},
    }.items():
        (folder / name / "config.json").write_text(json.dumps(raw | change))
    (folder / "json" / "config.json").write_text("{")
    (folder / "tokens" / "tokenizer.json").write_text("{")
    tiny.write_model(folder / "bare", template=None)
    (folder / "bare" / "chat_template.jinja").unlink(missing_ok=True)
    (folder / "ends" / "generation_config.json").write_text('{"eos_token_id": "end"}')
    (folder / "untold" / "tokenizer.json").unlink()
    (folder / "weightless" / "model.safetensors").unlink()
    (folder / "latin" / "config.json").write_bytes(b"\xff")
    (folder / "hollow").mkdir()


def _config(folder, line):
    return (
        "from tests.tiny import tiny_config\n\n\ndef get_config():\n"
        f"    config = tiny_config({str(folder)!r})\n    {line}\n    return config\n"
    )


# arguments -> what the line must say. `{folder}` is the fixture's folder.
CASES = {
    "data: torn line": (["data.sources[0].path={folder}/torn.jsonl"], "torn.jsonl, line 7"),
    "data: missing column": (["data.sources[0].path={folder}/column.jsonl"], "question"),
    "data: message without role": (
        ["data.sources[0].path={folder}/role.jsonl"],
        "role.jsonl, line 1",
    ),
    "data: messages is a number": (["data.sources[0].path={folder}/number.jsonl"], "number.jsonl"),
    "data: empty file": (
        ["data.sources[0].path={folder}/empty.jsonl"],
        "empty.jsonl: the file is empty; give one with rows, of the forms in docs/data.md",
    ),
    "data: no such file": (["data.sources[0].path={folder}/nothing.jsonl"], "nothing.jsonl"),
    "data: not UTF-8": (["data.sources[0].path={folder}/latin.jsonl"], "latin.jsonl, line 1"),
    "data: unknown kind of file": (["data.sources[0].path={folder}/chats.xyz"], "chats.xyz"),
    "data: damaged parquet": (["data.sources[0].path={folder}/bad.parquet"], "bad.parquet"),
    "data: nothing to train on": (
        ["data.sources[0].path={folder}/user_only.jsonl"],
        "only.jsonl, line 1",
    ),
    "data: max_length too small": (["data.max_length=8", "data.row_length=64"], "max_length = 8"),
    "data: all dropped": (
        ["data.sources[0].path={folder}/user_only.jsonl", "data.on_empty=drop"],
        "no example is left (1 x nothing to train on)",
    ),
    "data: no source": (["data.sources=[]"], "config.data.sources: no source given"),
    "data: held out leaves nothing": (
        ["data.validation=0.5", "data.sources[0].path={folder}/one.jsonl"],
        "config.data.validation = 0.5 would hold out all of 1 example(s), 1 of them different",
    ),
    "data: validation out of range": (["data.validation=1.5"], "config.data.validation = 1.5"),
    "data: unknown key of a source": (["data.sources[0].pth=x"], "'pth'"),
    "data: unknown train_on": (["data.train_on=assistent"], "did you mean 'assistant'?"),
    "data: tokens_per_batch": (["data.tokens_per_batch=500"], "tokens_per_batch = 500"),
    "data: row_length": (["data.row_length=32"], "config.data.row_length = 32"),
    "data: no batch size": (["data.packing=false"], "config.data.batch_size"),
    "data: batch size does not divide": (
        ["data.packing=false", "data.batch_size=9", "accumulate=2"],
        "config.data.batch_size = 9",
    ),
    "data: bucket too short": (
        ["data.packing=false", "data.batch_size=8", "data.buckets=[16]"],
        "config.data.buckets: the longest is 16",
    ),
    "data: UTF-16": (["data.sources[0].path={folder}/utf16.jsonl"], "UTF-16"),
    "data: NUL bytes": (["data.sources[0].path={folder}/nul.jsonl"], "nul.jsonl, line 1"),
    "data: a folder": (["data.sources[0].path={folder}/folder.jsonl"], "is a folder"),
    "data: columns": (["data.sources[0].columns=3"], "sources[0].columns = 3"),
    "data: max_length none": (["data.max_length=none"], "config.data.max_length is None"),
    "data: buckets": (["data.buckets=x"], "config.data.buckets = 'x'"),
    "data: bucket of 0": (["data.buckets=[0]"], "config.data.buckets = [0]"),
    "data: workers": (["data.workers=-1"], "config.data.workers = -1"),
    "data: cache is a file": (
        ["data.cache={folder}/file"],
        "{folder}/file: is not a folder; give another config.data.cache",
    ),
    "template: division": (["data.chat_template={folder}/division.jinja"], "division by zero"),
    "template: constant": (["data.chat_template={folder}/constant.jinja"], "leaves nothing of"),
    "template: syntax": (["data.chat_template={folder}/template.jinja"], "template"),
    "template: no such file": (["data.chat_template={folder}/nothing.jinja"], "nothing.jinja"),
    "template: none": (["model.source={folder}/bare"], "chat template"),
    "model: truncated": (["model.source={folder}/cut"], "cut/model.safetensors"),
    "model: missing tensor": (["model.source={folder}/missing"], "'lm_head.weight' is missing"),
    "model: wrong shape": (["model.source={folder}/shape"], "has shape"),
    "model: unknown family": (["model.source={folder}/kind"], "did you mean 'llama'?"),
    "model: quantised": (["model.source={folder}/quantised"], "quantised"),
    "model: damaged config.json": (
        ["model.source={folder}/json"],
        "json/config.json: is not JSON (column 2: a key in double quotes is expected",
    ),
    "model: damaged tokenizer": (["model.source={folder}/tokens"], "tokenizer"),
    "model: empty folder": (["model.source={folder}/hollow"], "config.json"),
    "model: no such folder": (["model.source={folder}/nothing"], "{folder}/nothing"),
    "model: empty": (["model.source="], "config.model.source is empty"),
    "model: no heads": (["model.source={folder}/heads"], "not a valid llama config"),
    "model: activation": (["model.source={folder}/activation"], "did you mean 'gelu'?"),
    "model: end tokens": (["model.source={folder}/ends"], "eos_token_id 'end'"),
    "model: no tokenizer": (["model.source={folder}/untold"], "it has no tokenizer"),
    "model: no weights": (["model.source={folder}/weightless"], "model.safetensors"),
    "model: config.json not UTF-8": (["model.source={folder}/latin"], "latin/config.json"),
    "model: flax": (["model.source=flax:nowhere.build"], "No module named 'nowhere'"),
    "model: special_tokens": (["model.special_tokens=[1]"], "special_tokens = (1,)"),
    "model: empty special token": (["model.special_tokens=['']"], "special_tokens = ('',)"),
    "model: remat none": (["model.remat=None"], "config.model.remat is None"),
    "model: param_dtype": (["model.param_dtype=float8"], "config.model.param_dtype = 'float8'"),
    "model: dtype": (["model.dtype=float23"], "'float23'"),
    "model: base": (["model.base=nf5"], "did you mean 'nf4'?"),
    "model: a base without adapters": (["model.base=int8"], "set config.lora"),
    "model: remat": (["model.remat=ful"], "did you mean 'full'?"),
    "model: head_chunk": (["model.head_chunk=0"], "config.model.head_chunk = 0"),
    "model: dropout": (["model.dropout=1.5"], "config.model.dropout = 1.5"),
    "lora: matches nothing": (["lora={'targets': 'layers.nothing'}"], "lora.targets"),
    "lora: not a regex": (["lora={'targets': '('}"], "lora.targets"),
    "lora: unknown key": (["lora={'r': 8}"], "config.lora: unknown key 'r'"),
    "lora: rank": (["lora={'rank': 0}"], "rank"),
    "lora: alpha": (["lora={'alpha': 0}"], "config.lora.alpha = 0"),
    "lora: dora": (["lora={'dora': 'x'}"], "config.lora.dora = 'x'"),
    "lora: no adapter": (["lora={'adapter': '{folder}/hollow'}"], "adapter_config.json"),
    "trainable: matches nothing": (["trainable=heads"], "config.trainable 'heads' matches no"),
    "trainable: not a regex": (["trainable=("], "config.trainable = '('"),
    "steps and epochs": (["steps=2", "epochs=2"], "steps or epochs, not both"),
    "neither steps nor epochs": (["steps=none"], "give steps"),
    "no steps": (["steps=0"], "config.steps = 0"),
    "too many steps": (["steps=99999999999"], "below 2^31"),
    "negative steps": (["steps=-3"], "config.steps = -3"),
    "accumulate": (["accumulate=0"], "config.accumulate = 0"),
    "ema": (["ema=1.5"], "config.ema = 1.5"),
    "method": (["method=sfd"], "config.method: unknown 'sfd'; did you mean 'sft'?"),
    "method: none": (["method=None"], "config.method is None; its default is 'sft'"),
    "method: no such module": (["method=nowhere.loss"], "config.method 'nowhere.loss'"),
    "method: hyperparameter": (["hparams={'smoothing': 0.1}"], "unknown key 'smoothing'"),
    "method: type": (
        ["hparams={'label_smoothing': 'x'}"],
        "config.hparams.label_smoothing expects a number, got 'x'",
    ),
    "method: value": (["hparams={'label_smoothing': 2.0}"], "label_smoothing 2.0"),
    "mesh: does not divide": (["mesh.data=3"], "3 does not divide"),
    "mesh: too many": (["mesh.data=16", "mesh.fsdp=1"], "needs 16 devices"),
    "optim: name": (["optim.name=adamv"], "did you mean 'adamw'?"),
    "optim: schedule": (["optim.schedule=cosin"], "did you mean 'cosine'?"),
    "optim: rate": (["optim.learning_rate=-1.0"], "config.optim.learning_rate = -1.0"),
    "optim: no number": (["optim.learning_rate=nan"], "config.optim.learning_rate = nan"),
    "optim: no rate": (["optim.learning_rate=None"], "config.optim.learning_rate is None"),
    "optim: no name": (["optim.name=None"], "config.optim.name is None"),
    "optim: state_bits": (["optim.state_bits=4"], "optim.state_bits = 4: it must be 8 or 32"),
    "optim: rounding": (["optim.rounding=kahn"], "did you mean 'kahan'?"),
    "optim: nothing to round": (["optim.rounding=kahan"], "set config.model.param_dtype"),
    "optim: warmup": (["optim.warmup=100"], "100 warmup steps"),
    "guard: max_skipped": (["guard.max_skipped=0"], "config.guard.max_skipped = 0"),
    "checkpoint: keep": (["checkpoint.keep=1"], "config.checkpoint.keep = 1: at least 2"),
    "checkpoint: best": (["checkpoint.best=['eval/los','min']"], "'eval/los'"),
    "checkpoint: best is a number": (["checkpoint.best=3"], "config.checkpoint.best = 3"),
    "samples: prompts": (["samples.prompts=[3]"], "config.samples.prompts = [3]"),
    "log: wandb": (["log.wandb=3"], "config.log.wandb = 3"),
    "config: unknown key": (["optim.lr=0.1"], "unknown key 'lr'"),
    "config: no value": (
        ["steps"],
        "config.steps has no value: give an int, as in --config.steps=",
    ),
    "config: wrong type": (["steps=many"], "config.steps expects an int, got 'many'"),
    "config: key in the file": ("--config={folder}/key.py", "unknown key 'lr'"),
    "config: group in the file": ("--config={folder}/group.py", "unknown key 'optimizer'"),
    "config: type in the file": ("--config={folder}/kind.py", "kind.py:6"),
    "config: method in the file": ("--config={folder}/method.py", "is not a string"),
    "config: raises": ("--config={folder}/raises.py", "raises.py:6"),
    "config: syntax": ("--config={folder}/syntax.py", "syntax.py:1: invalid syntax"),
    "config: import": ("--config={folder}/import.py", "import.py:1: ModuleNotFoundError"),
    "config: returns a number": ("--config={folder}/number.py", "returned int"),
    "config: no get_config": ("--config={folder}/nothing.py", "get_config"),
    "config: no such file": ("--config={folder}/tinny.py", "tinny.py"),
    "workdir: missing": ("--workdir=", "missing --workdir"),
    "workdir: is a file": (
        "--workdir={folder}/file",
        "{folder}/file: is not a folder; give another",
    ),
    "workdir: below a file": ("--workdir={folder}/file/run", "{folder}/file is not a folder; give"),
    "workdir: unwritable": ("--workdir=/proc/x", "/proc/x: nothing can be written in /proc ("),
    "workdir: unknown store": ("--workdir=s9://bucket/run", "s9://bucket/run: neither a folder"),
    "unknown flag": ("--workdirs=x", "did you mean '--workdir'?"),
}


def command(folder, asked, workdir):
    words = [asked] if isinstance(asked, str) else [f"--config.{one}" for one in asked]
    words = [word.replace("{folder}", str(folder)) for word in words]
    if not words[0].startswith("--config="):
        words.insert(0, f"--config={folder}/tiny_config.py")
    if not words[-1].startswith("--workdir"):
        words.append(f"--workdir={workdir}")
    return words


@pytest.fixture
def quiet_logs():
    """Gives the loggers back as they were: a command sets them up for its own process."""
    root, ours = logging.getLogger(), logging.getLogger("ptjax")
    before, level = list(root.handlers), ours.level
    yield
    root.handlers[:] = before
    ours.setLevel(level)


@pytest.mark.usefixtures("quiet_logs")
@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_one_line(folder, case, tmp_path, monkeypatch, capsys):
    asked, said = CASES[case]
    workdir = tmp_path / "run"
    monkeypatch.setattr(sys, "argv", ["train", *command(folder, asked, workdir)])
    with pytest.raises(SystemExit) as ended:
        errors.run(main)
    err = capsys.readouterr().err
    assert ended.value.code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert said.replace("{folder}", str(folder)) in err
    assert not workdir.exists(), "nothing was begun"
    assert (folder / "file").read_text() == ""


ASKED = ["--model={folder}/nothing", "--prompts={folder}/chats.jsonl"]
# module, arguments -> what the line must say. Where nothing can be written, no model is looked for.
OTHERS = {
    "chat: empty folder": ("generate", ["{folder}/hollow", "--prompt=hi"], "no config.json"),
    "chat: no model": ("generate", [], "missing MODEL"),
    "chat: step": (
        "generate",
        ["{folder}/model", "--step=3"],
        "is no run's workdir, so it has no st",
    ),
    "chat: no quotes": (
        "generate",
        ["{folder}/model", "hi"],
        "nothing is expected where 'hi' stands",
    ),
    "chat: no value": (
        "generate",
        ["{folder}/model", "--prompt"],
        "--prompt has no value; give --",
    ),
    "answers: no name": (
        "answers",
        [*ASKED, "--out="],
        "missing --out=... (the JSONL file to make)",
    ),
    "chat: dtype": ("generate", ["{folder}/model", "--dtype=int8"], "--dtype=int8"),
    "chat: temperature": (
        "generate",
        ["{folder}/model", "--prompt=hi", "--temperature=-1"],
        "temperature must be 0 or more",
    ),
    "chat: too long": (
        "generate",
        ["{folder}/model", "--prompt=" + "x " * 500],
        "leaves no room in the model's 128 positions",
    ),
    "export: not empty": (
        "export",
        ["{folder}/model", "{folder}/export"],
        "is not empty and not an earlier export",
    ),
    "export: onto itself": ("export", ["{folder}/model", "{folder}/model"], "is not empty"),
    "export: onto a file": ("export", ["{folder}/model", "{folder}/file"], "is a file"),
    "export: unwritable": ("export", ["{folder}/nothing", "/proc/x"], "be written in /proc ("),
    "export: shards": ("export", ["{folder}/model", "{out}", "--max_shard_gb=nan"], "=nan"),
    "export: base": ("export", ["{folder}/model", "{out}", "--base=x"], "--base goes with"),
    "export: no average": ("export", ["{folder}/model", "{out}", "--last"], "no moving average"),
    "export: no adapter": ("export", ["{folder}/model", "{out}", "--adapter"], "no adapter"),
    "verify: no run": ("checkpoint", ["verify", "{folder}/model"], "no checkpoint in"),
    "verify: a file": ("checkpoint", ["verify", "{folder}/file"], "{folder}/file: Not a directory"),
    "verify: nothing": ("checkpoint", ["verify"], "missing DIR (a workdir, or its checkpoints"),
    "verify: spelling": ("checkpoint", ["verfy", "{folder}"], "'verfy'; did you mean 'verify'?"),
    "verify: left out": ("checkpoint", ["{folder}"], "unknown command '{folder}'; known: verify"),
    "answers: a folder": ("answers", [*ASKED, "--out={folder}"], "{folder}: is a folder; name"),
    "answers: another's": ("answers", [*ASKED, "--out={folder}/file"], "file exists and has no"),
    "pairs: unwritable": (
        "preferences",
        [*ASKED, "--out=/proc/pairs.jsonl", "--chosen=given"],
        "nothing can be written in /proc (",
    ),
    "tasks: count": ("rewards.tasks", ["--task=x", "--out={out}", "--count=0"], "--count = 0: it"),
    "tasks: settings": ("rewards.tasks", ["--task=x", "--out={out}", "--settings=3"], "an object"),
    "plan: onto a file": (
        "plan",
        ["--config={folder}/tiny_config.py", "--topology=cpu", "--out={folder}/file"],
        "{folder}/file: is not a folder; give another --out",
    ),
}


@pytest.mark.parametrize("case", OTHERS)
def test_a_mistake_is_one_line_from_the_other_commands(folder, case, tmp_path, monkeypatch, capsys):
    name, words, said = OTHERS[case]
    places = {"{folder}": str(folder), "{out}": str(tmp_path / "out")}
    for place, path in places.items():
        words, said = [word.replace(place, path) for word in words], said.replace(place, path)
    module = f"ptjax.{name}" if name == "answers" else f"ptjax.{name}.__main__"
    command = importlib.import_module(module)
    monkeypatch.setattr(sys, "argv", [name, *words])
    with pytest.raises(SystemExit) as ended:
        errors.run(command.main)
    *progress, line = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2
    assert line.startswith("error: ")
    assert said in line
    assert not any("error" in other for other in progress)
    assert (folder / "export" / "precious").exists()
    assert not (tmp_path / "out").exists()


def test_an_unusable_workdir_is_told_before_anything_is_loaded(folder):
    code = (
        "import sys, ptjax.errors, ptjax.train\n"
        f"sys.argv[1:] = ['--config=configs/quickstart.py', '--workdir={folder}/file']\n"
        "try: ptjax.errors.run(sys.modules['ptjax.train'].main)\n"
        "finally: print('jax' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "False\n"), done.stderr
    assert ": is not a folder; give another workdir\n" in done.stderr


@pytest.mark.usefixtures("quiet_logs")
def test_what_stands_behind_a_run_is_not_done_after_ctrl_c(monkeypatch, tmp_path):
    words = ["train", "--config=configs/quickstart.py", f"--workdir={tmp_path}/run"]
    monkeypatch.setattr(sys, "argv", words)
    stopped = types.SimpleNamespace(stopped_by=signal.SIGTERM)
    monkeypatch.setattr(sys.modules["ptjax.train"], "train", lambda *given: stopped)
    main()
    stopped.stopped_by = signal.SIGINT
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130


def test_the_command_itself_prints_one_line_and_no_traceback(folder, tmp_path):
    workdir = tmp_path / "run"
    words = command(folder, ["data.sources[0].path={folder}/torn.jsonl"], workdir)
    done = subprocess.run(
        [sys.executable, "-m", "ptjax.train", *words], capture_output=True, text=True, timeout=200
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {folder}/torn.jsonl, line 7: is not JSON")
    assert done.stderr.count("\n") == 1
    assert not workdir.exists()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB."""
    where = tmp_path / "disk"
    where.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(where)]
    with contextlib.ExitStack() as stack:
        try:
            mounted = subprocess.run(mount, capture_output=True).returncode == 0
        except FileNotFoundError:
            mounted = False
        if not mounted:
            pytest.skip("mounting a small file system needs root")
        stack.callback(subprocess.run, ["umount", "-l", str(where)], check=True)
        yield where


def test_a_full_disk_costs_no_checkpoint_that_was_there(folder, small_disk):
    """Room for a checkpoint or two, and not for more."""
    workdir = small_disk / "run"
    words = command(folder, ["checkpoint.every=1"], workdir)
    environment = {**os.environ, "XLA_FLAGS": xla.flags()}
    done = subprocess.run(
        [sys.executable, "-m", "ptjax.train", *words, "--config.log.tensorboard=true"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=200,
    )
    assert done.returncode == 2
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert "the disk is full at" in said[0]
    assert "the last good step is" in said[0]
    assert "Traceback" not in done.stderr
    good = Checkpoints(workdir).steps()
    assert len(good) >= 1
    assert [tiny.saved(workdir, step)[0] for step in good] == good


@pytest.mark.usefixtures("quiet_logs")
def test_a_disk_too_full_to_begin_is_one_line(folder, small_disk, monkeypatch, capsys):
    (small_disk / "ballast").write_bytes(b"x" * (2**20 - 20_000))
    words = ["train", *command(folder, ["log.tensorboard=true"], small_disk / "run")]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        errors.run(main)
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {small_disk}/run/model: cannot write")
    assert err.count("\n") == 1
    assert Checkpoints(small_disk / "run").latest() is None
