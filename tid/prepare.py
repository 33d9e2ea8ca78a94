"""Make what a run reads, without running: ``python -m tid.prepare data=builtin``.

Takes the same settings as ``python -m tid.train``; of these data, data_dir and tokenizer_dir matter. What is
there already is checked and left alone.
"""

from pathlib import Path

from omegaconf import DictConfig

from tid import cli
from tid.config import check, coerced, instantiate, plain


@cli.entry("train", check=check)
def main(cfg: DictConfig) -> None:
    from tid.data import load_corpus

    config = coerced(plain(cfg))
    corpus = load_corpus(instantiate(config["data"], "data"), config["data_dir"], config["tokenizer_dir"])
    folder = Path(corpus.manifest["folder"])
    print(f"text in {folder} (manifest.json tells where it is from)")
    for split, stream in (("train", corpus.train), ("val", corpus.val)):
        facts = corpus.manifest["files"][f"{split}.jsonl"]
        print(
            f"  {split}.jsonl: {facts['documents']:,} documents, {facts['characters']:,} characters, "
            f"{len(stream.tokens):,} tokens"
        )
    print(f"tokens in {Path(config['data_dir']) / 'tokens-*'}")
    print(f"tokenizer in {Path(config['tokenizer_dir']) / 'tokenizer.json'}")


if __name__ == "__main__":
    main()
