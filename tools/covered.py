#!/usr/bin/env python
"""How many lines of the package do the tests run? The lessons of each notebook, on the module that it exports, and
tests/, with all processes that they start.

    python tools/covered.py --json nbs/results/coverage.json      # goes on where it was stopped; --fresh: anew
"""
import argparse, json, os, shutil, subprocess, sys
from pathlib import Path
from lessons import ROOT, notebooks

FOLDER = ROOT/".coverage-parts"
CONFIG = f"""[run]
source_pkgs = avae
data_file = {FOLDER}/data
parallel = true
patch = subprocess, _exit, fork
[report]
ignore_errors = true
exclude_also =
    if TYPE_CHECKING
include = {ROOT}/avae/*
omit = */_modidx.py
"""

def measured(name, *command):
    "Run a command and note its lines; None if it was run before, else whether it succeeded."
    if (mark := FOLDER/f"{name}.done").exists(): return None
    env = os.environ | dict(PYTHONPATH=str(ROOT), COVERAGE_FILE=str(FOLDER/"data"))
    words = [sys.executable, "-m", "coverage", "run", f"--rcfile={FOLDER}/config", *map(str, command)]
    r = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True)
    if r.returncode: print(name, "failed:", (r.stdout + r.stderr)[-1500:], flush=True)
    else: mark.touch()
    return r.returncode == 0

def report():
    "{file: percent of its lines}, and of all."
    coverage = [sys.executable, "-m", "coverage"]
    config = f"--rcfile={FOLDER}/config"
    subprocess.run([*coverage, "combine", "--keep", "-q", config], cwd=ROOT, capture_output=True)
    write = [*coverage, "json", "-q", config, "-o", FOLDER/"report.json"]
    subprocess.run(write, cwd=ROOT, capture_output=True, check=True)
    told = json.loads((FOLDER/"report.json").read_text())
    files = {Path(k).stem: v for k, v in told["files"].items()}
    return dict(all=round(told["totals"]["percent_covered"], 1), lines=told["totals"]["num_statements"],
                modules={k: round(v["summary"]["percent_covered"], 1) for k, v in files.items()},
                missing={k: v["missing_lines"] for k, v in files.items() if v["missing_lines"]})

def main():
    parser = argparse.ArgumentParser(description="How many lines of the package do the tests run?")
    parser.add_argument("--fresh", action="store_true", help="begin anew")
    parser.add_argument("--only", default="", help="parts with this in their name, such as lessons or tests")
    parser.add_argument("--json", type=Path, help="write what was found to this file")
    o = parser.parse_args()
    if o.fresh: shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(exist_ok=True)
    (FOLDER/"config").write_text(CONFIG)
    parts = [(f"lessons of {m}", "tools/lessons.py", m) for m in notebooks()]
    tests = sorted((ROOT/"tests").glob("test_*.py"))
    parts += [(f"tests {p.stem}", "-m", "pytest", "-q", "-n", 0, "--timeout", 0, p) for p in tests]
    failed = [name for name, *command in parts if o.only in name and measured(name, *command) is False]
    found = report() | {"failed": failed, "parts": len(list(FOLDER.glob("*.done"))), "of": len(parts)}
    if o.json: o.json.write_text(json.dumps(found, indent=1) + "\n")
    for k, v in sorted(found["modules"].items(), key=lambda kv: kv[1]):
        print(f"{v:6.1f}  {k}  {found['missing'].get(k, '')}")
    done = f"{found['parts']} of {found['of']} parts, failed: {failed or 'none'}"
    print(f"{found['all']} % of {found['lines']} lines; {done}")

if __name__ == "__main__": main()
