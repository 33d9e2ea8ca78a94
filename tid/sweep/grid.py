"""From a sweep's settings to the configurations of its cells: every combination of the values, composed by Hydra."""

import copy
import hashlib
import itertools
import json
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from pathlib import Path

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, RangeSweep
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tid import overrides
from tid.config import ConfigError, plain
from tid.messages import keys_of
from tid.options import option_name

FORMAT = 2  # of what compose_all keeps: files of another are not read


@dataclass(frozen=True)
class Interval:
    """Numbers to search among: whole ones if both ends are; `log`: evenly in their logarithm."""

    low: float
    high: float
    log: bool

    def __str__(self) -> str:
        inner = f"interval({self.low},{self.high})"
        return f"tag(log,{inner})" if self.log else inner


def settings_of(params: dict | None, arguments: list[str]) -> list[str]:
    """The settings of a sweep: those of its YAML (hydra.sweeper.params), then the command line's, which win."""
    return [*(f"{key}={value}" for key, value in (params or {}).items()), *arguments]


def combinations(settings: list[str]) -> list[list[str]]:
    """Every cell's settings, the last one varying fastest. Raises ConfigError for what cannot be enumerated."""
    last: dict[str, Override] = {}
    for override in parsed(settings):
        last.pop(override.get_key_element(), None)
        last[override.get_key_element()] = override
    choices: dict[str, list[str]] = {}
    for key, override in last.items():
        if not override.is_sweep_override():
            values = [override.get_value_element_as_str()]
        elif override.is_discrete_sweep():
            values = values_of(override)
        else:
            raise ConfigError(
                f"{override.input_line}: an interval has no list of values to combine; give values "
                f"({override.key_or_group}=0.1,0.3), or search it: hydra/sweeper=optuna"
            )
        choices[key] = [key if key.startswith("~") else f"{key}={value}" for value in values]
    return [list(cell) for cell in itertools.product(*choices.values())]


def search_space(settings: list[str]) -> tuple[list[str], dict[str, Interval | list[str]], list[str]]:
    """A search's settings: those that stay, the values of each key that is searched, and a trial's seeds."""
    found = {override.get_key_element(): override for override in parsed(settings)}
    fixed, space, seeds = [], {}, ["seed=0"]
    for key, override in found.items():
        values = values_of(override) if override.is_discrete_sweep() else []
        if key == "seed" and override.is_interval_sweep():
            raise ConfigError(
                f"{override.input_line}: a trial runs with every seed, none is searched for; give values: seed=0,1"
            )
        if key == "seed":
            seeds = [f"seed={value}" for value in values or [override.get_value_element_as_str()]]
        elif override.is_interval_sweep():
            interval = override.value()
            space[key] = Interval(interval.start, interval.end, log="log" in interval.tags)
        elif override.is_sweep_override():
            space[key] = values
        else:
            fixed.append(override.input_line)
    return fixed, space, seeds


def values_of(override: Override) -> list[str]:
    """The values of a setting that has several. Hydra adds up a range's steps in binary, to 0.30000000000000004:
    counted in decimal they are the numbers that were meant."""
    values, swept = list(override.sweep_string_iterator()), override.value()
    if not isinstance(swept, RangeSweep) or isinstance(swept.start, int) and isinstance(swept.step, int):
        return values
    start, step = Decimal(str(swept.start)), Decimal(str(swept.step))
    return [str(float(start + step * round((Decimal(value) - start) / step))) for value in values]


def parsed(settings: list[str]) -> list[Override]:
    """The settings as Hydra reads them. Raises ConfigError for one that names no known option."""
    loader = GlobalHydra.instance().config_loader()
    parser = OverridesParser.create(config_loader=loader)
    found = [overrides.parse_one(setting, parser) for setting in settings]
    for override in found:
        overrides.refuse_unknown_option(override, loader)
    return found


class Composer:
    """Composes cells as Hydra does, but each choice of options once: what differs beyond them is a few leaves."""

    def __init__(self, config_name: str) -> None:
        self.config_name = config_name
        self.loader = GlobalHydra.instance().config_loader()
        self.parser = OverridesParser.create(config_loader=self.loader)
        self.bases: dict[tuple[str, ...], DictConfig] = {}
        self.read: dict[str, Override] = {}
        self.groups: dict[str, bool] = {}  # asking Hydra takes 20 ms

    def __call__(self, settings: list[str]) -> dict:
        """The resolved configuration. Raises ConfigError, by setting, when it does not compose."""
        try:
            options, leaves = self.apart(settings)
            config = copy.deepcopy(self.base(options))
            for override in leaves:
                OmegaConf.update(config, override.key_or_group, override.value(), merge=True)
            return plain(config)
        except (HydraException, OmegaConfBaseException, ValueError):
            return plain(overrides.composed(not_hydras(settings), self.parser, self.loader, self.config_name))

    def apart(self, settings: list[str]) -> tuple[tuple[str, ...], list[Override]]:
        """The settings that choose options, and those that only give a key of theirs a new value."""
        settings = not_hydras(settings)
        leaves = [override for override in map(self.parse, settings) if self.is_leaf(override)]
        written = {override.input_line for override in leaves}
        return tuple(text for text in settings if text not in written), leaves

    def base(self, options: tuple[str, ...]) -> DictConfig:
        """The configuration with these options, their keys as their YAML has them."""
        if options not in self.bases:
            self.bases[options] = compose(self.config_name, list(options))
        return self.bases[options]

    def parse(self, setting: str) -> Override:
        if setting not in self.read:
            self.read[setting] = overrides.parse_one(setting, self.parser)
        return self.read[setting]

    def is_leaf(self, override: Override) -> bool:
        """Does it only give a new value to a key that is there? Hydra applies such settings last, in order."""
        plain_change = not (override.is_add() or override.is_force_add() or override.is_delete() or override.package)
        return plain_change and not self.is_group(override.key_or_group)

    def is_group(self, key: str) -> bool:
        if key not in self.groups:
            self.groups[key] = bool(self.loader.get_group_options(key))
        return self.groups[key]


