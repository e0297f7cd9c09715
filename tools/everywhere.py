#!/usr/bin/env python
"""Does the wheel work elsewhere? For each Python: an environment of its own, the wheel and what it needs, the demo in
another folder (blanks and umlauts in its name, the locale C), and properties, security and comparisons.

    python tools/everywhere.py python3.10 python3.14 --json nbs/results/everywhere.json
    python tools/everywhere.py python3.11 --oldest         # with the oldest versions that settings.ini allows
    python tools/everywhere.py /some/venv/bin/python --here     # in an environment that has all but the wheel
"""
import argparse, json, os, re, shutil, subprocess, sys, tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOOLS = "pytest pytest-timeout pytest-xdist hypothesis scipy nbformat nbclient ipykernel PyYAML h5py zarr".split()
TESTS = ["tests/test_properties.py", "tests/test_security.py"]
SKIP = "not page and not token and not this_computer"  # the page needs Voila, which the wheel does not

def run(*command, **more):
    words = [*map(str, command)]
    return subprocess.run(words, capture_output=True, text=True, encoding="utf-8", errors="replace", **more)

def must(*command, **more):
    r = run(*command, **more)
    if r.returncode: raise RuntimeError(f"{command}: {(r.stdout + r.stderr)[-2000:]}")
    return r.stdout

def environment(python, folder, wheel, oldest):
    "A new environment with the wheel -> its Python."
    must(python, "-m", "venv", folder)
    new, pins = folder/"bin"/"python", []
    if oldest: pins = must(sys.executable, ROOT/"tools"/"dependencies.py", "--oldest").split()
    must(new, "-m", "pip", "install", "-q", wheel, *pins, *TOOLS)
    return new

def tried(python, folder, how):
    "A row of the table: versions, and what the demo and the tests said."
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | dict(LC_ALL="C", LANG="C", OMP_NUM_THREADS="1")
    (here := folder/"zwei Wörter ß").mkdir()
    said = ("import sys, avae, torch, numpy; "
            "print(sys.version.split()[0], torch.__version__, numpy.__version__, avae.__file__)")
    version, torch, numpy, file = must(python, "-c", said, cwd=here, env=env).split(maxsplit=3)
    if str(ROOT/"avae") in file: raise RuntimeError(f"that is not the wheel, but {file}")
    must(python, "-m", "avae.cli", "demo", "--n", 16, "--out", "ein Bild ä", cwd=here, env=env)
    for name in ("tests", "tools", ".github"): shutil.copytree(ROOT/name, folder/name)
    for name in ("conftest.py", "pytest.ini", "settings.ini"): shutil.copy(ROOT/name, folder)
    r = run(python, "-m", "pytest", "-q", "-n", 0, "-p", "no:cacheprovider", "--rootdir", folder, *TESTS, "-k", SKIP,
            cwd=folder, env=env)
    for line in re.findall(r"^FAILED .*", r.stdout, re.M): print(line, flush=True)
    last = re.search(r"=* *(\d+ (?:passed|failed).*?) in [\d.]+s", r.stdout + r.stderr)
    return dict(python=version, torch=torch.split("+")[0], numpy=numpy, how=how, what="demo; properties, security",
                result=f"demo runs; {last[1] if last else (r.stdout + r.stderr)[-300:]}")

def main():
    parser = argparse.ArgumentParser(description="Does the wheel work elsewhere?")
    parser.add_argument("pythons", nargs="+")
    parser.add_argument("--oldest", action="store_true", help="with the oldest versions that settings.ini allows")
    parser.add_argument("--here", action="store_true", help="in the environments of these Pythons")
    parser.add_argument("--json", type=Path, help="add what was found to this file")
    o, rows = parser.parse_args(), []
    with tempfile.TemporaryDirectory() as tmp:
        must(sys.executable, "-m", "build", "--wheel", "-o", tmp, ROOT)
        wheel = next(Path(tmp).glob("*.whl"))
        for k, python in enumerate(o.pythons):
            (folder := Path(tmp)/str(k)).mkdir()
            if o.here: must(python, "-m", "pip", "install", "-q", "--no-deps", "--force-reinstall", wheel)
            else: python = environment(python, folder/"venv", wheel, o.oldest)
            how = "wheel, oldest versions" if o.oldest else "wheel"
            rows.append(tried(python, folder, how))
            print(*rows[-1].values(), sep=" | ", flush=True)
    if not o.json: return
    old = json.loads(o.json.read_text())["rows"] if o.json.exists() else []
    new = {(r["python"], r["how"]) for r in rows}
    rows += [r for r in old if (r["python"], r["how"]) not in new]
    rows.sort(key=lambda r: ([int(n) for n in re.findall(r"\d+", r["python"])], r["how"]))
    o.json.write_text(json.dumps(dict(rows=rows), indent=1) + "\n")

if __name__ == "__main__": main()
