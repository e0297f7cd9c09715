#!/usr/bin/env python
"""Faults on purpose: kills, full disks, damaged files, senseless commands. A quick version is tests/test_faults.py.

    python tools/faults.py --kills 50 --files 10000 --commands 2000 --json nbs/results/faults.json
"""
import argparse, io, json, os, random, resource, shutil, signal, sys, tempfile, time, traceback, warnings
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
import numpy as np
import torch
import torch._dynamo  # what the first optimizer of a process imports: children find it there
from PIL import Image
from safetensors.torch import save
from avae.affine import PoseSpace
from avae.affine_vae import AffineVAE
from avae.canonicalize import canonicalize
from avae.core import atomic_write, set_seed, write_json
from avae.data import toy_glyphs
from avae.experiments import Experiment
from avae.formats import read_header, read_image
from avae.guess import fit_guess
from avae.models import VAE
from avae.training import train

# --- children: a fault ends the child, not us

def in_child(function, *args, said=os.devnull, limit=None):
    "Start `function(*args)` in a child with its own output -> its process id. It ends with 0, or 1 for an exception."
    if pid := os.fork(): return pid
    code = 1
    try:
        torch.set_num_threads(1)
        out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2): os.dup2(out, stream)
        sys.stdout = sys.stderr = open(1, "w", closefd=False, errors="backslashreplace", buffering=1)
        if limit: signal.alarm(limit)
        function(*args)
        code = 0
    except SystemExit as e:
        if isinstance(e.code, str): print(e.code)
        code = e.code if isinstance(e.code, int) else int(e.code is not None)
    except BaseException: traceback.print_exc()
    finally: os._exit(code)

def ended(pid): return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

@contextmanager
def folder():
    "A new folder that every user may look into."
    path = Path(tempfile.mkdtemp(prefix="avae-"))
    path.chmod(0o755)
    try: yield path
    finally: shutil.rmtree(path, ignore_errors=True)

# --- work that is stopped in any way ends as one that was not

def a_vae(run):
    "A training of a second; it goes on if it was stopped."
    set_seed(0)
    x = toy_glyphs(40, 12)
    train(VAE(2, 12), x[:32], x[32:], PoseSpace(angle=180), run, (run/"settings.json").exists(), epochs=6, batch_size=8,
          save_every=2, device="cpu")

def an_affine_vae(run):
    set_seed(0)
    x = toy_glyphs(40, 12)
    train(AffineVAE(VAE(2, 12), PoseSpace(angle=180)), x[:32], x[32:], PoseSpace(angle=180), run,
          (run/"settings.json").exists(), epochs=3, batch_size=8, align=20, save_every=2, device="cpu")

def a_guess(run):
    "A guess is learned in a second; it goes on if it was stopped."
    set_seed(0)
    avae, x = AffineVAE(VAE(2, 12).eval(), PoseSpace(angle=180)), toy_glyphs(200, 12)
    guess = fit_guess(avae, x, epochs=8, batch=25, passes=1, keep=run/"kept", bins=8, widths=(4, 4, 4), hidden=8)
    with atomic_write(run/"guess") as tmp: tmp.write_bytes(save(guess.state_dict()))

def an_experiment(run):
    "Parts that are computed once, a training, and results that are written at the end."
    exp = Experiment("numbers", True, run)
    def part(k):
        time.sleep(0.1)
        return {"k": k, "sum": sum(range(k))}
    parts = [exp.once(f"part{k}", part, k=k) for k in range(6)]
    set_seed(0)
    x = toy_glyphs(40, 12)
    history = exp.train("run", VAE(2, 12), x[:32], x[32:], epochs=4, batch_size=8, device="cpu")
    exp.save({"parts": parts, "losses": [(e.train, e.valid) for e in history]})

def a_canonicalization(out, pictures=400):
    "Pictures in shards of ten, read and written by processes of their own; it goes on if it was stopped."
    set_seed(0)
    folder = out.parent/"pictures"
    if not folder.exists():
        folder.mkdir()
        for i, x in enumerate(toy_glyphs(pictures, 12)): Image.fromarray((255*x[0]).byte().numpy()).save(folder/f"{i:03}.png")
    canonicalize(folder, AffineVAE(VAE(2, 12), PoseSpace(angle=180), budget=12), out, shard=10, device="cpu", workers=1)

