"""`canonicalize` on a real cluster of this machine: two actors, of which one is killed."""
import os, signal, subprocess, sys, time, uuid
from pathlib import Path
import numpy as np
import psutil
import pytest
import tifffile
import torch
from avae.affine import PoseSpace, random_views
from avae.affine_vae import AffineVAE
from avae.canonicalize import canonicalize
from avae.data import toy_glyphs
from avae.models import VAE

def work(folder):
    "Pictures made canonical here, and by a cluster on which an actor is killed in the middle of a shard."
    torch.manual_seed(0)
    torch.set_num_threads(1)  # as many as an actor has: sums are rounded alike
    turn, here, once = PoseSpace(angle=180), os.getpid(), folder/'killed'
    (folder/'pictures').mkdir()
    for i, v in enumerate(random_views(toy_glyphs(60, 16), turn, seed=1)[0]):
        tifffile.imwrite(folder/'pictures'/f'{i:02}.tif', (4000*v[0]).numpy().astype(np.uint16))
    class Mortal(VAE):
        seen = 0
        def encode(self, x, *args):
            self.seen += len(x)
            if os.getpid() != here and self.seen > 250 and not once.exists():
                once.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().encode(x, *args)
    model = AffineVAE(Mortal(latent=2, size=16), turn, budget=14)
    for executor in ('here', 'ray'):
        canonicalize(folder/'pictures', model, folder/executor, shard=10, device='cpu', executor=executor)
    assert once.exists()

def everything(out):
    "All pictures, shards and tables, byte by byte."
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob('*') if p.suffix in ('.tif', '.parquet', '.csv')}

def left(mark, patience=20):
    "Processes that have this mark, unless they end soon."
    def there():
        for p in psutil.process_iter():
            try: found = p.environ().get('AVAE_TEST') == mark
            except psutil.Error: continue
            if found and p.status() != psutil.STATUS_ZOMBIE: yield p
    end = time.monotonic() + patience
    while (found := list(there())) and time.monotonic() < end: time.sleep(0.5)
    return found

def test_a_cluster_gives_the_same_table_and_an_actor_may_die(tmp_path):
    pytest.importorskip('ray')
    mark, root = uuid.uuid4().hex, Path(__file__).resolve().parents[1]
    env = {k: v for k, v in os.environ.items() if k != 'OMP_NUM_THREADS'} | {'AVAE_TEST': mark, 'PYTHONPATH': str(root)}
    code = f'from pathlib import Path; from tests.test_cluster import work; work(Path({str(tmp_path)!r}))'
    done = subprocess.run([sys.executable, '-c', code], cwd=root, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(here := everything(tmp_path/'here')) == 60 + 6 + 2 and everything(tmp_path/'ray') == here
    assert not list((tmp_path/'ray').rglob('.tmp-*')) and not left(mark)
