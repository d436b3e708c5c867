"""`python -m ptjax.generate MODEL`: chats with a model in the terminal, or answers one prompt.

Piped standard input is one prompt a line, each answered on its own.
"""

import sys
from typing import Any

from ptjax.config import Flag, parse
from ptjax.errors import UserError, did_you_mean, run

FLAGS = (
    Flag("model", "folder, .gguf file, registered name, hub id or workdir", positional=True),
    Flag("prompt", "answer this and leave; without it, chat"),
    Flag("system", "the system message"),
    Flag("temperature", "0 takes the likeliest token (default 0.7)", float, 0.7),
    Flag("top_p", "keep the likeliest tokens of this total probability (default 0.9)", float, 0.9),
    Flag("top_k", "keep this many tokens", int),
    Flag("min_p", "keep tokens this likely relative to the likeliest", float),
    Flag("max_tokens", "of a reply (default 256)", int, 256),
    Flag("seed", "the same seed gives the same replies (default 0)", int, 0),
    Flag("step", "of a workdir; the newest without it", int),
    Flag("dtype", "of the computation: float32 or bfloat16 (default float32)", str, "float32"),
)
COMMANDS = {
    "/reset": "forget the conversation",
    "/system": "TEXT: set the system message and start anew; without TEXT, show it",
    "/help": "show this",
    "/exit": "leave (also Ctrl-D)",
}


def main() -> None:
    """Parses the command line, loads the model and talks."""
    _, options = parse(
        prog="python -m ptjax.generate",
        flags=FLAGS,
        description="Chats with a model: one of the hub's layout, a GGUF file or a run of ours.",
        example="python -m ptjax.generate smollm2-135m-instruct --prompt='Why is the sky blue?'",
        config=False,
    )
    if not options.model:
        raise UserError("missing MODEL: a folder, .gguf file, registered name, hub id or workdir")
    chat = open_chat(options)
    if options.prompt is not None:
        answer(chat, options.prompt)
    elif sys.stdin.isatty():
        converse(chat)
    else:
        for line in sys.stdin:
            if line.strip():
                chat.reset()
                answer(chat, line.rstrip("\r\n"))


def open_chat(options: Any) -> Any:
    """The model, ready to talk."""
    source = options.model if options.step is None else f"{options.model}@{options.step}"
    if options.dtype not in ("float32", "bfloat16"):
        raise UserError(f"--dtype={options.dtype} is neither float32 nor bfloat16")
    _say(f"loading {source} ...", end="\r" if sys.stderr.isatty() else "\n")
    from ptjax.generate.chat import Conversation
    from ptjax.models.compute import Compute
    from ptjax.programs import keep_programs
    from ptjax.workdir import load, split_source

    if options.step is not None and split_source(options.model)[0] is None:
        raise UserError(f"{options.model}: is no run's workdir, so it has no step {options.step}")
    keep_programs()
    names = ("temperature", "top_p", "top_k", "min_p", "max_tokens", "seed")
    settings = {name: getattr(options, name) for name in names}
    settings["compute"] = Compute(dtype=options.dtype)
    bundle = load(source, head="lm")
    size = sum(leaf.size for leaf in bundle.params.values())
    _say(f"{source}: {bundle.model.config.family}, {size / 1e6:,.1f}M parameters")
    chat = Conversation(bundle, settings, options.system)
    if chat.template is None:
        _say("this model has no chat template: it continues your text, each prompt on its own")
        if options.system:
            raise UserError("--system needs a model with a chat template")
    return chat


def answer(chat: Any, prompt: str) -> None:
    """Prints one reply as it comes."""
    chat.reply(prompt, _emit)
    print(flush=True)


def converse(chat: Any) -> None:
    """Turn after turn until `/exit` or Ctrl-D; Ctrl-C stops a reply."""
    import contextlib

    with contextlib.suppress(ImportError):
        import readline  # arrow keys and history in input()

        readline.set_auto_history(True)
    _say("/reset /system /help /exit; Ctrl-C stops a reply")
    while True:
        try:
            line = input("\n> ").strip()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            _say("\n(/exit or Ctrl-D leaves)")
            continue
        if line == "/exit":
            return
        if line.startswith("/"):
            command(chat, line)
        elif line:
            turn(chat, line)


def turn(chat: Any, line: str) -> None:
    """One prompt of a conversation, its reply, and a word where the reply did not end by itself."""
    try:
        whole = chat.reply(line, _emit)
    except UserError as error:
        _say(f"{error} (/reset starts anew)")
        return
    print("" if whole else " [...]", flush=True)


def command(chat: Any, line: str) -> None:
    """Obeys a line that begins with a slash."""
    name, _, rest = line.partition(" ")
    if name == "/reset":
        chat.reset()
        _say("(forgotten)")
    elif name == "/system" and chat.template is None:
        _say("(this model has no chat template, so no system message)")
    elif name == "/system" and rest.strip():
        chat.system = rest.strip()
        chat.reset()
        _say("(set; the conversation starts anew)")
    elif name == "/system":
        _say(f"system: {chat.system}" if chat.system else "(none set; the template's own)")
    elif name == "/help":
        for known, meaning in COMMANDS.items():
            _say(f"{known:8} {meaning}")
    else:
        _say(f"unknown command {name}{did_you_mean(name, COMMANDS)}")


def _emit(text: str) -> None:
    print(text, end="", flush=True)


def _say(text: str, end: str = "\n") -> None:
    print(text, end=end, file=sys.stderr, flush=True)


if __name__ == "__main__":
    run(main)