def results(run):
    "What has to be the same: weights of the last and the best epoch, and the losses; a guess; numbers; pictures and tables."
    if (run/"table.parquet").exists():
        return {p.relative_to(run).as_posix(): p.read_bytes() for p in run.rglob("*") if p.suffix in (".png", ".csv") or p.name == "table.parquet"}
    if (run/"guess").exists(): return (run/"guess").read_bytes()
    if (table := run/"runs"/"numbers-quick"/"numbers.json").exists(): return table.read_bytes()
    lines = [json.loads(v) for v in (run/"metrics.jsonl").read_text().splitlines()]
    losses = [tuple(v[k] for k in ("epoch", "train", "valid", "lr", "passes")) for v in lines]
    return losses, *((run/which/"model.safetensors").read_bytes() for which in ("last", "best"))

WORK = {"train": a_vae, "train, Affine VAE": an_affine_vae, "fit_guess": a_guess, "reproduce": an_experiment, "canonicalize": a_canonicalization}

def leftovers(run): return [p.name for p in run.rglob("*") if p.name.startswith(".tmp-") or p.name == ".lock"]

def kills(n, seed=0, kinds=WORK):
    "Kill each kind of work n times, at random moments -> {kind: kills, runs that came to an end, all the same?, or what is wrong}."
    told, pick = {}, random.Random(seed)
    for name in kinds:
        work = WORK[name]
        with folder() as where:
            start = time.monotonic()
            assert ended(in_child(work, where/"whole")) == 0
            whole, seconds = results(where/"whole"), time.monotonic() - start
            killed, runs, wrong = 0, 0, []
            while killed < n:
                run, runs = where/f"run{runs}", runs + 1
                while True:
                    pid = in_child(work, run, said=where/"said")
                    if killed < n:  # else it may come to its end
                        time.sleep(pick.uniform(0.02, seconds))
                        os.kill(pid, signal.SIGKILL)
                    if (code := ended(pid)) == 0: break
                    if code != -signal.SIGKILL: raise RuntimeError(f"{name}: {(where/'said').read_text()[-3000:]}")
                    killed += 1
                wrong += leftovers(run) + ["other results"]*(results(run) != whole)
            told[name] = dict(kills=killed, runs=runs, same=not wrong) | ({"wrong": wrong} if wrong else {})
    return told

def full_disk(n=8, seed=0):
    "No file may grow above a random size -> times that work failed in one sentence, and went on to the same result."
    pick, good = random.Random(seed), 0
    with folder() as where:
        ended(in_child(a_vae, where/"whole"))
        whole = results(where/"whole")
        most = max(p.stat().st_size for p in (where/"whole").rglob("*") if p.is_file())
        for i in range(n):
            run, said = where/f"run{i}", where/f"said{i}"
            limit = pick.randrange(10, most)
            def cramped():
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
                try: a_vae(run)
                except OSError as e: sys.exit(3 if len(str(e).splitlines()) == 1 else 1)
            refused = ended(in_child(cramped)) == 3
            good += refused and ended(in_child(a_vae, run, said=said)) == 0 and results(run) == whole
    return dict(tried=n, good=good)

def jumping_clock(n=2, seed=0):
    """The clock of the computer jumps by a day back or a year ahead while each kind of work goes on, and it is killed
    in between -> is the result the same, and does no time that is told make no sense?"""
    pick, told = random.Random(seed), {}
    def jumping(work, run):
        true, off = time.time, [0.0]
        def jump():
            if pick.random() < 0.3: off[0] += pick.choice((-86400, 365*86400))
            return true() + off[0]
        time.time = jump
        work(run)
    for name, work in WORK.items():
        with folder() as where:
            start = time.monotonic()
            assert ended(in_child(work, where/"whole")) == 0
            seconds, same = time.monotonic() - start, True
            for i in range(n):
                run, pid = where/f"run{i}", in_child(jumping, work, where/f"run{i}")
                time.sleep(pick.uniform(0.3, 0.9)*seconds)
                os.kill(pid, signal.SIGKILL)
                ended(pid)
                if run.exists():  # files from tomorrow, and from long ago
                    for k, p in enumerate(run.rglob("*")): os.utime(p, (time.time() + (86400, -365*86400)[k % 2],)*2)
                assert ended(in_child(jumping, work, run, said=where/"said")) == 0, (where/"said").read_text()[-2000:]
                same &= results(run) == results(where/"whole") and _sensible(run, 20*seconds + 60)
            told[name] = same
    return told

