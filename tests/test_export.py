"""An exported folder is the same model and the same tokenizer in Hugging Face's hands, and comes back unchanged."""

import json
import shutil

import pytest
import runs
import torch
from safetensors import safe_open

from tid.config import ConfigError
from tid.data.errors import DataError
from tid.data.tokenizer import EOT, VOCABULARY, encode, load_tokenizer
from tid.export import FILES, ExportConfig, export
from tid.generation import generate
from tid.load import load_model

transformers = pytest.importorskip("transformers")
CPU = torch.device("cpu")
SHAPE = ["model.init_std=0.3", "model.rope_theta=500.0", "model.num_heads=2", "model.norm_eps=1e-3"]
TEXTS = ["Hello, wörld!  <|endoftext|>", " leading", "it's we'll  12 345\n\n\tx", "日本語 🤗", "", "  a  b "]


def exported(run, to, **changes) -> "ExportConfig":
    """Export `run` into `to`, with the tokenizer of its folder of tests."""
    settings = {"checkpoint": run, "to": to, "overwrite": False, "tokenizer_dir": to.parent / "tokenizer"} | changes
    return export(ExportConfig(**{k: v if isinstance(v, bool) else str(v) for k, v in settings.items()}))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return runs.train(tmp_path_factory.mktemp("run"), *SHAPE)


@pytest.fixture(scope="module")
def folder(run):
    return exported(run, run.parents[2] / "exported" / "model", tokenizer_dir=run.parents[2] / "tokenizer")


