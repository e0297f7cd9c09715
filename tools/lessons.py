#!/usr/bin/env python
"""Run what a notebook tests, not on its own cells but on the module that they were exported to.

    python tools/lessons.py affine models
"""
import importlib, json, os, re, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SKIP = r"^#\| *(export|exports|slow|eval: *false)\b|nbdev_export\(|^show_doc\("

def notebooks():
    "{module: its notebook}"
    found = {}
    for path in sorted((ROOT/"nbs").glob("[01]*.ipynb")):
        if m := re.search(r'default_exp (\w+)"', path.read_text(encoding="utf-8")): found[m[1]] = path
    return found

def run_lessons(module):
    "The cells of its notebook, but for those that define the module: what they define is taken from it."
    from IPython.display import display
    path = notebooks()[module]
    names = {"display": display} | vars(importlib.import_module("avae" if module == "__init__" else f"avae.{module}"))
    os.chdir(ROOT/"nbs")
    for i, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] != "code" or re.search(SKIP, source, re.M): continue
        exec(compile(source, f"<{path.name}, cell {i}>", "exec"), names)

if __name__ == "__main__":
    import matplotlib
    matplotlib.use("Agg")
    sys.path.insert(0, str(ROOT))
    for module in sys.argv[1:]: run_lessons(module)