def _sensible(run, most):
    "Do all times in the records lie between 0 and so many seconds?"
    lines = [json.loads(v) for p in run.rglob("metrics.jsonl") for v in p.read_text().splitlines()]
    return all(0 <= v["seconds"] < most and v.get("images_per_second", 0) >= 0 for v in lines)

def without_shared_memory():
    """Where /dev/shm has no room to hand images over, a training reads them without other processes, and says so -> is
    its result the same?"""
    with folder() as where:
        (where/"pictures").mkdir()
        for k, x in enumerate(toy_glyphs(12, 12)):
            Image.fromarray((255*x[0]).byte().numpy()).save(where/f"pictures/{k}.png")
        def learn(run, workers, room):
            from avae import data
            data.shutil = SimpleNamespace(disk_usage=lambda path: SimpleNamespace(free=room))
            words = f"train --size 12 --epochs 2 --valid 4 --device cpu --workers {workers}".split()
            sys.exit(run_main([*words, "--data", str(where/"pictures"), "--out", str(where/run)]))
        for run, workers, room in (("run", 2, 0), ("whole", 0, 2**40)):
            assert not ended(in_child(learn, run, workers, room, said=where/"said")), (where/"said").read_text()[-2000:]
        return "shared memory" in (where/"said").read_text() and results(where/"run") == results(where/"whole")

def two_at_once():
    "Two runs begin in one folder at the same time -> is one refused in a sentence, and does the other end well?"
    with folder() as where:
        pids = [in_child(a_vae, where/"run", said=where/str(i)) for i in (0, 1)]
        codes = [ended(p) for p in pids]
        said = [(where/str(i)).read_text() for i in (0, 1)]
        assert sorted(codes) == [0, 1], said
        refused = said[codes.index(1)].strip().splitlines()[-1]
        assert "another process is training" in refused or "exists" in refused, refused
        return ended(in_child(a_vae, where/"whole")) == 0 and results(where/"run") == results(where/"whole")

# --- files that are damaged

def good_files():
    "The bytes of small pictures of every kind."
    g, files = np.random.default_rng(0), {}
    grey, colour = (g.integers(0, 256, s, dtype=np.uint8) for s in ((9, 11), (9, 11, 3)))
    for kind in ("PNG", "JPEG", "BMP", "GIF", "WEBP", "PPM", "TIFF"):
        for name, a in (("grey", grey), ("colour", colour)):
            Image.fromarray(a).save(buffer := io.BytesIO(), kind)
            files[f"{kind} {name}"] = buffer.getvalue()
    Image.fromarray(grey.astype(np.uint16)*200).save(buffer := io.BytesIO(), "PNG")
    files["PNG deep"] = buffer.getvalue()
    import tifffile
    for name, options in (("zlib", dict(compression="zlib", predictor=True)), ("tiles", dict(tile=(16, 16))),
                          ("pages", {}), ("ome", dict(ome=True))):
        tifffile.imwrite(buffer := io.BytesIO(), g.integers(0, 4096, (3, 20, 24), dtype=np.uint16), **options)
        files[f"TIFF {name}"] = buffer.getvalue()
    np.save(buffer := io.BytesIO(), grey[None])
    files["npy"] = buffer.getvalue()
    np.savez_compressed(buffer := io.BytesIO(), a=grey, b=colour)
    files["npz"] = buffer.getvalue()
    import h5py
    for name, options in (("plain", {}), ("gzip", dict(chunks=(1, 9, 11), compression="gzip", shuffle=True, fletcher32=True))):
        with h5py.File(buffer := io.BytesIO(), "w") as f: f.create_dataset("a/b", data=grey[None], **options)
        files[f"HDF5 {name}"] = buffer.getvalue()
    return files

