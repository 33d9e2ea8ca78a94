"""Train one model: ``python -m tid.train scorer=entropy drop_schedule=linear_decay``.

Everything is checked before anything is written. Running the same command again resumes an interrupted run and
leaves a finished one alone. The run's folder is all that goes to stdout.
"""

from omegaconf import DictConfig

from tid import cli, torchrun
from tid.config import build, check, coerced, plain, run_folder


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
        folder = run_folder(config)
    else:
        folder = train(config, check(config), build(config), cli.settings())
    if torchrun.rank() == 0:
        print(folder)


if __name__ == "__main__":
    main()
