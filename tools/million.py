#!/usr/bin/env python
"""A million tiny pictures for real: time, memory, number of files, and what a kill costs.

    python tools/million.py --n 1000000 --out million --json nbs/results/million.json

Makes the pictures (digits of the sample at random angles, PNG), runs `avae canonicalize --no-images` in a process of its
own with one thread, kills it three times, and then counts: each picture once, in the order of its name. It takes about an
hour of one core, and goes on with the same command.
"""
import argparse, json, math, os, random, shutil, signal, subprocess, sys, time
from pathlib import Path
import pyarrow.parquet as pq
import torch
from PIL import Image
from avae.affine import random_views
from avae.core import write_json
from avae.data import mnist_sample
from avae.models import load_pretrained

FOLDER = 1000  # pictures in each folder

def make(folder, n):
    "n digits at random angles, a thousand in each folder; folders that are there are left."
    digits, poses = mnist_sample("train").images, load_pretrained("mnist-l8-rotation").poses
    for k in range(0, n, FOLDER):
        where, new = folder/f"{k//FOLDER:06}", folder/f".{k//FOLDER:06}"
        if where.exists(): continue
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        images = digits[torch.randint(len(digits), (min(FOLDER, n - k),), generator=torch.Generator().manual_seed(k))]
        views, _ = random_views(images, poses, seed=k)
        for i, x in enumerate((255*views[:, 0]).round().byte().numpy()): Image.fromarray(x).save(new/f"{i:03}.png", compress_level=1)
        new.rename(where)

def memory(pid):
    "Memory of this process, in MB."
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1])*os.sysconf("SC_PAGE_SIZE")/2**20

def shards(out): return len(list((out/"shards").glob("*.parquet")))

def percent(out):
    "How much is done."
    if not (path := out/"manifest.json").exists(): return 0
    plan = json.loads(path.read_text())
    return 100*shards(out)/math.ceil(plan["images"]/plan["shard"])

def run(pictures, out, log, until=None):
    "Canonicalize until the end, or until so many percent are done, then kill -> seconds, seconds to the first new shard, MB over time."
    start, before, first, trace = time.monotonic(), shards(out), None, []
    words = [sys.executable, "-m", "avae.cli", "canonicalize", str(pictures), "--model", "mnist-l8-rotation", "--budget", "8",
             "--no-images", "--device", "cpu", "--out", str(out)]
    with open(log, "a") as said:
        child = subprocess.Popen(words, stdout=said, stderr=said, env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True)
        while child.poll() is None:
            time.sleep(2)
            try: trace.append(round(memory(child.pid)))
            except (OSError, IndexError): break
            if shards(out) > before: first = first or time.monotonic() - start
            if until and percent(out) >= until: os.killpg(child.pid, signal.SIGKILL)
        code = child.wait()
    if code not in (0, -signal.SIGKILL): sys.exit(f"canonicalize ended with status {code}: see {log}")
    return dict(seconds=round(time.monotonic() - start, 1), first=first and round(first, 1), shards=shards(out) - before, killed=code != 0, trace=trace)

def main():
    parser = argparse.ArgumentParser(description="A million tiny pictures for real.")
    parser.add_argument("--n", type=int, default=1000000, help="so many pictures")
    parser.add_argument("--out", type=Path, required=True, help="a folder for the pictures and the table")
    parser.add_argument("--json", help="write what was found to this file")
    o = parser.parse_args()
    pictures, out, parts = o.out/"pictures", o.out/"result", o.out/"parts.json"
    start = time.monotonic()
    make(pictures, o.n)
    print(f"{o.n:,} pictures: {time.monotonic() - start:.0f} s", flush=True)
    runs = json.loads(parts.read_text()) if parts.exists() else []
    ends = sorted(random.Random(0).sample(range(1, 100), 3))
    for until in [*ends, None]:
        if (until and percent(out) >= until) or (out/"table.parquet").exists(): continue
        runs.append(run(pictures, out, o.out/"log.txt", until))
        write_json(parts, runs)
        print({k: v for k, v in runs[-1].items() if k != "trace"}, f"{max(runs[-1]['trace'], default=0)} MB", flush=True)
    table = pq.read_table(out/"table.parquet", columns=["file", "status"])
    names = table["file"].to_pylist()
    assert len(names) == len(set(names)) == o.n and names == sorted(names), "a picture is missing, or is there twice"
    late = [[m for m in r["trace"] if m] for r in runs if len(r["trace"]) > 60]
    seconds = sum(r["seconds"] for r in runs)
    told = dict(pictures=o.n, rows=len(names), ok=table["status"].to_pylist().count("ok"), seconds=round(seconds), images_per_second=round(o.n/seconds, 1),
                kills=sum(r["killed"] for r in runs), seconds_to_first_shard=[r["first"] for r in runs],
                memory_mb=[dict(after_a_minute=t[30], in_the_end=t[-1], most=max(t)) for t in late],
                files=sum(len(f) for _, _, f in os.walk(out)), table_mb=round((out/"table.parquet").stat().st_size/2**20, 1))
    print(json.dumps(told, indent=1))
    if o.json: write_json(o.json, told)

if __name__ == "__main__": main()