def not_hydras(settings: list[str]) -> list[str]:
    """The settings but for those of Hydra itself, its sweeper and its launcher."""
    return [text for text in settings if not text.lstrip("+~").startswith(("hydra.", "hydra/"))]


@dataclass
class Applying:
    """Which settings apply to which cells: in a sweep over several options of a group, a key that only some of them
    have, as scorer.source, is given to those. A key that none has stays, for the composer to refuse.

    cells: every choice of options that there will be. having: key → option of its group → has it that key?
    """

    cells: list[list[str]]
    composer: Composer
    having: dict[str, dict[str, bool]] = field(default_factory=dict)
    bases: dict[tuple[str, ...], dict] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for cell in self.cells:
            options, leaves = self.composer.apart(cell)
            for key in (override.key_or_group for override in leaves):
                group, _, rest = key.partition(".")
                if rest and self.composer.is_group(group) and (base := self.base(options)):
                    self.having.setdefault(key, {})[chosen(group, options, base)] = key in keys_of(base)
        self.having = {key: having for key, having in self.having.items() if len(set(having.values())) == 2}

    def base(self, options: tuple[str, ...]) -> dict:
        """The options as their YAML has them; {} when they do not compose, which the composer will say."""
        if options not in self.bases:
            try:
                self.bases[options] = OmegaConf.to_container(self.composer.base(options))
            except (HydraException, OmegaConfBaseException, ValueError):
                self.bases[options] = {}
        return self.bases[options]

    def __call__(self, cell: list[str]) -> list[str]:
        """The cell's settings that apply."""
        options, leaves = self.composer.apart(cell)
        partly = [override for override in leaves if override.key_or_group in self.having]
        keys = keys_of(self.base(options)) if partly else []
        idle = {override.input_line for override in partly if override.key_or_group not in keys}
        return [text for text in cell if text not in idle]

    def remarks(self) -> list[str]:
        """One line for each key that only some options have."""
        return [
            f"{key} applies to {', '.join(option for option in having if having[option])}, "
            f"not to {', '.join(option for option in having if not having[option])}"
            for key, having in self.having.items()
        ]


def chosen(group: str, options: tuple[str, ...], base: dict) -> str:
    """What the group's option is called: as the settings have it, else by its class."""
    named = [text.partition("=")[2] for text in options if text.startswith(f"{group}=")]
    return named[-1] if named else option_name(group, base[group]["_target_"])


@dataclass
class Composed:
    """Cells: their settings, as far as they apply, their configurations, and what is to be said about the former."""

    settings: list[list[str]]
    configs: list[dict]
    remarks: list[str]

    def as_json(self) -> str:
        return json.dumps(asdict(self))


def compose_all(config_name: str, cells: list[list[str]], cache: Path) -> tuple[Composed, Path | None]:
    """The cells, and the file in the folder `cache` to keep them in as JSON (None: not to be kept).

    Those of the same settings and the same YAML files are read back from there: composing 200 cells takes
    seconds, and a sweep is often started again only to see that all is done.
    """
    conf = only_folder()
    texts = [path.read_text(encoding="utf-8") for path in yaml_files(conf)] if conf else []
    key = hashlib.sha256(json.dumps([FORMAT, config_name, cells, texts]).encode()).hexdigest()[:16]
    file = cache / f"{key}.json"
    lasting = conf and not any("oc.env" in text for text in (*texts, *itertools.chain(*cells)))
    if lasting and file.exists():
        return Composed(**json.loads(file.read_text(encoding="utf-8"))), None
    composer = Composer(config_name)
    applying = Applying(cells, composer)
    settings = [applying(cell) for cell in cells]
    composed = Composed(settings, [composer(cell) for cell in settings], applying.remarks())
    return composed, file if lasting else None


def only_folder() -> Path | None:
    """Where Hydra finds the YAML files that are not an installed package's; None if in several (--config-dir)."""
    sources = [source.path for source in GlobalHydra.instance().config_loader().get_search_path().get_path()]
    folders = [path.removeprefix("file://") for path in sources if not path.startswith(("pkg://", "structured://"))]
    return Path(folders[0]) if len(folders) == 1 else None


def yaml_files(conf: Path) -> list[Path]:
    """Every YAML file of the configuration, sorted; conf/sweeps is a link, which rglob does not follow."""
    return sorted([*conf.rglob("*.yaml"), *(conf / "sweeps").glob("*.yaml")])
