"""Runs that are killed at any moment, disks that fill up, and several processes, with real processes."""
import json, multiprocessing, os, random, resource, signal, subprocess, sys, time
from pathlib import Path
import cloudpickle
import pytest
import torch
from safetensors.torch import load_file
from torchvision.transforms.functional import to_pil_image
from avae import runs
from avae.affine import PoseSpace
from avae.affine_vae import AffineVAE
from avae.data import toy_glyphs
from avae.models import VAE
from avae.processes import launch
from avae.training import train

ROOT, TURN = Path(__file__).resolve().parents[1], PoseSpace(angle=180)

def work(run, before=lambda: None, resume=False):
    "Train an AVAE on letters that turn; a checkpoint after every second step"
    torch.set_num_threads(1)
    before()
    torch.manual_seed(0)
    train(AffineVAE(VAE(2, 16), TURN), toy_glyphs(96, 16), toy_glyphs(32, 16, seed=1), TURN, run, resume,
          epochs=6, batch_size=16, align=20, search_warmup=8, device='cpu', save_every=2)

CLEAN = multiprocessing.get_context('forkserver')  # not forks of this process, which may have computed with threads
CLEAN.set_forkserver_preload(['avae.training', 'avae.data'])

def call(data):
    function, args = cloudpickle.loads(data)
    function(*args)

def start(*args, function=work):
    "In a process of its own"
    p = CLEAN.Process(target=call, args=(cloudpickle.dumps((function, args)),))
    p.start()
    return p

def finish(*args, **kwargs):
    p = start(*args, **kwargs)
    p.join()
    return p.exitcode

def result(run):
    "What a run ends with: weights and losses"
    lines = map(json.loads, (run/'metrics.jsonl').read_text().splitlines())
    weights = {(f, k): v.tolist() for f in ('best', 'last') for k, v in load_file(run/f/'model.safetensors').items()}
    return weights, (run/'poses.jsonl').read_text(), [(e['epoch'], e['train'], e['valid'], e['passes']) for e in lines]

@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "An uninterrupted run"
    run = tmp_path_factory.mktemp('whole')/'run'
    assert finish(run) == 0
    return result(run)

def test_killed_at_random_moments(whole, tmp_path):
    run, rng, killed = tmp_path/'run', random.Random(0), 0
    stamp = lambda: f.stat().st_mtime_ns if (f := run/runs.CHECKPOINT).exists() else 0
    for k in range(5):
        p, before = start(run, lambda: None, k > 0), stamp()
        while p.exitcode is None and stamp() == before: time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.05))
        p.kill()
        p.join()
        killed += p.exitcode == -signal.SIGKILL
    assert killed >= 3 and finish(run, lambda: None, True) == 0
    assert result(run) == whole

def die(): os.kill(os.getpid(), signal.SIGKILL)

