"""A training job: from a checked configuration to a finished run in its folder."""

import contextlib
import functools
import re
import time
import zlib
from pathlib import Path
from typing import Any

import torch

from tid import checkpoint, config_file, distributed
from tid.assembly import put_together
from tid.capture import loading_compiler
from tid.config import ConfigError, RunConfig, doubts, dropping_names, is_baseline, run_folder, run_hash, run_slug
from tid.data import Corpus, load_corpus
from tid.data.batches import count_sequences, refuse_large_update
from tid.data.tokenizer import EOT, VOCABULARY
from tid.device import choose_device, choose_fast, choose_precision, refuse_slow, set_up, where
from tid.diagnostics import probe
from tid.disk import refuse_unwritable
from tid.drop_modes import DropMode
from tid.dropout import check_combination
from tid.handle import Handle, RunInfo
from tid.llama import load_weights, pinned, refuse_mismatch
from tid.lock import RunLock
from tid.logs import NoLog, RunLog, read_status, say, write_json, write_status
from tid.loop import NonFiniteLoss, Preempted, Run, fit, resume
from tid.pin import split_pin
from tid.processes import Alone, together
from tid.records import ANEW, is_done, record_failure, record_from_thread, say_done, write_documents
from tid.revision import continued, in_words, is_mixed
from tid.same_text import refuse_other_text, text_of
from tid.schedules import NoDrop
from tid.scorers import NoScorer
from tid.selectors import Lowest
from tid.step import TrainStep
from tid.summary import device_name, flat, summarise
from tid.validation import Validation

# A baseline's folder is the same whatever is asked beside scorer=none, so what trains there is too.
NO_DROPPING = {"scorer": NoScorer(), "selector": Lowest(), "drop_mode": DropMode(), "drop_schedule": NoDrop()}


def train(config: dict, settings: RunConfig, parts: dict, overrides: list[str]) -> Path:
    """Train in the configuration's own folder, or resume there, or say that it is done. Returns the folder.

    config: `coerced`, as plain Python; settings: the same, checked; parts: every component by its group; overrides:
    the command line's settings, for the commands suggested and recorded. Raises ConfigError for what the user can
    correct and SystemExit(128 + signal) after a stop by a signal.

    Under torchrun each process comes here. All read the run's folder; the leader alone writes and speaks.
    """
    started = time.perf_counter()
    config = pinned(config)
    folder = run_folder(config)
    load = functools.partial(load_corpus, parts["data"], settings.data_dir, settings.tokenizer_dir)
    with together() as peers:
        peers.agree(config_file.refuse_edited, folder, config)
        if peers.agree(is_done, folder, config):
            if peers.leads:
                say_done(folder, load(), config)
            return folder
        if peers.leads:
            refuse_unwritable(folder, "output_dir")
        device = make_ready(config, settings, parts, overrides, peers)
        if is_baseline(config):
            parts = parts | NO_DROPPING
        corpus = peers.first(load)
        sequences = count_sequences(len(corpus.train.tokens), settings.context, settings.stride)
        refuse_large_update(settings.batch_size * settings.accumulate_steps, sequences)
        with RunLock(folder) if peers.leads else contextlib.nullcontext():
            if not peers.agree(is_done, folder, config):
                train_in(folder, config, settings, parts, corpus, device, peers, overrides, started)
            elif peers.leads:  # by another process, a moment ago
                say_done(folder, corpus, config)
    return folder


def make_ready(config: dict, settings: RunConfig, parts: dict, overrides: list[str], peers: Alone) -> torch.device:
    """Refuse what cannot work or would take for ever, and return the device, set up and connected to the others'."""
    refuse_nonsense(settings, parts)
    device = choose_device(settings.device)
    choose_fast(settings, device)
    if peers.leads:
        for doubt in doubts(config):
            say(f"warning: {doubt}")
        refuse_slow(settings, parts["model"], device, overrides)
    set_up(device)
    peers.connect(device)
    return device


