"""HTML pages of one file each: no file beside them, no request, readable without scripts and on paper."""

from pathlib import Path

import jinja2

from tid import comparison

HERE = Path(__file__).parent
SHARED = Path(comparison.__file__).parent  # whose page.css all pages have in common


def render(template: str, *, styles: tuple[str, ...] = (), scripts: tuple[str, ...] = (), **values: object) -> str:
    """The page that `template`, a file of this folder, makes of `values`. styles and scripts: files of this folder
    that are written into it."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    style = "\n".join(path.read_text(encoding="utf-8") for path in (SHARED / "page.css", *(HERE / s for s in styles)))
    script = "\n".join((HERE / name).read_text(encoding="utf-8") for name in scripts)
    return environment.get_template(template).render(style=style, script=script, **values)