def in_a_write(n):
    "Half of the n-th checkpoint is written when the process dies"
    write, count = Path.write_bytes, iter(range(10**6))
    def half(path, data):
        if runs.CHECKPOINT in path.name and next(count) == n: write(path, data[:len(data)//2]); die()
        return write(path, data)
    Path.write_bytes = half

def in_a_rename(n):
    "The n-th checkpoint has been moved out of the way, the new one is not there yet"
    replace, count = Path.replace, iter(range(10**6))
    def moved(path, target):
        replace(path, target)
        if path.name == runs.CHECKPOINT and next(count) == n: die()
    Path.replace = moved

def before_the_record(n):
    "The n-th checkpoint is there, but nothing that is made from it"
    record, count = runs.Run.record, iter(range(10**6))
    def dead(*args):
        if next(count) == n: die()
        return record(*args)
    runs.Run.record = dead

@pytest.mark.parametrize('how', [in_a_write, in_a_rename, before_the_record])
def test_killed_in_the_middle_of_a_save(whole, tmp_path, how):
    run = tmp_path/'run'
    assert finish(run, lambda: how(2)) == -signal.SIGKILL
    assert finish(run, lambda: how(1), True) == -signal.SIGKILL          # and once more, on the way back
    assert finish(run, lambda: None, True) == 0
    assert result(run) == whole and not list(run.glob('.tmp*'))

def test_a_disk_that_fills_up(whole, tmp_path):
    "As far as a program can tell, a limit on the size of files is a disk that is full"
    run, said = tmp_path/'run', tmp_path/'said'
    def full():
        def report(run, tensors, meta):
            if meta['epoch'] == 2: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
            try: save(run, tensors, meta)
            except OSError as e: said.write_text(str(e)); raise SystemExit(3) from None
        save, runs.write_checkpoint = runs.write_checkpoint, report
    assert finish(run, full) == 3
    assert said.read_text().startswith(f'cannot write {run/runs.CHECKPOINT}: ')
    assert not list(run.glob('.tmp*')) and finish(run, lambda: None, True) == 0
    assert result(run) == whole

@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp('letters')
    for i, x in enumerate(toy_glyphs(200, 16)): to_pil_image(x).save(folder/f'{i:03}.png')
    return folder

def avae_train(pictures, out, processes, *args):
    "`avae train`, by torchrun if there are several processes; its metrics"
    by = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', str(processes)] if processes > 1 else []
    command = [sys.executable, *by, '-m', 'avae.cli', 'train', '--data', pictures, '--size', '16', '--out', out,
               '--epochs', '2', '--batch-size', '30', '--valid', '40', '--latent', '3', '--likelihood', 'bernoulli',
               '--device', 'cpu', *args]
    r = subprocess.run(command, cwd=ROOT, env=os.environ | {'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)},
                       capture_output=True, text=True)
    assert r.returncode == 0, r.stderr
    return [json.loads(line) for line in (out/'metrics.jsonl').read_text().splitlines()]

def test_two_processes_do_what_one_does(pictures, tmp_path):
    "With poses; without them see the notebook of training"
    one, two = (avae_train(pictures, tmp_path/f'{n}', n, '--regime', 'optimized', '--mixed-precision', 'bf16',
                           '--search-warmup', '4', '--align', '16') for n in (1, 2))
    assert json.loads((tmp_path/'2'/'settings.json').read_text())['processes'] == 2
    for a, b in zip(one, two, strict=True):
        for k in ('train', 'valid'): assert abs(a[k]/b[k] - 1) < 1e-2, (k, a[k], b[k])
        assert abs(a['passes'] - b['passes']) < 1e-6

def test_a_run_of_one_process_goes_on_with_two(tmp_path):
    whole, run, letters = tmp_path/'whole', tmp_path/'run', toy_glyphs(96, 16)
    def part(run, stop=None, resume=False):
        def report(e):
            if e.epoch == stop: raise SystemExit(3) from None
        torch.set_num_threads(1)
        torch.manual_seed(0)
        train(AffineVAE(VAE(2, 16), TURN), letters, letters, TURN, run, resume, epochs=4, batch_size=16, device='cpu',
              search_warmup=6, align=16, report=report)
    assert (finish(whole, function=part), finish(run, 2, function=part)) == (0, 3)
    launch(part, run, None, True, processes=2)
    last = lambda run: json.loads((run/'metrics.jsonl').read_text().splitlines()[-1])
    assert abs(last(whole)['train']/last(run)['train'] - 1) < 1e-2

def test_more_processes_than_images_in_a_step(tmp_path):
    work = lambda: train(VAE(2, 16), toy_glyphs(9, 16), batch_size=1, epochs=1, device='cpu')
    with pytest.raises(ValueError, match='each process at least 1 images'): launch(work, processes=2)

SCRIPT = """
import faulthandler, torch
faulthandler.dump_traceback_later(250, exit=True)
from avae import VAE, toy_glyphs
from avae.processes import launch
from avae.training import train
x = toy_glyphs(300, 28)
(x.repeat(30, 1, 1, 1)*2).sum(); VAE(2, 28)(x[:256])              # with as many threads as there are
def work(run=None): train(VAE(2, 28), x, run=run, epochs=1, device='cpu', workers=1)
work()                                                             # forks a process that reads images
launch(work, 'run', processes=2)
"""

@pytest.mark.parametrize('threads', [None, 4])  # with one, see the two processes above
def test_launch_from_a_script_that_has_computed(threads, tmp_path):
    "Without `if __name__ == '__main__'`, whatever the number of threads"
    env = {k: v for k, v in os.environ.items() if k != 'OMP_NUM_THREADS'} | {'PYTHONPATH': str(ROOT)}
    if threads: env['OMP_NUM_THREADS'] = str(threads)
    (tmp_path/'script.py').write_text(SCRIPT)
    r = subprocess.run([sys.executable, 'script.py'], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert r.returncode == 0, r.stderr
    assert json.loads((tmp_path/'run'/'settings.json').read_text())['processes'] == 2
    assert r.stdout == '2 processes on cpu, 128 images a step\n'

ORPHANS = """
import os, sys, threading, time
from avae.processes import launch
def work(): open(os.environ['RANK'], 'w').write(str(os.getpid())); time.sleep(100)
def leave():
    while not (os.path.exists('0') and os.path.exists('1')): time.sleep(0.01)
    time.sleep(0.2)
    os._exit(7)
threading.Thread(target=leave).start()
launch(work, processes=2)
"""

def ends(pid, seconds=10):
    "Does a process end by itself soon?"
    def alive():
        try: return Path(f'/proc/{pid}/stat').read_text().split(')')[1].split()[0] != 'Z'
        except OSError: return False
    end = time.monotonic() + seconds
    while alive() and time.monotonic() < end: time.sleep(0.05)
    return not alive()

def test_processes_end_with_the_one_that_launched_them(tmp_path):
    (tmp_path/'script.py').write_text(ORPHANS)
    env = os.environ | {'PYTHONPATH': str(ROOT)}
    assert subprocess.run([sys.executable, 'script.py'], cwd=tmp_path, env=env).returncode == 7
    assert all(ends((tmp_path/r).read_text()) for r in '01')

READERS = """
import multiprocessing, os, pathlib, signal, threading, time
import torch
from avae.data import Indexed, batches
def leave():                       # while the reader still loads PyTorch, and has not looked who its parent is
    while not multiprocessing.active_children(): time.sleep(0.01)
    time.sleep(0.1)
    pathlib.Path('reader').write_text(str(multiprocessing.active_children()[0].pid))
    os.kill(os.getpid(), signal.SIGKILL)
if __name__ == '__main__':
    multiprocessing.set_start_method('spawn')
    threading.Thread(target=leave).start()
    list(batches(Indexed(torch.zeros(2, 1, 8, 8)), [[0], [1]]*1000, workers=1))
"""

def test_readers_end_with_the_one_that_started_them(tmp_path):
    (tmp_path/'script.py').write_text(READERS)
    env = os.environ | {'PYTHONPATH': str(ROOT)}
    r = subprocess.run([sys.executable, 'script.py'], cwd=tmp_path, env=env, stderr=subprocess.DEVNULL)
    assert r.returncode == -signal.SIGKILL and ends((tmp_path/'reader').read_text(), 30)  # it loads PyTorch first
