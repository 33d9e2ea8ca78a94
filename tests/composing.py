"""Configurations as commands see them."""

from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from tid.config import plain

CONF = Path(__file__).parents[1] / "conf"


def composed(*settings: str, name: str = "train") -> dict:
    """The configuration as a run sees it, with a word in the place of every value that the user must give."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(name, list(settings))
    OmegaConf.set_struct(cfg, False)
    for key in OmegaConf.missing_keys(cfg):
        OmegaConf.update(cfg, key, "given-by-the-user")
    return plain(cfg)


def changed(cfg: dict, key: str, value: object) -> dict:
    """A copy of `cfg` with another value at the dotted key."""
    copy = OmegaConf.create(cfg)
    OmegaConf.update(copy, key, value, merge=False)
    return OmegaConf.to_container(copy)