def damaged(content, pick):
    "Bytes with some of them changed, cut out, doubled, or turned into large numbers."
    b = bytearray(content)
    for _ in range(pick.choice((1, 1, 2, 4, 16))):
        i = pick.randrange(min(len(b), pick.choice((64, 256, 10**6)))) if b else 0
        match pick.randrange(6):
            case 0: b[i:i + 1] = bytes([pick.randrange(256)])
            case 1: del b[i:i + pick.choice((1, 4, 40))]
            case 2: b[i:i] = b[i:i + pick.choice((1, 4, 40))]
            case 3: b[i:i + 4] = pick.choice((b"\xff"*4, b"\x7f\xff\xff\xff", b"\0"*4, b"\0\0\0\x80"))
            case 4: del b[pick.randrange(len(b) + 1):]
            case 5: b[i:i + 2] = b"\xff\xff"
    return bytes(b)

def read_damaged(n, seed, note):
    "Read n damaged files, from memory and from disk; what is neither an image nor a ValueError of one line is a fault."
    pick, files, counts = random.Random(seed), list(good_files().items()), dict(read=0, refused=0)
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (8*2**30, resource.RLIM_INFINITY))
    path = Path(note).with_suffix(".img")
    for i in range(n):
        name, content = pick.choice(files)
        path.write_bytes(content := damaged(content, pick))
        source = path if i % 2 else io.BytesIO(content)
        signal.alarm(20)
        try:
            pages = read_header(source, check=True).pages
            x = read_image(source, pick.randrange(min(pages, 4)), pick.choice((1, 3)))
            assert x.isfinite().all() and x.min() >= 0 and x.max() <= 1 and x.dim() == 4, (name, x.shape)
            counts["read"] += 1
        except ValueError as e:
            assert len(str(e).splitlines()) == 1 and len(str(e)) < 600, (name, str(e))
            counts["refused"] += 1
        signal.alarm(0)
    write_json(note, counts)

def fuzz_files(n, seed=0):
    "{read, refused}, or an error that says which file was at fault."
    with folder() as where:
        code = ended(in_child(read_damaged, n, seed, where/"counts.json", said=where/"said"))
        if code:
            shutil.copy(where/"counts.img", kept := Path(tempfile.gettempdir())/f"damaged-{seed}")
            raise RuntimeError(f"status {code}: {(where/'said').read_text()[-3000:]}, the file is {kept}")
        return json.loads((where/"counts.json").read_text())

# --- commands that make no sense

WORDS = ["", " ", "-1", "0", "1", "2", "1.5", "nan", "inf", "-inf", "1e308", "1e-320", "99999999999999999999",
         "0x10", "1,5", "Ü ß", "no such",
         "../..", "/dev/null", "/proc/self/mem", "/proc/x/y", "/", "a"*300, "none", "--", "-h", "True", "[1]", "{}",
         "'", "$(ls)", "optimised"]

def options():
    "{command: its options} as the command line knows them."
    from typer.main import get_command
    from avae.cli import app
    return {k: [p.opts[0] for p in c.params if p.opts[0].startswith("-")] for k, c in get_command(app).commands.items()}

SLOW = {"--epochs", "--align", "--search-warmup", "--workers", "--compile", "--download", "--n"}  # long, not wrong


def a_command(pick, pictures):
    "Words of a command that would take a moment if they made sense, with one to three that may not."
    known = options()
    command = pick.choice(["train"]*6 + ["demo", "explore", "doctor", "reproduce", "no such"])
    words = [command] if command != "train" else ["train", "--data", str(pictures), "--size", "8", "--epochs", "1",
                                                  "--out", "run"]
    if command == "demo": words += ["--n", "1", "--out", "run"]
    if command == "explore": words += ["--weights", pick.choice(WORDS)]  # never one that exists: it would serve a page
    if command == "reproduce": words += [pick.choice(WORDS) or "x"]
    if command == "doctor": words += [pick.choice(WORDS) or "x"]
    for _ in range(pick.choice((1, 1, 1, 2))):
        option = pick.choice([k for k in known.get(command, ["--x"]) if k not in SLOW] or ["--x"])
        words += [option] + ([pick.choice(WORDS)] if pick.random() < 0.8 else [])
    return words

def run_command(words, where):
    os.chdir(where)
    resource.setrlimit(resource.RLIMIT_AS, (6*2**30, resource.RLIM_INFINITY))
    sys.exit(run_main(words))