def train_in(
    folder: Path, config: dict, settings: RunConfig, parts: dict, corpus: Corpus, device: torch.device, peers: Alone,
    overrides: list[str], started: float,
) -> None:  # fmt: skip
    """Train, from the newest checkpoint in `folder` if there is one, and record there how it ends."""
    state, complaints = checkpoint.load_newest(folder / "checkpoints")
    if state:
        refuse_other_text(state["run"]["data"], corpus, folder, ANEW)
    resume_step = state["run"]["done"] if state else None
    with RunLog(folder, resume_step) if peers.leads else NoLog() as log:
        for complaint in complaints:
            log.say(f"warning: {complaint}; resuming from the newest intact checkpoint")
        try:
            if peers.leads:
                config_file.write(folder, config)
            run = assemble(config, settings, parts, corpus, device, folder, log, peers)
            if peers.leads:
                peers.on_failure = functools.partial(record_from_thread, folder, log, run.writer)
            carry_out(run, state, parts["tracker"], overrides, started)
            run.step.replays.graphs.release()
        except BaseException as error:
            cause = peers.cause(error)
            if peers.leads:
                record_failure(folder, cause or error)
            if isinstance(error, Preempted | NonFiniteLoss):
                run.step.replays.graphs.release()
            if isinstance(error, Preempted):
                log.say(str(error))
                raise SystemExit(128 + error.signal) from None
            if cause:
                raise cause from None
            raise


def refuse_nonsense(settings: RunConfig, parts: dict) -> None:
    """Raise ConfigError for components that make no sense together, or that cannot work here."""
    components = [parts[name] for name in ("scorer", "selector", "drop_mode", "drop_schedule", "model")]
    try:
        check_combination(*components, protect_first=settings.protect_first)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if (size := parts["model"].vocab_size) < VOCABULARY:
        raise ConfigError(f"model.vocab_size: wanted at least the tokenizer's {VOCABULARY:,}, got {size:,}")
    parts["optim"].check()
    parts["tracker"].check()
    if parts["model"].init_from:
        refuse_mismatch(parts["model"])


def assemble(
    config: dict, settings: RunConfig, parts: dict, corpus: Corpus, device: torch.device, folder: Path,
    log: RunLog | NoLog, peers: Alone,
) -> Run:  # fmt: skip
    """The run at step 0, its model initialised and its data on the device."""
    how = {
        "precision": choose_precision(settings.precision, device),
        "fast": choose_fast(settings, device),
    }
    return Run(
        training_step(settings, parts, corpus, device, **how),
        validation(settings, corpus, device, **how),
        log=log,
        peers=peers,
        folder=folder,
        config=config,
        data=text_of(corpus),
        decode=lambda token: corpus.tokenizer.decode([token], skip_special_tokens=False),
        total_steps=settings.total_steps,
        log_every=settings.log_every,
        eval_every=settings.eval_every,
        checkpoint_every=settings.checkpoint_every,
        writer=checkpoint.Writer(background=device.type == "cuda"),
        should_stop=functools.partial(parts["pruner"].verdict, config, folder),
        probe=probe(
            settings.diagnostics, corpus, context=settings.context, batch_size=settings.batch_size,
            precision=how["precision"], drops=not is_baseline(config),
        ) if peers.leads else None,
    )  # fmt: skip


def training_step(
    settings: RunConfig, parts: dict, corpus: Corpus, device: torch.device, precision: str, fast: bool
) -> TrainStep:
    """Model, dropout, batches and optimizer, put together."""
    with loading_compiler(fast):
        model = parts["model"].build(settings.seed).to(device)
    if parts["model"].init_from:
        load_weights(model, split_pin(parts["model"].init_from)[0])
    return put_together(
        model,
        corpus.train.tokens,
        **{name: parts[name] for name in ("scorer", "selector", "drop_schedule", "drop_mode", "optim")},
        protect_first=settings.protect_first,
        protected_token=EOT,
        kernels=settings.kernels,
        context=settings.context,
        stride=settings.stride,
        seed=settings.seed,
        batch_size=settings.batch_size,
        accumulate_steps=settings.accumulate_steps,
        total_steps=settings.total_steps,
        window=settings.log_every,
        precision=precision,
        fast=fast,
    )


def validation(settings: RunConfig, corpus: Corpus, device: torch.device, precision: str, fast: bool) -> Validation:
    """The full pass over the held-out text."""
    return Validation(
        corpus.val.tokens,
        corpus.val.doc_starts,
        corpus.token_chars,
        corpus.token_bytes,
        context=settings.context,
        stride=settings.context,
        batch_size=settings.eval_batch_size,
        precision=precision,
        device=device,
        fast=fast,
    )


