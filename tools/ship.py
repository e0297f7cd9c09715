"""Put the weights of a run into the package, and its record into nbs/results/runs.

    python tools/ship.py runs/mnist-optimized mnist-l8-optimized
"""
import argparse, json, shutil
from pathlib import Path
from nbdev.config import get_config
from avae.models import load_pretrained

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('run', type=Path, help='folder that `avae train` made')
    p.add_argument('name', help='name for `load_pretrained`')
    args, cfg = p.parse_args(), get_config()
    command = json.loads((args.run/'settings.json').read_text())['command']
    lines = [json.loads(line) for line in (args.run/'metrics.jsonl').read_text().splitlines()]
    best = min(lines, key=lambda e: e['valid'])
    out = cfg.lib_path/'pretrained'/args.name
    model = load_pretrained(args.run/'best')
    getattr(model, 'vae', model).save_pretrained(out, info=dict(command=command, epoch=best['epoch'], valid=round(best['valid'], 3)))
    record = cfg.nbs_path/'results'/'runs'/args.name
    record.mkdir(parents=True, exist_ok=True)
    for f in ('settings.json', 'metrics.jsonl', 'poses.jsonl'):
        if (args.run/f).exists(): shutil.copy(args.run/f, record/f)
    print(f"{out}: epoch {best['epoch']}, validation {best['valid']:.2f} nats, by `{command}`")

if __name__ == '__main__': main()