def fuzz_commands(n, seed=0):
    "Run n commands -> how many were refused or obeyed; a traceback, a fault of the program or half a file is an error."
    pick, counts, bad = random.Random(seed), {"obeyed": 0, "refused": 0}, []
    with folder() as where:
        pictures = where/"pictures"
        pictures.mkdir()
        for i in range(4): Image.fromarray(np.full((8, 8), 60*i, np.uint8)).save(pictures/f"{i}.png")
        for i in range(n):
            words, said, here = a_command(pick, pictures), where/"said", where/f"at{i}"
            here.mkdir()
            said.unlink(missing_ok=True)
            code = ended(in_child(run_command, words, here, said=said, limit=60))
            text = said.read_text(errors="replace")
            half = [p for p in here.rglob("*") if p.name.startswith(".tmp-")]
            if code not in (0, 1, 2) or "Traceback" in text or "fault of the program" in text or half:
                bad.append(f"avae {words}: status {code}, {half}\n{text[-1500:]}")
            counts["obeyed" if code == 0 else "refused"] += 1
            shutil.rmtree(here)
    if bad: raise RuntimeError(f"{len(bad)} of {n} commands:\n" + "\n".join(bad[:30]))
    return counts

# --- a poor place to run

def become_nobody():
    "A user without a home, without a name and without rights; what is loaded later must have been loaded before."
    with folder() as warm, open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        run_main(["demo", "--n", "1", "--out", str(warm)])
    for k in ("HOME", "XDG_CACHE_HOME", "USER", "LOGNAME", "MPLCONFIGDIR"): os.environ.pop(k, None)
    if not os.getuid(): os.setgroups([]), os.setgid(54321), os.setuid(54321)

def run_main(words):
    "The status with which a command ends, or its last words."
    from avae.cli import main
    sys.argv = ["avae", *words]
    try: main()
    except SystemExit as e: return e.code or 0

def somewhere_poor(where):
    "No home, no user name, no network, no place to write but one folder."
    tried = []
    sys.addaudithook(lambda name, args: tried.append((name, str(args)[:200]))
                     if name in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname") else None)
    become_nobody()
    os.chdir(where/"mine")
    code = run_main(["demo", "--n", "8", "--out", "out", "--json", "numbers.json"])
    assert not code and Path("out/story.png").exists() and not tried, (code, tried)

def poor():
    "Does the demo run there?"
    with folder() as where:
        for name, mode in (("mine", 0o777), ("not mine", 0o555)):
            (where/name).mkdir()
            (where/name).chmod(mode)
        code = ended(in_child(somewhere_poor, where, said=where/"said"))
        if code: raise RuntimeError((where/"said").read_text()[-3000:])
        return True

def not_mine():
    "Nothing can be written: one sentence, before any work -> what was said."
    said = []
    with folder() as where:
        (where/"closed").mkdir()
        (where/"closed").chmod(0o555)
        for words in (["demo", "--out", str(where/"closed"/"x")], ["train", "--out", str(where/"closed"/"x")],
                      ["demo", "--out", "/proc/x"]):
            def run():
                become_nobody()
                sys.exit(run_main(words))
            assert ended(in_child(run, said=where/"said")) == 1, words
            said.append((where/"said").read_text().strip())
            (where/"said").unlink()
            assert len(said[-1].splitlines()) == 1 and "cannot write" in said[-1], said[-1]
    return [s.replace(str(where), "...") for s in said]

def main():
    parser = argparse.ArgumentParser(description="Faults on purpose.")
    for name, n in (("kills", 50), ("disks", 20), ("files", 10000), ("commands", 2000), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=n)
    parser.add_argument("--only", choices=WORK, help="kill this kind of work, and nothing else")
    parser.add_argument("--json", help="write what was found to this file")
    o, found = parser.parse_args(), {}
    if o.only: return print(json.dumps(kills(o.kills, o.seed, [o.only])))
    for name, what in (("two runs in one folder", two_at_once), ("no shared memory", without_shared_memory),
                       ("a clock that jumps", jumping_clock), ("no home, no network", poor),
                       ("nothing can be written", not_mine),
                       ("kills", lambda: kills(o.kills, o.seed)), ("full disks", lambda: full_disk(o.disks, o.seed)),
                       ("damaged files", lambda: fuzz_files(o.files, o.seed)),
                       ("senseless commands", lambda: fuzz_commands(o.commands, o.seed))):
        start = time.monotonic()
        found[name] = what()
        print(f"{name}: {found[name]}, {time.monotonic() - start:.0f} s", flush=True)
    if o.json: write_json(o.json, found)

if __name__ == "__main__": main()