def carry_out(run: Run, state: dict | None, tracker: Any, overrides: list[str], started: float) -> None:
    """Start or resume the run, train to the end, write the summary."""
    if state:
        resume(run, state)
    distributed.assert_same(identity(run), run.step.device)
    if not run.peers.leads:
        run.tracker = Handle(tracked(run))
        fit(run)
        return
    code = continued(read_status(run.folder) if state else None, run.config)
    if is_mixed(code):
        run.log.say(f"warning: this run was begun by other code, and is of both: {in_words(code)}")
    known = code | where(run.step.device) | config_file.remembered(run.folder, run.config)
    write_status(run.folder, "running", step=run.done, total_steps=run.total_steps, **known)
    introduce(run)
    run.step.replays.graphs.say = run.log.say
    with tracker.start(tracked(run)) as run.tracker:
        facts = {"code": code, "start_seconds": time.perf_counter() - started, "overrides": overrides}
        fit(run)
        summary = summarise(run, run_hash=run_hash(run.config), **facts)
        run.tracker.summary(flat(summary) | {"state": "pruned" if run.stopped else "done"})
    if run.stopped:
        write_status(run.folder, "pruned", reason=run.stopped, step=run.done, total_steps=run.total_steps)
        run.log.say(f"pruned at step {run.done}: {run.stopped}")
        return
    write_documents(run)
    write_json(run.folder / "summary.json", summary)
    write_status(run.folder, "done", step=run.done, total_steps=run.total_steps)
    shown = ", ".join(
        f"{when} {figures['val_loss']:.4f} nats and {figures['val_bpc']:.4f} bpc at step {figures['step']}"
        for when, figures in (("final", run.final), ("best", run.best))
    )
    run.log.say(f"done. Validation: {shown}. Everything is in {run.folder}")


def tracked(run: Run) -> RunInfo:
    """How the trackers know this run; the id follows from what determines its result, so a resumed run keeps it."""
    name, title = run.config["name"], run.config["label"] or run_slug(run.config)
    names = dropping_names(run.config)
    configuration = re.sub(r"[ -]seed=?\d+$", "", title)  # what its seeds have in common
    return RunInfo(
        name=title,
        group=name,
        notes=run.config["question"],
        job_type="baseline" if is_baseline(run.config) else "dropout",
        tags=tuple(dict.fromkeys(names.values())),
        run_id=f"{name}-{run_hash(run.config)}".replace("/", "-"),
        config=run.config | {"dropping": names | {"configuration": configuration}},
        folder=run.folder,
        resumed=run.done > 0,
        say=run.log.say,
    )


def introduce(run: Run) -> None:
    """Two lines: what is trained, on what, how."""
    step, dropout = run.step, run.step.dropout
    epochs = run.total_steps * run.samples_per_step / step.batches.num_sequences
    run.log.say(
        f"{step.model.parameter_count / 1e6:.1f}M parameters, {step.precision} on {device_name(step.device)}; "
        f"{run.total_steps:,} steps of {run.samples_per_step} x {step.batches.context} tokens, {epochs:.1f} epochs"
    )
    parts = (dropout.scorer, dropout.selector, step.mode, dropout.schedule)
    dropping = "nothing" if is_baseline(run.config) else ", ".join(map(str, parts))
    for remark in step.cache.remarks(run.samples_per_step, step.host_bands) if step.cache else ():
        run.log.say(remark)
    if run.validation.num_documents < 2:
        run.log.say("warning: one held-out document: the best checkpoint is chosen on the text that it is reported on")
    if step.updating.by_hand:
        run.log.say(f"kernels by hand: {', '.join(step.updating.by_hand)}")
    if step.fast and not step.updating.capturable:
        run.log.say("this optimizer steps outside the captured graph, one parameter after the other: that is slow")
    run.log.say(f"drops {dropping}; {f'resumes at step {run.done}' if run.done else 'starts'} in {run.folder}")


def identity(run: Run) -> dict[str, int]:
    """What all processes of a run must have in common."""
    words = {"configuration": run_hash(run.config), "text": run.data["train.jsonl"], "precision": run.step.precision}
    numbers = {name: zlib.crc32(word.encode()) for name, word in words.items()}
    return numbers | {"step": run.done, "weights": distributed.checksum(run.step.model.state_dict().values())}
