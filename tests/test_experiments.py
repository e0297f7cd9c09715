"""Experiments run again from one command; all of them by `pytest --experiments`, some minutes each."""
import json, os, shutil, signal, subprocess, sys, time
from pathlib import Path
import nbformat, psutil
import nbformat.v4 as nbf
import pytest
from avae.experiments import known_experiments

ROOT = Path(__file__).resolve().parents[1]
FAST = {'vae_fails_on_rotations'}

@pytest.fixture
def copy(tmp_path):
    "A copy of the package and its experiments"
    for part in ('avae', 'nbs', 'tools'): shutil.copytree(ROOT/part, tmp_path/part, ignore=shutil.ignore_patterns('__pycache__'))
    shutil.copy(ROOT/'settings.ini', tmp_path)
    return tmp_path

def reproduce(copy, *args):
    "Run the command in the copy; what it prints"
    env = os.environ | {'PYTHONPATH': str(copy)}
    r = subprocess.run([sys.executable, '-m', 'avae.cli', 'reproduce', *args], cwd=copy, env=env, capture_output=True, text=True)
    assert r.returncode == 0, r.stdout + r.stderr
    return r.stdout

@pytest.mark.parametrize('name', known_experiments())
def test_quick_version_runs_and_touches_no_full_result(name, copy, request):
    if name not in FAST and not request.config.getoption('experiments'): pytest.skip('only with --experiments')
    before = {p: p.read_bytes() for p in (copy/'nbs').rglob('*') if p.is_file()}
    reproduce(copy, name, '--quick')
    assert {p: p.read_bytes() for p in (copy/'nbs').rglob('*') if p.is_file()} == before
    assert not (copy/'imgs').exists()
    assert json.loads((copy/'runs'/f'{name}-quick'/f'{name}.json').read_text())

TINY = [nbf.new_markdown_cell('# Tiny\n\n> The number of parameters.\n- time: 1 s\n- quick: 1 s\n- skip_exec: true'),
        nbf.new_code_cell('import time\nfrom avae.affine import PoseSpace\nfrom avae.experiments import Experiment'),
        nbf.new_code_cell('exp = Experiment("tiny")\ndef count(angle): return len(PoseSpace(angle=angle))\n'
                          'n = exp.once("count", count, angle=20)'),
        nbf.new_code_cell('while (exp.root/"wait").exists(): time.sleep(0.1)\nexp.save({"n": n})')]

@pytest.fixture
def tiny(copy):
    "The same copy with one more experiment: its second part takes as long as there is a file `wait`"
    nbformat.write(nbf.new_notebook(cells=TINY), copy/'nbs'/'29_tiny.ipynb')
    return copy

def test_a_killed_one_leaves_no_process_and_goes_on_and_a_finished_one_starts_anew(tiny):
    "What counts as a change, and what is done about it, is tested by the notebook of experiments"
    (tiny/'wait').touch()
    run = [sys.executable, '-m', 'avae.cli', 'reproduce', '29', '--quick']
    p = subprocess.Popen(run, cwd=tiny, env=os.environ | {'PYTHONPATH': str(tiny)}, start_new_session=True)
    part, finished = (tiny/'runs'/'tiny-quick'/name for name in ('count.json', 'finished'))
    while not part.exists() and p.poll() is None: time.sleep(0.1)
    kernels = psutil.Process(p.pid).children(recursive=True)
    os.killpg(p.pid, signal.SIGKILL)
    p.wait()
    made = lambda: part.stat().st_mtime_ns
    first = made()
    assert kernels and not psutil.wait_procs(kernels, timeout=20)[1] and not finished.exists()
    (tiny/'wait').unlink()
    reproduce(tiny, 'tiny', '--quick')
    assert made() == first and finished.exists()
    finished.unlink()                                           # as if it had been interrupted after this part
    module = tiny/'avae'/'affine.py'
    module.write_text(module.read_text() + '\nMORE = 1\n')
    assert 'is kept' in reproduce(tiny, 'tiny', '--quick', '--stale', 'keep') and made() == first and finished.exists()
    reproduce(tiny, 'tiny', '--quick')
    assert made() > first

def test_table_1_has_what_it_promises():
    table = json.loads((ROOT/'nbs'/'results'/'table1.json').read_text())
    assert list(table) == ['avae_optimized', 'avae_single', 'avae_random', 'vae_single']
    for row in table.values():
        assert {'paper_loss', 'floor', 'excess', 'nats', 'spread', 'n_images', 'seeds', 'passes'} <= row.keys()
        assert abs(row['paper_loss'] - row['floor'] - row['excess']) < 1e-6 and row['seeds'] >= 3 and row['n_images'] >= 1000
