"""Examine a command line's settings before Hydra runs: do their groups, options and keys exist?

Hydra itself composes a sweep's jobs only after it has written the sweep's folder, and for an unknown key it
suggests `+key=value`, which would add a setting that nothing reads.
"""

import itertools
import shlex
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf

from tid.config import ConfigError
from tid.messages import did_you_mean, keys_of, shown, unexpanded

OPTIONAL_GROUPS = ("experiment", "sweeps")
FOLDERS = ("checkpoint", "sweep")  # keys of what a command is about


def examine(
    settings: list[str], conf: str, config_name: str, multirun: bool, sweeps: bool = True
) -> tuple[DictConfig, list[str]]:
    """The composed configuration without the node hydra; of a sweep that of the first values: its other cells are
    composed, all of them, when it is planned (tid.sweep.grid). And the settings as Hydra is to get them.

    settings: the overrides, as "seed=3"; conf: the folder of the YAML files; sweeps: may the command be run as a sweep?
    Raises ConfigError for the first setting that cannot be read or whose group, option or key does not exist.
    """
    with initialize_config_dir(conf, version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        parser = OverridesParser.create(config_loader=loader)
        for at, setting in enumerate(settings):
            if "=" not in setting and not setting.startswith("~"):
                raise ConfigError(f"{setting}: {_what_it_wants(settings, at, parser, loader, config_name)}")
        parsed = [parse_one(setting, parser) for setting in settings]
        for override in parsed:
            if override.is_sweep_override() and not sweeps:
                raise ConfigError(f"{override.input_line}: wanted one value; give the command once for each")
            if override.is_sweep_override() and not multirun:
                raise ConfigError(
                    f"{override.input_line}: several values are a sweep; to run each of them add -m: "
                    f"-m {override.input_line}"
                )
            refuse_unknown_option(override, loader)
            _refuse_sweeps(override, multirun)
        if multirun:
            parsed, partial = _for_the_first(parsed, parser, loader, config_name)
            # One value for a key that Hydra's own composition lacks: as a sweep of one it is left to the cells.
            alone = {o.input_line: f"{o.key_or_group}=choice({o.input_line.partition('=')[2]})" for o in partial}
            settings = [alone.get(setting, setting) for setting in settings]
        return composed(_first(parsed), parser, loader, config_name), settings


def parse_one(setting: str, parser: OverridesParser) -> Override:
    """The setting as Hydra reads it. Raises ConfigError for what it cannot read."""
    try:
        override = parser.parse_overrides([setting])[0]
    except OverrideParseException as error:
        why = str(error).partition("\nSee ")[0].replace("\n", " ")
        key, _, value = setting.partition("=")
        if value.startswith("~/"):
            raise ConfigError(f"{key}: {unexpanded(value)}") from None
        raise ConfigError(
            f"{setting}: cannot be read ({' '.join(why.split())}); "
            f"quote a value that has special characters: '{key}=\"{value}\"'"
        ) from None
    if not override.key_or_group:
        raise ConfigError(f"{setting}: settings are written key=value")
    return override


def _what_it_wants(
    settings: list[str], at: int, parser: OverridesParser, loader: ConfigLoader, config_name: str
) -> str:
    """What to do about the word settings[at], which has no key."""
    word, known = settings[at], keys_of(OmegaConf.to_container(compose(config_name), resolve=False))
    keys = [key for key in FOLDERS if key in known and Path(word).exists()]
    keys += [name for name in _own_groups(loader) if word in loader.get_group_options(name)]
    if not keys and word not in known and (whole := _cut_off(settings, at, parser, loader)):
        return f"has no key; if it belongs to the value before it, put quotes around all of that: {whole}"
    example = shlex.quote(f"{keys[0]}={word}") if keys else f"{word}=..."
    return f"settings are written key=value, for instance {example}"


def _cut_off(settings: list[str], at: int, parser: OverridesParser, loader: ConfigLoader) -> str | None:
    """The setting before settings[at], in quotes for a shell, with all words from there that have no key; None when it
    is not text."""
    before = parse_one(settings[at - 1], parser) if at else None
    if before is None or _is_group(before.key_or_group, loader) or not isinstance(before.value(), str):
        return None
    words = itertools.takewhile(lambda word: "=" not in word, settings[at:])
    return shlex.quote(f"{before.key_or_group}={' '.join([before.value(), *words])}")


def _is_group(key: str, loader: ConfigLoader) -> bool:
    return bool(loader.get_group_options(key))


def _values(override: Override) -> list[str]:
    """The values a setting takes, as text: one, or those of a sweep (of a range the first and the last)."""
    if not override.is_sweep_override():
        return [override.get_value_element_as_str()]
    value = override.value()
    if isinstance(value, IntervalSweep):
        return [str(value.start), str(value.end)]
    texts = list(override.sweep_string_iterator())
    return [texts[0], texts[-1]] if isinstance(value, RangeSweep) and texts else texts


def refuse_unknown_option(override: Override, loader: ConfigLoader) -> None:
    """Raise ConfigError, naming the nearest, for an option that its group does not have."""
    group = override.key_or_group
    options = loader.get_group_options(group)
    if override.is_delete() or not options:
        return
    for text in _values(override):
        if text.startswith("["):
            raise ConfigError(f"{group}={text}: {_one_at_a_time(group)}")
        option = text.strip("'\"").removesuffix(".yaml")
        if option in options or (option == "null" and group in OPTIONAL_GROUPS):
            continue
        word = "none" if option in ("null", "false", "off", "no") else option
        other = [
            name
            for name in _own_groups(loader)
            if word in loader.get_group_options(name) and word not in options
        ]
        hint = f"; {word} is an option of {other[0]}" if other else did_you_mean(word, options, f"{group}=")
        raise ConfigError(
            f"{group}={option}: no such option{hint}\n  {group} is one of {', '.join(sorted(options))}"
        )


def _one_at_a_time(group: str) -> str:
    return f"one {group} at a time; write out what you want of another: its settings are those of conf/{group}/"


def _own_groups(loader: ConfigLoader) -> list[str]:
    return [name for name in loader.list_groups("") if name != "hydra"]


def _refuse_sweeps(override: Override, multirun: bool) -> None:
    if override.key_or_group != "sweeps":
        return
    if override.is_sweep_override():
        raise ConfigError(f"{override.input_line}: one sweep at a time; run one after the other")
    if not multirun and override.value() is not None:
        raise ConfigError(f"{override.input_line}: a sweep is many runs; to run them add -m: -m {override.input_line}")


def _first(parsed: list[Override]) -> list[str]:
    """The settings with of every sweep only its first value."""
    choices = [[_assignment(override, value) for value in _values(override)] for override in parsed]
    return [texts[0] for texts in choices if texts]


def _for_the_first(
    parsed: list[Override], parser: OverridesParser, loader: ConfigLoader, config_name: str
) -> tuple[list[Override], list[Override]]:
    """The settings of a sweep but for keys that the first option of their group does not have and others may: one that
    no option has is refused when all cells are composed (tid.sweep.grid). And which settings, of one value, have a key
    that is not there when Hydra composes what is not swept, as it does."""
    groups = [override for override in parsed if _is_group(override.key_or_group, loader)]
    of_options = [o for o in parsed if o not in groups and _is_group(o.key_or_group.partition(".")[0], loader)]
    if not of_options:
        return parsed, []
    try:
        hydras = compose(config_name, [o.input_line for o in groups if not o.is_sweep_override()], True)
        options = [*_swept_by_yaml(hydras, parsed, parser, loader), *groups]
        first = compose(config_name, _first(options))
    except HydraException:
        return parsed, []
    swept = {override.key_or_group for override in options if override.is_sweep_override()}
    partial = [o for o in of_options if o.key_or_group.partition(".")[0] in swept]
    single = [o for o in partial if not (o.is_sweep_override() or o.is_add() or o.is_force_add() or o.is_delete())]
    hidden = [o for o in single if not _exists(hydras, o.key_or_group)]
    return [o for o in parsed if o not in partial or _exists(first, o.key_or_group)], hidden


def _swept_by_yaml(
    cfg: DictConfig, parsed: list[Override], parser: OverridesParser, loader: ConfigLoader
) -> list[Override]:
    """The groups of which a file of sweeps/ takes several options, as far as the command line does not name them."""
    params = OmegaConf.select(cfg, "hydra.sweeper.params") or {}
    named = {override.key_or_group for override in parsed}
    found = [parse_one(f"{key}={value}", parser) for key, value in params.items() if key not in named]
    return [o for o in found if _is_group(o.key_or_group, loader) and o.is_sweep_override()]


def _assignment(override: Override, value: str) -> str:
    return (
        override.input_line if not override.is_sweep_override() else f"{override.get_key_element()}={value}"
    )


def composed(cell: list[str], parser: OverridesParser, loader: ConfigLoader, config_name: str) -> DictConfig:
    """The configuration with these settings. Raises ConfigError, naming the one to blame, when there is none."""
    try:
        return compose(config_name, cell)
    except (HydraException, ValueError):
        _refuse_unknown_key([parse_one(setting, parser) for setting in cell], loader, config_name)
        raise


def _refuse_unknown_key(parsed: list[Override], loader: ConfigLoader, config_name: str) -> None:
    """Say which key of settings that do not compose is to blame. Returns when it is none of them."""
    groups = [o for o in parsed if _is_group(o.key_or_group, loader)]
    for override in groups:
        if override.is_add() and override.package is None:
            line = override.input_line.lstrip("+")
            if any(other.key_or_group == override.key_or_group for other in groups if other is not override):
                raise ConfigError(f"{override.input_line}: {_one_at_a_time(override.key_or_group)}")
            raise ConfigError(
                f"{override.input_line}: every run has {override.key_or_group} already; write {line}"
            )
    cfg = compose(config_name, [o.input_line for o in groups], return_hydra_config=True)
    for override in parsed:
        if override not in groups and not _exists(cfg, override.key_or_group):
            hint = _key_hint(override.key_or_group, cfg, loader)
            raise ConfigError(f"{override.key_or_group}: unknown key{hint}")
    for override in parsed:
        if override not in groups and not override.is_delete():
            try:
                compose(config_name, [*(o.input_line for o in groups), override.input_line])
            except HydraException as error:
                reason = str(error.__cause__ or error).splitlines()[0]
                raise ConfigError(f"{override.input_line}: {reason}, got {shown(override.value())}") from None


def _key_hint(key: str, cfg: DictConfig, loader: ConfigLoader) -> str:
    """What the unknown key may have been meant for: a neighbour in its own mapping, else any key or group."""
    parent, _, leaf = key.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else None
    if OmegaConf.is_dict(node) and not key.startswith("hydra."):
        siblings = [str(name) for name in node if name != "_target_"]
        option = cfg.hydra.runtime.choices.get(parent)
        where = f"{parent}={option}" if option else parent
        return (
            did_you_mean(leaf, siblings, f"{parent}.") or f"; {where} has {', '.join(siblings) or 'no keys'}"
        )
    if key.startswith("hydra."):
        return "; --cfg hydra shows them all"
    ours = OmegaConf.to_container(cfg, resolve=False)
    known = [name for name in keys_of(ours) if not name.startswith("hydra")] + _own_groups(loader)
    return did_you_mean(key, known) or "; --cfg job shows them all"


def _exists(cfg: DictConfig, key: str) -> bool:
    parent, _, leaf = key.rpartition(".")
    node = OmegaConf.select(cfg, parent, throw_on_missing=False) if parent else cfg
    # "in node" would be False for a key whose value is still to be given, ???
    return OmegaConf.is_config(node) and (leaf in list(node) if OmegaConf.is_dict(node) else leaf.isdigit())
