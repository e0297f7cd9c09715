"""Package and README are what the notebooks give, and the package needs none of the notebook tools."""
import os, re, shutil, subprocess, sys
from collections import Counter
from configparser import ConfigParser
from fnmatch import fnmatch
from pathlib import Path
import pytest
from execnb.nbio import read_nb

ROOT = Path(__file__).resolve().parents[1]
BLOCK = """
import sys
class Block:
    def find_spec(self, name, *args):
        if name.split('.')[0] in ('nbdev', 'fastcore', 'execnb'): raise ImportError(f'{name} is a development tool')
sys.meta_path.insert(0, Block())
"""
NOTEBOOKS = sorted(p for p in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
modules = lambda root: {p.relative_to(root).as_posix(): p.read_bytes() for p in (root/'avae').rglob('*.py')}

def python(*args, cwd):
    "Run this Python on the package in `cwd`; what it says, and whether it succeeded"
    env = os.environ | {'PYTHONPATH': str(cwd)}
    env.pop('IN_TEST', None)                                    # nbdev_export does nothing where this is set
    r = subprocess.run([sys.executable, *args], cwd=cwd, env=env, capture_output=True, text=True)
    return r.stdout + r.stderr, r.returncode == 0

def nbdev(module, command, cwd):
    said, ok = python('-c', f'from nbdev.{module} import {command}; {command}.__wrapped__()', cwd=cwd)
    assert ok and 'Failed to clean' not in said, said

def files():
    "What git would hand on: the tracked files and the new ones it does not ignore"
    out = subprocess.check_output(['git', 'ls-files', '-coz', '--exclude-standard'], cwd=ROOT, text=True)
    return [f for f in out.split('\0') if f and os.path.lexists(ROOT/f)]

@pytest.fixture
def copy(tmp_path):
    "A copy of the repository, to run nbdev in"
    for f in files():
        (tmp_path/f).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT/f, tmp_path/f, follow_symlinks=False)
    return tmp_path

def test_package_is_what_the_notebooks_export(copy):
    for f in modules(copy): (copy/f).unlink()
    nbdev('doclinks', 'nbdev_export', copy)
    want, have = modules(copy), modules(ROOT)
    faults = [f'missing: {f}' for f in want.keys() - have.keys()]
    faults += [f'from no notebook: {f}' for f in have.keys() - want.keys()]
    faults += [f'different: {f}' for f in want.keys() & have.keys() if want[f] != have[f]]
    assert not faults, '; '.join(sorted(faults)) + ' (run nbdev_export)'

def test_notebooks_are_clean(copy):
    nbdev('clean', 'nbdev_clean', copy)
    faults = [p.name for p in NOTEBOOKS if p.read_bytes() != (copy/p.relative_to(ROOT)).read_bytes()]
    faults += [f'{p.name} (widget state)' for p in NOTEBOOKS if 'widgets' in read_nb(p).metadata]
    assert not faults, ', '.join(faults) + ' (run nbdev_clean)'

def test_readme_is_what_the_index_gives(copy):
    said, ok = python('tools/readme.py', '--check', cwd=copy)
    assert ok, said

@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_is_small_and_has_a_plain_title(path):
    assert path.stat().st_size <= 1.5e6, f'{path.stat().st_size / 1e6:.2f} MB'
    title = next(c.source for c in read_nb(path).cells if c.cell_type == 'markdown')
    plain = re.fullmatch(r'# .+\n+> .+\n?(\n- .+: .+)*', title)
    assert plain, f'nbdev would keep only "# title" and "> line" of: {title}'

def test_each_module_has_one_notebook():
    source = {p.name: '\n'.join(c.source for c in read_nb(p).cells if c.cell_type == 'code') for p in NOTEBOOKS}
    exports = {n: re.findall(r'^#\|\s*default_exp\s+(\S+)', s, re.M) for n, s in source.items()}
    shared = [m for m, n in Counter(sum(exports.values(), [])).items() if n > 1]
    assert not shared, {n: ms for n, ms in exports.items() if set(ms) & set(shared)}
    lost = [n for n, s in source.items() if re.search(r'^#\|\s*exports?\b', s, re.M) and not exports[n]]
    assert not lost, f'cells to export, but no default_exp: {lost}'

dotted = lambda file: file.removesuffix('.py').removesuffix('/__init__').replace('/', '.')

def test_modules_need_no_notebook_tools():
    names = sorted(map(dotted, modules(ROOT)))
    said, ok = python('-c', f'{BLOCK}import importlib\nfor name in {names}: importlib.import_module(name)', cwd=ROOT)
    assert ok, said

def test_data_files_are_packaged():
    ini = ConfigParser(delimiters=['='])
    ini.read(ROOT/'settings.ini')
    data = [f for f in files() if f.startswith('avae/') and not f.endswith('.py')]
    lost = [f for f in data if not any(fnmatch(f, f'avae/{p}') for p in ini['DEFAULT']['package_data'].split())]
    assert not lost, f'add to package_data in settings.ini, and to MANIFEST.in: {lost}'
