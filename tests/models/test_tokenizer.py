"""Tokenizers from GGUF metadata, against golden ids and against the algorithms they stand for."""

import json
import os
from pathlib import Path

import gguf
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from ptjax.errors import UserError
from ptjax.models.hub import resolve_source
from ptjax.models.tokenizer import (
    add_special_tokens,
    gguf_tokenizer,
    load_tokenizer,
    save_tokenizer,
    template_text,
)

SHARED = Path(
    os.environ.get("PTJAX_SHARED_DATA", Path(__file__).parents[2].parent / "shared" / "data")
)
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
CORPUS = [
    "the quick brown fox jumps over the lazy dog 12345 times, doesn't it?",
    "Übung macht den Meister: 東京  and\n\n\tspaces   everywhere 3.14159",
] * 20
TEXTS = [
    *CORPUS[:2],
    "",
    " ",
    "  two",
    "a1234567b",
    "x\r\n\r\ny",
    "I'LL don't",
    "é e\u0301 \U0001f680 ünseen ✓",
    "<|im_start|>user\nhi<|im_end|>",
]


def train_bytes(extra=300):
    """A byte-level BPE vocabulary: its tokens in order, and its merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=256 + extra,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].get), model["merges"]


def write_vocabulary(path, *, model, tokens, kinds, pre=None, merges=None, scores=None, **more):
    writer = gguf.GGUFWriter(str(path), more.pop("arch", "llama"))
    writer.add_context_length(77)
    writer.add_tokenizer_model(model)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    if merges is not None:
        writer.add_token_merges([" ".join(pair) for pair in merges])
    if scores is not None:
        writer.add_token_scores(scores)
    for key, value in more.items():
        getattr(writer, f"add_{key}")(value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def write_bytes_vocabulary(path, *, pre="gpt-2", **more):
    tokens, merges = train_bytes()
    special = ["<|im_start|>", "<|im_end|>"]
    pads = [f"[PAD{len(tokens) + 2 + i}]" for i in range(3)]
    settings = {
        "model": "gpt2",
        "tokens": [
            *special,
            *tokens,
            "<think>",
            *[f"[PAD{len(tokens) + 3 + i}]" for i in range(len(pads))],
        ],
        "kinds": [3, 3, *[1] * len(tokens), 4, *[5] * 3],
        "pre": pre,
        "merges": merges,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
        "chat_template": TEMPLATE,
    }
    return write_vocabulary(path, **(settings | more))


def ids(tokenizer, text, **options):
    return tokenizer(text, add_special_tokens=False, **options)["input_ids"]


def pieces(tokenizer, text):
    return [piece for piece, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)]


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2", "tekken"])
def test_byte_level_text_comes_back(pre, tmp_path):
    tokenizer = gguf_tokenizer(write_bytes_vocabulary(tmp_path / "v.gguf", pre=pre))
    assert tokenizer.is_fast and tokenizer.model_max_length == 77
    for text in TEXTS:
        expected = text.replace("e\u0301", "é") if pre == "qwen2" else text
        assert tokenizer.decode(ids(tokenizer, text)) == expected


@pytest.mark.parametrize(
    ("pre", "digits", "word"),
    [
        ("gpt-2", ["12345"], ["I", "'", "LL"]),
        ("smollm", ["1", "2", "3", "4", "5"], ["I", "'", "LL"]),
        ("llama-bpe", ["123", "45"], ["I", "'LL"]),
        ("qwen2", ["1", "2", "3", "4", "5"], ["I", "'LL"]),
        ("tekken", ["1", "2", "3", "4", "5"], ["I", "'LL"]),
    ],
)
def test_each_splitter_cuts_numbers_and_words_its_way(pre, digits, word, tmp_path):
    tokenizer = gguf_tokenizer(write_bytes_vocabulary(tmp_path / "v.gguf", pre=pre))
    assert pieces(tokenizer, "12345") == digits
    assert pieces(tokenizer, "I'LL") == word
    camel = ["camel", "Case"] if pre == "tekken" else ["camelCase"]
    assert pieces(tokenizer, "camelCase") == camel


def test_a_whole_token_beats_its_merges_where_llama3_says_so(tmp_path):
    tokens, merges = train_bytes()
    tokens = [*tokens, "xqz"]
    common = {"tokens": tokens, "kinds": [1] * len(tokens), "merges": merges, "model": "gpt2"}
    whole = gguf_tokenizer(write_vocabulary(tmp_path / "a.gguf", pre="llama-bpe", **common))
    merged = gguf_tokenizer(write_vocabulary(tmp_path / "b.gguf", pre="qwen2", **common))
    assert ids(whole, "xqz") == [len(tokens) - 1]
    assert len(ids(merged, "xqz")) == 3


def test_special_tokens_pads_and_template(tmp_path):
    tokenizer = gguf_tokenizer(write_bytes_vocabulary(tmp_path / "v.gguf"))
    think = tokenizer.convert_tokens_to_ids("<think>")
    assert len(tokenizer) == think + 1
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 1, 1)
    assert ids(tokenizer, "<|im_start|><think>") == [0, think]
    assert 0 not in ids(tokenizer, "<|im_start|>", split_special_tokens=True)
    assert tokenizer.decode([0, think, 1], skip_special_tokens=True) == "<think>"
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "dog"}], tokenize=False)
    assert chat == "<|im_start|>dog<|im_end|>"
    assert tokenizer("dog")["input_ids"] == ids(tokenizer, "dog")


@pytest.mark.parametrize(
    ("settings", "before", "after"),
    [
        ({"pre": "llama-bpe"}, [0], []),
        ({"pre": "llama-bpe", "add_bos_token": False}, [], []),
        ({"add_bos_token": True, "add_eos_token": True}, [0], [1]),
    ],
)
def test_what_stands_around_a_text(settings, before, after, tmp_path):
    tokenizer = gguf_tokenizer(write_bytes_vocabulary(tmp_path / "v.gguf", **settings))
    assert tokenizer("dog")["input_ids"] == [*before, *ids(tokenizer, "dog"), *after]
    save_tokenizer(tokenizer, tmp_path / "out")
    assert load_tokenizer(tmp_path / "out")("dog")["input_ids"] == tokenizer("dog")["input_ids"]


def sentencepiece_vocabulary(extra=()):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=200, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    learned = [token for pair in model["merges"] for token in ["".join(pair)]]
    letters = [token for token in model["vocab"] if len(token) == 1]
    tokens = ["<unk>", "<s>", "</s>", *[f"<0x{i:02X}>" for i in range(256)], *extra]
    kinds = [2, 3, 3, *[6] * 256, *[4] * len(extra)]
    runs = {token.replace(" ", "▁") for token in extra}
    words = [word for word in dict.fromkeys([*learned, *letters]) if word not in runs]
    scores = [0.0] * len(tokens) + [-float(i) for i in range(len(words))]
    return [*tokens, *words], [*kinds, *[1] * len(words)], scores


def best_pair_first(text, tokens, scores):
    """SentencePiece as llama.cpp runs it: joins the best-scored neighbours, leftmost first."""
    table = {token: i for i, token in enumerate(tokens)}
    parts = list(text)
    while True:
        found = [
            (scores[table[a + b]], -i)
            for i, (a, b) in enumerate(zip(parts, parts[1:], strict=False))
            if a + b in table
        ]
        if not found:
            break
        i = -max(found)[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    spelled = []
    for part in parts:
        fallback = [table[f"<0x{byte:02X}>"] for byte in part.encode()]
        spelled += [table[part]] if part in table else fallback
    return spelled


def test_sentencepiece_is_best_pair_first(tmp_path):
    tokens, kinds, scores = sentencepiece_vocabulary()
    path = write_vocabulary(
        tmp_path / "v.gguf",
        model="llama",
        tokens=tokens,
        kinds=kinds,
        scores=scores,
        bos_token_id=1,
        eos_token_id=2,
        unk_token_id=0,
    )
    tokenizer = gguf_tokenizer(path)
    for text in TEXTS[:-1]:
        spelled = ("▁" + text.replace(" ", "▁")) if text else ""
        assert ids(tokenizer, text) == best_pair_first(spelled, tokens, scores), text
        assert tokenizer.decode(ids(tokenizer, text)) == text
    assert tokenizer("dog")["input_ids"][0] == 1
    assert ids(tokenizer, "</s>") == [2]
    save_tokenizer(tokenizer, tmp_path / "out")
    again = load_tokenizer(tmp_path / "out")
    for text in TEXTS:
        assert again(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_gemma_keeps_runs_of_spaces_and_adds_none(tmp_path):
    tokens, kinds, scores = sentencepiece_vocabulary(extra=["\n\n", "  ", "   "])
    path = write_vocabulary(
        tmp_path / "v.gguf",
        model="llama",
        arch="gemma2",
        tokens=tokens,
        kinds=kinds,
        scores=scores,
        bos_token_id=1,
        unk_token_id=0,
        add_space_prefix=False,
    )
    tokenizer = gguf_tokenizer(path)
    two, three = tokens.index("  "), tokens.index("   ")
    assert ids(tokenizer, "  ") == [two]
    assert ids(tokenizer, "   ") == [three]
    assert ids(tokenizer, "\n\n") == [tokens.index("\n\n")]
    for text in TEXTS[:-1]:
        assert tokenizer.decode(ids(tokenizer, text)) == text


def test_what_cannot_be_read_is_named(tmp_path):
    path = tmp_path / "v.gguf"
    with pytest.raises(UserError, match="splitter 'smolm'.*did you mean 'smollm'"):
        gguf_tokenizer(write_bytes_vocabulary(path, pre="smolm"))
    with pytest.raises(UserError, match="'x y' is not made of tokens"):
        gguf_tokenizer(write_bytes_vocabulary(path, merges=[("x", "y")]))
    with pytest.raises(UserError, match="id 999999 is not in"):
        gguf_tokenizer(write_bytes_vocabulary(path, bos_token_id=999999))
    with pytest.raises(UserError, match="tokenizer model 'bert'"):
        gguf_tokenizer(write_bytes_vocabulary(path, model="bert"))
    with pytest.raises(UserError, match="token types"):
        gguf_tokenizer(write_bytes_vocabulary(path, kinds=[1, 2]))
    with pytest.raises(UserError, match="neither merges nor a score"):
        gguf_tokenizer(write_vocabulary(path, model="llama", tokens=["a", "b"], kinds=[1, 1]))


@pytest.fixture
def folder(tmp_path):
    save_tokenizer(gguf_tokenizer(write_bytes_vocabulary(tmp_path / "v.gguf")), tmp_path / "folder")
    return tmp_path / "folder"


def test_a_folder_loads_as_it_was_saved_and_comes_back_as_bytes(folder, tmp_path):
    first = gguf_tokenizer(tmp_path / "v.gguf")
    tokenizer = load_tokenizer(folder)
    assert tokenizer.chat_template == TEMPLATE and tokenizer.model_max_length == 77
    assert tokenizer.special_tokens_map == first.special_tokens_map
    for text in TEXTS:
        assert ids(tokenizer, text) == ids(first, text)
    (folder / "tokenizer_config.json").write_text(
        " " + (folder / "tokenizer_config.json").read_text()
    )
    tokenizer = load_tokenizer(folder)
    tokenizer("dog", truncation=True, max_length=2)
    save_tokenizer(tokenizer, tmp_path / "again")
    for path in folder.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_changed_tokenizer_is_saved_anew(folder, tmp_path):
    tokenizer = load_tokenizer(folder, chat_template="{{ messages[0].content }}")
    size = len(tokenizer)
    assert add_special_tokens(tokenizer, ["<tool>", "<|im_end|>", "<tool>"]) == [size]
    save_tokenizer(tokenizer, tmp_path / "out")
    again = load_tokenizer(tmp_path / "out")
    assert again.chat_template == "{{ messages[0].content }}"
    assert len(again) == size + 1 and ids(again, "<tool>") == [size]
    assert size not in ids(again, "<tool>", split_special_tokens=True)
    saved = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert saved["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not {"is_local", "local_files_only", "backend"} & set(saved)


def test_a_template_may_be_a_file(folder, tmp_path):
    (tmp_path / "t.jinja").write_text("hello")
    assert load_tokenizer(folder, chat_template=str(tmp_path / "t.jinja")).chat_template == "hello"
    with pytest.raises(UserError, match="absent.jinja"):
        load_tokenizer(folder, chat_template="absent.jinja")


def test_folders_without_a_tokenizer_are_named(folder, tmp_path):
    with pytest.raises(UserError, match="has no tokenizer"):
        load_tokenizer(tmp_path)
    (folder / "tokenizer.json").write_text('{"version": "1.0", "model": 3}')
    with pytest.raises(UserError, match="cannot be loaded") as error:
        load_tokenizer(folder)
    assert "\n" not in str(error.value)


def test_remote_code_is_never_run(folder):
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"auto_map": {"AutoTokenizer": [None, "evil.Evil"]}, "tokenizer_class": "Evil"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\nclass Evil: pass\n")
    try:
        load_tokenizer(folder)
    except UserError as error:
        assert str(folder) in str(error)
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("name", ["gpt-2", "qwen2"])
def test_golden_ids_of_llama_cpp_vocabularies(name):
    data = SHARED / "golden_tokenizers"
    if not (data / f"ggml-vocab-{name}.gguf").is_file():
        pytest.skip(f"no golden vocabularies in {data} (set PTJAX_SHARED_DATA)")
    tokenizer = gguf_tokenizer(data / f"ggml-vocab-{name}.gguf")
    texts = (data / f"{name}.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    lines = (data / f"{name}.out").read_text().split("\n")
    assert len(texts) == 47
    for text, line in zip(texts, lines, strict=True):
        assert ids(tokenizer, text) == [int(token) for token in line.split()], repr(text)


def test_golden_ids_of_the_registered_model():
    golden = SHARED / "golden_lm_eval_smollm2" / "greedy_and_logprobs.json"
    if not golden.is_file():
        pytest.skip(f"no golden prompts in {golden.parent} (set PTJAX_SHARED_DATA)")
    try:
        path = resolve_source("smollm2-135m-instruct")
    except UserError as error:
        pytest.skip(str(error))
    tokenizer = load_tokenizer(path)
    golden = json.loads(golden.read_text())
    for chat in golden["greedy"]:
        rendered = tokenizer.apply_chat_template(
            chat["messages"], tokenize=False, add_generation_prompt=True
        )
        assert rendered == chat["rendered"]
        assert ids(tokenizer, rendered) == chat["prompt_ids"]
        assert tokenizer.decode(chat["greedy_ids"]) == chat["greedy_text"]
    for case in golden["tokenization"]:
        assert ids(tokenizer, case["text"]) == case["ids"]
    assert np.array_equal(tokenizer.all_special_ids, [1, 2, 0])


@pytest.mark.parametrize("name", ["chat.jinja", "chat.j2", "chat.txt"])
def test_a_template_is_read_from_any_file(tmp_path, name):
    (tmp_path / name).write_text("{{ messages[0]['content'] }}!")
    assert template_text(str(tmp_path / name)) == "{{ messages[0]['content'] }}!"


def test_a_template_that_is_neither_text_nor_file(tmp_path):
    with pytest.raises(UserError, match="no such file .*, nor is it a template"):
        template_text(str(tmp_path / "chat.j2"))
