"""Put weights into the package, and their record into nbs/results/runs.

    python tools/ship.py runs/mnist-optimized mnist-l8-optimized    the best of a run
    python tools/ship.py mnist-l8-rotation --device cuda            mnist-l8 with a guess, learned now from MNIST
"""
import argparse, json, shutil, time
from pathlib import Path
import torch
from safetensors.torch import load_file, save
from avae.affine import PoseSpace
from avae.affine_vae import AffineVAE
from avae.core import atomic_write
from avae.data import load_dataset
from avae.guess import fit_guess, measure_passes
from avae.models import load_pretrained

HELD = 5000  # of the 60,000 training digits, the last ones: for choices, never learned from
GUESSES = {  # name: poses, do the upright digits lie as the VAE likes them best?, the network, what the model is told
    'mnist-l8-rotation': (dict(angle=180), 'search', dict(widths=(16, 32, 64)), dict(budget=12)),
    'mnist-l8-affine': (dict(angle=180, scale=1.8, shear=0.5), 'upright', dict(widths=(32, 64, 128), hidden=256), dict(budget=30, trust=2.0)),
}

def with_guess(name, epochs, device, folder, keep):
    "Learn a guess for `mnist-l8`, and save both; the guess in half precision."
    bounds, canonical, net, settings = GUESSES[name]
    start, vae, poses = time.monotonic(), load_pretrained('mnist-l8').to(device), PoseSpace(**bounds)
    avae, x = AffineVAE(vae, poses, chunk=4096), load_dataset('mnist', 'train').images[:-HELD].to(device)
    with torch.no_grad(): pose = avae(x, 26).pose if canonical == 'search' else None
    guess = fit_guess(avae, x, pose, epochs=epochs, batch=512, keep=keep, **net)
    with torch.no_grad():
        for v in guess.parameters(): v.copy_(v.half())
    seconds, vae, guess = round(time.monotonic() - start), vae.cpu(), guess.cpu()
    torch.set_num_threads(1)
    guess.passes = measure_passes(AffineVAE(vae, poses), guess, rounds=25)
    AffineVAE(vae, poses, guess=guess, **settings).save_pretrained(
        folder, info=dict(command=f'python tools/ship.py {name} --epochs {epochs} --device {device}', canonical=canonical, seconds=seconds, device=str(device)))
    learned = {f'guess.{k}' for k, _ in guess.named_parameters()}
    half = {k: v.half() if k in learned else v for k, v in load_file(folder/'model.safetensors').items()}
    with atomic_write(folder/'model.safetensors') as tmp: tmp.write_bytes(save(half, {'format': 'pt'}))
    print(f'{folder}: {epochs} epochs, {seconds} s, a look costs {guess.passes} passes, calibration {guess.calibration.tolist()}')

def of_run(run, name, folder, record):
    "The best of a run, its command and its history."
    command = json.loads((run/'settings.json').read_text())['command']
    lines = [json.loads(line) for line in (run/'metrics.jsonl').read_text().splitlines()]
    best = min(lines, key=lambda e: e['valid'])
    model = load_pretrained(run/'best')
    getattr(model, 'vae', model).save_pretrained(folder, info=dict(command=command, epoch=best['epoch'], valid=round(best['valid'], 3)))
    record.mkdir(parents=True, exist_ok=True)
    for f in ('settings.json', 'metrics.jsonl', 'poses.jsonl'):
        if (run/f).exists(): shutil.copy(run/f, record/f)
    print(f"{folder}: epoch {best['epoch']}, validation {best['valid']:.2f} nats, by `{command}`")

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('run', type=Path, nargs='?', help='folder that `avae train` made')
    p.add_argument('name', help='name for `load_pretrained`')
    p.add_argument('--epochs', type=int, default=40, help='of a guess')
    p.add_argument('--device', default='cpu', help='to learn a guess on')
    p.add_argument('--keep', type=Path, help='a file from which learning a guess goes on after it was cut off')
    p.add_argument('--out', type=Path, help='another folder than that of the package')
    args, root = p.parse_args(), Path(__file__).resolve().parents[1]
    folder = (args.out or root/'avae'/'pretrained')/args.name
    if args.run: return of_run(args.run, args.name, folder, root/'nbs'/'results'/'runs'/args.name)
    if args.name not in GUESSES: p.error(f"name must be one of {', '.join(GUESSES)}, or come after the folder of a run")
    with_guess(args.name, args.epochs, args.device, folder, args.keep)

if __name__ == '__main__': main()
