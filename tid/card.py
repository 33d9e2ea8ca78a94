"""The model card of an exported folder: README.md with data, configuration, metrics and the commands."""

from pathlib import Path

from omegaconf import OmegaConf

from tid.config import DROPPING, is_baseline
from tid.load import Loaded

USE = """\
## Use

```python
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")
ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer("The people").input_ids]])
print(tokenizer.decode(model.generate(ids, max_new_tokens=50)[0]))
```

Every document of the training text begins with the end-of-text token ({end}), and so should a prompt that is to begin
one. The tokenizer adds none, and takes a literal `<|endoftext|>` in a text for what it says. The model was trained on
{context:,} tokens at a time; beyond that its predictions are worthless.
"""
METRICS = {
    "val_loss": "loss, nats per token",
    "val_perplexity": "perplexity",
    "val_bpc": "bits per character",
    "val_bpb": "bits per UTF-8 byte",
}


def card(name: str, loaded: Loaded, command: str) -> str:
    """The text of README.md. name: of the folder; command: the one that makes it."""
    model, record = loaded.model, loaded.record
    shape = model.shape
    parts = [
        front_matter(record),
        f"# {name}\n",
        f"A language model of {model.parameter_count / 1e6:.1f} million parameters in Llama's architecture: "
        f"{shape.num_layers} layers of width {shape.hidden_size} with {shape.num_heads} heads, SwiGLU of width "
        f"{shape.intermediate_size}, tied embeddings, GPT-2's vocabulary of {shape.vocab_size:,} tokens. "
        "Trained with TID (Token Importance Dropout).\n",
        USE.format(name=name, context=loaded.context, end="50256, `<|endoftext|>`"),
        *(trained(record) if record else ["Nothing is recorded of how it was trained.\n"]),
        f"## Made by\n\n```\n{command}\n```\n",
    ]
    return "\n".join(parts)


def front_matter(record: dict | None) -> str:
    """The card's YAML head, which model hubs read."""
    head = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["tid", "llama"]}
    repo = ((record or {}).get("config") or {}).get("data", {}).get("repo")
    if repo:
        head["datasets"] = [repo]
    return f"---\n{OmegaConf.to_yaml(OmegaConf.create(head))}---\n"


def trained(record: dict) -> list[str]:
    """The sections about a run."""
    cfg, summary = record["config"], record["summary"] or {}
    choices = (cfg[group]["_target_"].rpartition(".")[2] for group in DROPPING[:4])
    dropping = "nothing was dropped" if is_baseline(cfg) else f"tokens were dropped: {', '.join(choices)}"
    lines = [f"{record['step']:,} of {cfg['total_steps']:,} steps on `{cfg['data']['_target_']}`; {dropping}."]
    if summary:
        lines.append(
            f"The whole run read {summary['tokens']:,} tokens in {summary['epochs']:.1f} epochs, dropped "
            f"{summary['drop_rate']:.1%} of the droppable ones, and took {summary['seconds'] / 3600:.2g} hours on "
            f"{summary['device']} in {summary['precision']}."
        )
        lines += ["", *data_lines(summary["data"])]
    found = record["validation"]
    table = "\n".join(f"| {label} | {found[key]:.4f} |" for key, label in METRICS.items() if key in found)
    settings = OmegaConf.to_yaml(OmegaConf.create(cfg))
    return [
        "## Training\n",
        "\n".join(lines) + "\n",
        f"## Validation, step {found.get('step', '?')}\n\nOn the held-out documents of that text, nothing dropped.\n\n"
        f"| | |\n|---|---|\n{table}\n",
        f"## Training command\n\n```\n{training_command(summary)}\n```\n",
        f"<details><summary>The whole configuration</summary>\n\n```yaml\n{settings}```\n\n</details>\n",
    ]


def data_lines(data: dict) -> list[str]:
    """The text's name and checksums."""
    return [f"- {name}: `{value}`" for name, value in data.items()]


def training_command(summary: dict) -> str:
    """The command that makes the run, and the commit, as far as known."""
    command = summary.get("command")
    if not command:
        return "the run was not done when this was exported; its configuration is below"
    if not command.startswith("python "):  # an older run's: sys.argv
        script, _, arguments = command.partition(" ")
        command = f"python -m tid.{Path(script).stem} {arguments}".strip()
    versions = ", ".join(f"{name} {version}" for name, version in (summary.get("versions") or {}).items())
    return f"{command}\n# commit {summary.get('git_sha') or 'unknown'}; {versions}"
