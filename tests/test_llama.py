"""Which folders a model may start from, and that it then does."""

import json

import pytest
import runs
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_model, tiny_shape

from tid.config import ConfigError, run_hash
from tid.llama import llama_config, load_weights, pinned, refuse_mismatch, shape_of, write_weights
from tid.pin import PIN


@pytest.fixture
def folder(tmp_path):
    """The tiny model as a Hugging Face folder."""
    model = tiny_model(seed=4)
    write_weights(model, tmp_path / "model.safetensors")
    write_config(tmp_path)
    return tmp_path


def write_config(folder, **changes) -> None:
    found = llama_config(tiny_shape(), context=16, end=100) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in found.items() if v != "absent"}))


def change_weights(folder, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def test_shape_and_weights_come_back(folder):
    shape, context = shape_of(folder)
    assert (shape, context) == (tiny_shape(), 16)
    model = shape.build(seed=0)
    load_weights(model, folder)
    expected = tiny_model(seed=4).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "model_type: wanted llama, got gpt2"),
        ({"num_key_value_heads": 2}, "num_key_value_heads: wanted num_attention_heads .4., got 2: grouped-query"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings: wanted true, got false"),
        ({"tie_word_embeddings": "absent"}, "tie_word_embeddings: wanted true, got false"),
        ({"attention_bias": True}, "attention_bias: wanted false, got true: our layers have no biases"),
        ({"mlp_bias": True}, "mlp_bias: wanted false, got true"),
        ({"hidden_act": "gelu"}, "hidden_act: wanted silu, got gelu"),
        ({"head_dim": 16}, "head_dim: wanted hidden_size / num_attention_heads .8., got 16"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_type: wanted default, got llama3"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_type: wanted default, got yarn"),
        ({"quantization_config": {"bits": 4}}, "quantization_config: wanted weights as floating-point"),
        ({"intermediate_size": "absent"}, "intermediate_size: missing"),
        ({"num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 10}, "even multiple of num_heads"),
    ],
)
def test_a_model_of_another_kind_is_refused_with_the_reason(folder, changes, message):
    write_config(folder, **changes)
    with pytest.raises(ConfigError, match=message):
        shape_of(folder)


def test_older_configurations_are_read(folder):
    write_config(folder, rope_parameters="absent", rope_theta=50.0, head_dim="absent", rope_scaling=None,
                 num_key_value_heads="absent", attention_bias="absent")  # fmt: skip
    assert shape_of(folder)[0].rope_theta == 50.0
    write_config(folder, rope_parameters={"rope_type": "default", "rope_theta": 60.0}, rope_theta="absent")
    assert shape_of(folder)[0].rope_theta == 60.0


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_layers", 2), ("hidden_size", 64), ("intermediate_size", 44), ("vocab_size", 102), ("num_heads", 2),
     ("rope_theta", 5.0), ("norm_eps", 1e-6)],
)  # fmt: skip
def test_another_shape_is_refused_by_field(folder, field, value):
    shape = tiny_shape(**{field: value, "init_from": str(folder)})
    with pytest.raises(ConfigError, match=rf"model.{field}: .* has {getattr(tiny_shape(), field)}, the conf.* {value}"):
        refuse_mismatch(shape)
    refuse_mismatch(tiny_shape(init_from=str(folder), init_std=0.5))  # says nothing about weights that are there


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("model.norm.weight"), "1 tensors are not as in our model: model.norm.weight .missing"),
        (lambda w: w.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(32)}), "q_proj.bias .additional"),
        (lambda w: w.update({"lm_head.weight": torch.ones(101, 32)}), "lm_head.weight .additional"),
        (lambda w: w.update({"model.norm.weight": torch.ones(31)}), r"wanted \(32,\) numbers, got \(31,\)"),
        (lambda w: w.update({"model.norm.weight": torch.ones(32, dtype=torch.int8)}), "got .* torch.int8"),
        (lambda w: w.update({"model.embed_tokens.weight": torch.ones(128, 32)}), r"wanted \(101, 32\) numbers"),
    ],
)
def test_other_weights_are_refused(folder, change, message):
    change_weights(folder, change)
    with pytest.raises(ConfigError, match=message):
        load_weights(tiny_model(), folder)


def test_what_other_writers_store_besides_is_let_pass(folder):
    def change(weights):
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
        weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
        weights["model.norm.weight"] = weights["model.norm.weight"].bfloat16()

    change_weights(folder, change)
    model = tiny_model()
    load_weights(model, folder)
    assert torch.equal(model.norm.weight, tiny_model(4).norm.weight)


def test_a_damaged_file_is_said_to_be(folder):
    (folder / "model.safetensors").write_bytes(b"\x10" * 50)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_weights(tiny_model(), folder)


# ------------------------------------------------------------------------------------ training from a folder


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A folder of weights to start tiny runs from."""
    folder, model = tmp_path_factory.mktemp("start"), shape_of_runs().build(seed=9)
    write_weights(model, folder / "model.safetensors")
    config = llama_config(model.shape, 16, 50256)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def shape_of_runs():
    return tiny_shape(num_layers=2, hidden_size=16, num_heads=1, intermediate_size=32, vocab_size=50257, init_std=0.02)


def test_a_run_starts_from_the_folder_and_keeps_its_weights_hash(start, tmp_path):
    short = ["total_steps=2", "eval_every=1", "optim.lr=1e-30"]
    plain = runs.train(tmp_path, *short)
    one = runs.train(tmp_path, *short, f"model.init_from={start}")
    assert one.name.rpartition("-")[2] != plain.name.rpartition("-")[2]
    losses = [runs.read(run, "summary.json")["final"]["val_loss"] for run in (plain, one)]
    assert losses[0] != losses[1]

    state = torch.load(one / "checkpoints" / "last.pt", weights_only=True)["train"]["model"]
    expected = shape_of_runs().build(seed=9).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in state.items())  # at no learning rate to speak of
    assert f"init_from: {start}{PIN}" in (one / "config.yaml").read_text()


def test_identity_is_the_weights_content_not_their_place(start, tmp_path):
    def config(init_from) -> dict:
        return {"model": {"init_from": init_from}, "scorer": {"_target_": "x"}, "drop_schedule": {"_target_": "y"}}

    def hashed(init_from) -> str:
        return run_hash(config(init_from))

    def pin(folder) -> str:
        return pinned(config(str(folder)))["model"]["init_from"]

    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "model.safetensors").write_bytes((start / "model.safetensors").read_bytes())
    assert hashed(str(copy)) == hashed(str(start)) == hashed(pin(start)) != hashed(None)
    before = pin(copy)
    change_weights(copy, lambda w: w.update({"model.norm.weight": torch.zeros(16)}))
    assert hashed(str(copy)) != hashed(str(start))
    assert hashed(before) == hashed(str(start))  # what the run was started from

    (copy / "config.json").write_text((start / "config.json").read_text())
    with pytest.raises(ConfigError, match="had weights with sha256 [0-9a-f]{64} and now has"):
        refuse_mismatch(tiny_shape(init_from=before))


def test_wrong_starts_are_refused_before_anything_is_written(start, tmp_path):
    with pytest.raises(ConfigError, match="model.hidden_size: .* has 16, the configuration 32"):
        runs.train(tmp_path, f"model.init_from={start}", "model.hidden_size=32")
    with pytest.raises(ConfigError, match="model.init_from: wanted a folder with config.json and model.safetensors"):
        runs.train(tmp_path, f"model.init_from={tmp_path}")
    assert not (tmp_path / "outputs").exists()
