"""Experiments run again from one command; all of them by `pytest --experiments`, some minutes each."""
import json, os, shutil, signal, subprocess, sys, time
from pathlib import Path
import psutil
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

def test_an_interrupted_one_goes_on_unless_its_code_has_changed_and_a_finished_one_starts_anew(copy):
    folder, module = copy/'runs'/'vae_fails_on_rotations-quick', copy/'avae'/'affine.py'
    part, finished = folder/'over_angles.json', folder/'finished'
    made = lambda: part.stat().st_mtime_ns
    reproduce(copy, '20', '--quick')
    first = made()
    finished.unlink()                                           # as if it had been interrupted after this part
    module.write_text('# A comment\n' + module.read_text())
    reproduce(copy, '20', '--quick')
    assert made() == first and finished.exists()
    finished.unlink()
    module.write_text(module.read_text() + '\nMORE = 1\n')
    assert 'is kept' in reproduce(copy, '20', '--quick', '--stale', 'keep') and made() == first
    finished.unlink()
    reproduce(copy, '20', '--quick')
    second = made()
    assert second > first
    reproduce(copy, '20', '--quick')
    assert made() > second

def test_a_killed_one_leaves_no_process_and_goes_on(copy):
    run = [sys.executable, '-m', 'avae.cli', 'reproduce', '25', '--quick']
    p = subprocess.Popen(run, cwd=copy, env=os.environ | {'PYTHONPATH': str(copy)}, start_new_session=True)
    folder = copy/'runs'/'general_affine-quick'
    for _ in range(600):
        if (folder/'reduction-0.json').exists() or p.poll() is not None: break
        time.sleep(0.2)
    kernels = psutil.Process(p.pid).children(recursive=True)
    os.killpg(p.pid, signal.SIGKILL)
    p.wait()
    first = (folder/'reduction-0.json').stat().st_mtime_ns
    assert kernels and not psutil.wait_procs(kernels, timeout=20)[1]
    reproduce(copy, '25', '--quick')
    assert (folder/'reduction-0.json').stat().st_mtime_ns == first and (folder/'finished').exists()

def test_table_1_has_what_it_promises():
    table = json.loads((ROOT/'nbs'/'results'/'table1.json').read_text())
    assert list(table) == ['avae_optimized', 'avae_single', 'avae_random', 'vae_single']
    for row in table.values():
        assert {'paper_loss', 'floor', 'excess', 'nats', 'spread', 'n_images', 'seeds', 'passes'} <= row.keys()
        assert abs(row['paper_loss'] - row['floor'] - row['excess']) < 1e-6 and row['seeds'] >= 3 and row['n_images'] >= 1000
