"""Train one model: ``python -m tid.train scorer=entropy drop_schedule=linear_decay``.

Everything is checked before anything is written. Running the same command again resumes an interrupted run and
leaves a finished one alone. The run's folder is all that goes to stdout.
"""

from pathlib import Path

from omegaconf import DictConfig

from tid import cli, torchrun
from tid.config import ConfigError, build, check, coerced, plain, run_folder


def refuse(config: dict) -> None:
    """Raise ConfigError for settings that cannot be right, here and now."""
    torchrun.refuse_uneven(check(config).batch_size)


@cli.entry("train", check=refuse)
def main(cfg: DictConfig) -> None:
    from tid.job import train  # torch waits until the settings are known to be good

    config = coerced(plain(cfg))
    if config["cell"]:  # a sweep has frozen this run's configuration
        from tid.sweep.cell import train_frozen

        print(train_frozen(config["cell"]))
        return
    if config["dry_run"]:
        folder = would_train(config, cli.settings())
    else:
        folder = train(config, check(config), build(config), cli.settings())
    if torchrun.rank() == 0:
        print(folder)


def would_train(config: dict, overrides: list[str]) -> Path:
    """The folder of the run that would be trained or, if it is done, left alone; nothing is written. That it would take
    too long here is only said. Raises ConfigError and DataError for all else that training would refuse before it reads
    the text.
    """
    from tid.config_file import refuse_edited
    from tid.device import choose_device, choose_fast, refuse_slow
    from tid.disk import refuse_unwritable
    from tid.job import refuse_nonsense
    from tid.llama import pinned
    from tid.logs import say
    from tid.records import is_done

    config, settings, parts = pinned(config), check(config), build(config)
    folder = run_folder(config)
    refuse_edited(folder, config)
    parts["data"].inputs()  # asks for the files and packages that it is read from
    if is_done(folder, config):
        return folder
    refuse_unwritable(folder, "output_dir")
    refuse_nonsense(settings, parts)
    device = choose_device(settings.device)
    choose_fast(settings, device)
    try:
        refuse_slow(settings, parts["model"], device, overrides)
    except ConfigError as slow:
        if torchrun.rank() == 0:
            say(f"it would be refused: {slow}")
    return folder


if __name__ == "__main__":
    main()
