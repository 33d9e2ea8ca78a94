"""Bits per byte are lm-evaluation-harness' on the exported model, over the same documents and windows.

Not among the development requirements: pip install "lm_eval[hf]". Measured with lm_eval 0.4.13 on 250 builtin
documents: 1.87805362 bits per byte there, 1.87805362 here; no document differs by more than 3e-7.
"""

import csv
import json
import math
from pathlib import Path

import pytest
import runs

from tid.evaluation import evaluate
from tid.export import ExportConfig, export


@pytest.mark.slow
@pytest.mark.parametrize("context", [16, 100])  # documents of about 45 tokens: longer and shorter than the window
def test_bits_per_byte_agree_with_lm_evaluation_harness(tmp_path, context):
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    from lm_eval.api.instance import Instance

    run = runs.train(tmp_path, f"context={context}", "model.init_std=0.2")
    tokenizer_dir = str(tmp_path / "tokenizer")
    folder = export(ExportConfig(checkpoint=str(run), to=str(tmp_path / "hf"), overwrite=False,
                                 tokenizer_dir=tokenizer_dir))  # fmt: skip
    found = evaluate(
        checkpoint=str(folder), data=None, protocol="document", stride=None, batch_size=None, training_gap=False,
        device="cpu", precision=None, output=None, data_dir=str(tmp_path / "data"), tokenizer_dir=tokenizer_dir,
    )  # fmt: skip

    documents = [json.loads(line) for line in (tmp_path / "val.jsonl").read_text().splitlines()]
    harness = huggingface.HFLM(pretrained=str(folder), device="cpu", dtype="float32", max_length=context, batch_size=4)
    requests = [
        Instance(request_type="loglikelihood_rolling", doc={}, arguments=(text,), idx=i)
        for i, text in enumerate(documents)
    ]
    bits = [-nats / math.log(2) for nats in harness.loglikelihood_rolling(requests, disable_tqdm=True)]
    sizes = [len(text.encode()) for text in documents]
    assert found["bytes"] == sum(sizes)
    assert found["bpb"] == pytest.approx(sum(bits) / sum(sizes), abs=1e-4)
    ours = csv.DictReader((Path(found["folder"]) / "documents.csv").open())
    for row, theirs, size in zip(ours, bits, sizes, strict=True):
        assert float(row["bpb"]) == pytest.approx(theirs / size, abs=1e-4)
