# SPDX-License-Identifier: Apache-2.0
"""Write the API reference, a page for each public module, from the docstrings.

    python docs/reference.py build/docs

`make docs` calls it. tests/test_docs.py checks that every link in the pages leads somewhere.
"""

import importlib
import inspect
import re
import sys
from pathlib import Path

import pdoc
import torch
from jinja2 import pass_context
from jinja2.runtime import Context

from microspec_kernels import ops

MODULES = [
    "microspec_kernels",  # and `policy`, which it exports
    "microspec_kernels.ops",
    "microspec_kernels.engine",
    "microspec_kernels.integrations.transformers",
    "microspec_kernels.speculative",
    "microspec_kernels.replay",
    "microspec_kernels.reference",
]
to_markdown = pdoc.render.env.filters["to_markdown"]


@pass_context
def to_markdown_with_short_names(context: Context, docstring: str) -> str:
    """Shorten a role's `~.module.name` to `name`: pdoc knows neither the tilde nor the dot."""
    docstring = re.sub(r":`~\.[\w.]*?(\w+)`", r":`\1`", docstring)
    return str(to_markdown(context, re.sub(r":`[~.]+", ":`", docstring)))


def add_schemas() -> None:
    """Show beneath each function of `ops` the op that it calls."""
    for name in ops.__all__:
        schema = getattr(torch.ops.microspec, name).default._schema
        getattr(ops, name).__doc__ += f"\n\n    The op: ``torch.ops.{schema}``".replace("::", ".")


def show_inherited() -> None:
    """Give public classes the methods of their private bases, which have no place in the pages."""
    for name in MODULES:
        for cls in filter(inspect.isclass, vars(importlib.import_module(name)).values()):
            for base in cls.__mro__[1:]:
                if base.__module__.startswith("microspec") and base.__name__.startswith("_"):
                    for method, function in vars(base).items():
                        if method[0] != "_" and method not in vars(cls):
                            setattr(cls, method, function)


def unlink_hidden(page: Path) -> None:
    """Remove links to attributes of private bases: pdoc links them but does not show them."""
    text = page.read_text()
    places = set(re.findall(r'\bid="([^"]+)"', text))
    link = re.compile(r'<a href="#(\w+\.\w+)">(.*?)</a>')
    page.write_text(link.sub(lambda found: found[0 if found[1] in places else 2], text))


def write(folder: Path) -> None:
    add_schemas()
    show_inherited()
    pdoc.render.env.filters["to_markdown"] = to_markdown_with_short_names
    pdoc.render.configure(docformat="google", show_source=False)
    pdoc.pdoc(*MODULES, output_directory=folder)
    for page in folder.rglob("*.html"):
        unlink_hidden(page)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