@pytest.fixture(scope="module")
def llama(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def ours(run):
    return load_model(run, CPU).model


def test_logits_are_the_same(llama, ours):
    tokens = torch.randint(0, VOCABULARY, (3, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found, expected = llama(tokens).logits, ours(tokens)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_the_vocabulary_is_exact_and_the_tied_matrix_is_stored_once(folder, llama):
    assert llama.config.vocab_size == VOCABULARY and llama.config.tie_word_embeddings is True
    assert llama.lm_head.weight.data_ptr() == llama.get_input_embeddings().weight.data_ptr()
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        names, metadata = set(file.keys()), file.metadata()
        assert file.get_slice("model.embed_tokens.weight").get_shape() == [VOCABULARY, 16]
    assert metadata == {"format": "pt"} and "lm_head.weight" not in names
    assert (folder / "model.safetensors").stat().st_mode & 0o444 == 0o444
    assert len(transformers.AutoTokenizer.from_pretrained(folder)) == VOCABULARY


def test_greedy_text_is_the_same(folder, llama, ours):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    prompt = torch.tensor([EOT, *tokenizer("the cat").input_ids])
    made = generate(
        ours, prompt, context=16, num_samples=1, max_new_tokens=10, temperature=0.0, top_k=None, top_p=None,
        end=EOT, generator=torch.Generator(),
    )  # fmt: skip
    expected = llama.generate(prompt[None], max_new_tokens=10, do_sample=False)[0, len(prompt) :].tolist()
    found = [int(token) for token in made]
    assert tokenizer.decode(found) == tokenizer.decode(expected) and found == expected and len(set(found)) > 1


def test_the_tokenizer_encodes_like_ours(folder, run):
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    ours = load_tokenizer(run.parents[2] / "tokenizer")
    for text in TEXTS:
        ids = theirs(text).input_ids
        assert ids == encode(ours, text)
        assert theirs.decode(ids) == text
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.model_max_length) == (EOT, EOT, 16)
    assert theirs.decode([EOT, 1], skip_special_tokens=True) == '"'


def test_config_serves_transformers_4_and_5(folder):
    found = json.loads((folder / "config.json").read_text())
    assert found["rope_theta"] == 500.0 == found["rope_parameters"]["rope_theta"]
    assert found["rms_norm_eps"] == 1e-3 and found["max_position_embeddings"] == 16
    assert found["bos_token_id"] == found["eos_token_id"] == EOT
    assert found["architectures"] == ["LlamaForCausalLM"]
    generation = transformers.GenerationConfig.from_pretrained(folder)
    assert (generation.bos_token_id, generation.eos_token_id) == (EOT, EOT)


def test_the_card_has_data_configuration_metrics_and_both_commands(folder, run):
    card = (folder / "README.md").read_text()
    summary = runs.read(run, "summary.json")
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert f"| perplexity | {summary['best']['val_perplexity']:.4f} |" in card
    assert f"| bits per UTF-8 byte | {summary['best']['val_bpb']:.4f} |" in card
    assert summary["data"]["text"] in card and summary["data"]["train.jsonl"] in card
    assert f"```\npython -m tid.train {' '.join(SHAPE)}\n# commit " in card  # the settings that runs.train was given
    assert "## Training command" in card and "_target_: tid.scorers.Entropy" in card
    assert f"python -m tid.export checkpoint={run} to={folder}" in card
    assert "context: 16" in card and "output_dir" not in card  # where it ran is nobody's business


def test_it_comes_back_bit_by_bit_with_its_record(folder, run, ours):
    back = load_model(folder, CPU)
    for name, parameter in ours.state_dict().items():
        assert torch.equal(back.model.state_dict()[name], parameter), name
    assert back.model.shape == ours.shape and back.context == 16
    assert back.record == json.loads(json.dumps(load_model(run, CPU).record))
    assert back.record["step"] == runs.read(run, "summary.json")["best"]["step"]


def test_an_export_again_is_the_same_and_needs_permission(folder, run, tmp_path):
    to = tmp_path / "copy"
    shutil.copytree(folder, to)
    before = {path.name: path.read_bytes() for path in to.iterdir()}
    (to / "config.json").write_text("spoilt")
    with pytest.raises(ConfigError, match=r"is not empty; name another folder, or add overwrite=true"):
        exported(run, to, tokenizer_dir=run.parents[2] / "tokenizer")
    assert (to / "config.json").read_text() == "spoilt"
    exported(run, to, overwrite=True, tokenizer_dir=run.parents[2] / "tokenizer")
    after = {path.name: path.read_bytes() for path in to.iterdir()}
    assert after.keys() == FILES and [p.name for p in tmp_path.iterdir()] == ["copy"]
    assert all(after[name] == before[name] for name in FILES - {"README.md"})


def test_a_folder_with_anything_else_is_never_replaced(run, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="holds what no export has written .thesis.tex.; name another"):
        exported(run, tmp_path, overwrite=True)
    with pytest.raises(ConfigError, match="wanted a folder, got the file"):
        exported(run, tmp_path / "thesis.tex")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_what_was_found_about_an_export_is_not_deleted_with_it(folder, run, tmp_path):
    to = tmp_path / "copy"
    shutil.copytree(folder, to)
    (to / "evaluations" / "of-mine").mkdir(parents=True)
    with pytest.raises(ConfigError, match="holds what no export has written .evaluations.; name another folder"):
        exported(run, to, overwrite=True)
    assert (to / "evaluations" / "of-mine").is_dir()


def test_a_hugging_face_folder_of_other_making_is_never_replaced(folder, run, tmp_path):
    to = tmp_path / "copy"
    shutil.copytree(folder, to)
    (to / "tid.json").unlink()
    with pytest.raises(ConfigError, match="holds what no export has written .README.md, config.json, "):
        exported(run, to, overwrite=True)
    assert {path.name for path in to.iterdir()} == FILES - {"tid.json"}


def test_a_failure_leaves_what_was_there(folder, run, tmp_path, monkeypatch):
    to = tmp_path / "copy"
    shutil.copytree(folder, to)
    before = {path.name: path.read_bytes() for path in to.iterdir()}

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("tid.card.card", full)
    with pytest.raises(DataError, match="copy could not be written: No space left"):
        exported(run, to, overwrite=True, tokenizer_dir=run.parents[2] / "tokenizer")
    assert {path.name: path.read_bytes() for path in to.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_another_vocabulary_is_refused(tmp_path):
    other = runs.train(tmp_path, "model.vocab_size=50304", "total_steps=1", "eval_every=1")
    with pytest.raises(ConfigError, match="model.vocab_size: wanted GPT-2's 50257, got 50304"):
        exported(other, tmp_path / "to")


def test_what_is_no_checkpoint_is_said_so(run, tmp_path):
    with pytest.raises(ConfigError, match=f"did you mean {run}"):
        load_model(run.parent, CPU)
    with pytest.raises(ConfigError, match="no such checkpoint"):
        load_model(tmp_path / "nothing.pt", CPU)
