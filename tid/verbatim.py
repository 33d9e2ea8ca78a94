"""Settings whose value is text: taken letter for letter, whatever Hydra would read in its commas, quotes or braces.

    @verbatim("prompt")
    @cli.entry("sample")
    def main(cfg: DictConfig) -> None: ...
"""

import functools
import re
import sys
from collections.abc import Callable


def verbatim(*keys: str) -> Callable:
    """Decorator of a command: quotes the values of `keys` in sys.argv before Hydra sees them.

    On the command line `prompt=Hello, "world"` is then that text, quotes included; `prompt=null` is the word null.
    """

    def decorate(command: Callable[[], None]) -> Callable[[], None]:
        @functools.wraps(command)
        def quoting() -> None:
            sys.argv[1:] = [quoted(argument, keys) for argument in sys.argv[1:]]
            command()

        return quoting

    return decorate


def quoted(argument: str, keys: tuple[str, ...]) -> str:
    """`key=text` as `key='text'` in Hydra's syntax if `key` is one of `keys`; any other argument as it is.

    Backslashes count only before a quote (Hydra) and before ${ (OmegaConf's references), so only those are doubled.
    """
    key, equals, text = argument.partition("=")
    if not equals or key not in keys:
        return argument
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
    text = re.sub(r"(\\*)('|$(?![\s\S]))", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), text)
    return f"{key}='{text}'"
