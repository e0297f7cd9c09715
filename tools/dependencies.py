#!/usr/bin/env python
"""What `pip install avae` brings along: known weaknesses (pip-audit, by network) and licences. It fails for a weakness,
for a licence that asks for more than a notice, and where nothing could be looked up.

    python tools/dependencies.py --json nbs/results/dependencies.json
    python tools/dependencies.py --extra dev
"""
import argparse, json, re, shlex, subprocess, sys, tempfile
from configparser import ConfigParser
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from packaging.requirements import Requirement

FREE = r"MIT|BSD|Apache|PSF|Python Software|ISC|HPND|CMU|Unlicense|MPL|Mozilla|Zlib|matplotlib|0BSD|CC0|public domain"
NVIDIA = ("nvidia-", "cuda-")  # with PyTorch's wheel for GPUs, under licences of their own; not with that for CPUs


def installed(extra):
    "Names of all packages that are needed, as far as they are installed."
    config = ConfigParser()
    config.read(Path(__file__).resolve().parents[1]/"settings.ini")
    words = "".join(config["DEFAULT"][f"{k}requirements"] + " " for k in ("", f"{extra}_") if extra or not k)
    todo, known = [Requirement(w) for w in shlex.split(words)], {}
    while todo:
        r = todo.pop()
        name = re.sub(r"[-_.]+", "-", r.name).lower()
        try: found, needs = version(name), requires(name) or []
        except PackageNotFoundError: continue
        if r.extras <= known.get(name, (None, set()))[1] and name in known: continue
        known[name] = found.split("+")[0], set(r.extras)
        for need in map(Requirement, needs):
            if not need.marker or any(need.marker.evaluate({"extra": e}) for e in r.extras or [""]): todo.append(need)
    return {k: v for k, (v, _) in sorted(known.items())}

def weaknesses(packages):
    "What pip-audit knows of these versions: [(name, version, its number), ...], and of how many it knows."
    with tempfile.TemporaryDirectory() as folder:
        (path := Path(folder)/"all.txt").write_text("".join(f"{k}=={v}\n" for k, v in packages.items()))
        command = [sys.executable, "-m", "pip_audit", "-r", str(path), "--no-deps", "--disable-pip", "-f", "json",
                   "--progress-spinner", "off"]
        r = subprocess.run(command, capture_output=True, text=True)
    if not r.stdout.startswith("{"): sys.exit(f"pip-audit failed: {r.stderr[-500:]}")
    audited = [d for d in json.loads(r.stdout)["dependencies"] if "vulns" in d]
    return [[d["name"], d["version"], w["id"]] for d in audited for w in d["vulns"]], len(audited)

def licences(packages):
    "{name: licence} by pip-licenses."
    command = [sys.executable, "-m", "piplicenses", "--from=mixed", "--format=json", "--with-system", "--packages",
               *packages]
    rows = json.loads(subprocess.check_output(command, text=True))
    return {re.sub(r"[-_.]+", "-", r["Name"]).lower(): r["License"].split("\n")[0][:60] for r in rows}

def main():
    parser = argparse.ArgumentParser(description="Weaknesses and licences of what is installed along.")
    parser.add_argument("--extra", help="also what this extra brings: dev, explore, experiments")
    parser.add_argument("--json", help="write what was found to this file")
    o = parser.parse_args()
    packages = installed(o.extra)
    found, (bad, audited) = licences(packages), weaknesses(packages)
    strict = {k: v for k, v in found.items() if not re.search(FREE, v, re.I) and not k.startswith(NVIDIA)}
    for k, v in packages.items(): print(f"{k:30}{v:16}{found.get(k, '?')}")
    print(f"{len(packages)} packages, {audited} audited, {len(bad)} known weaknesses")
    if audited < len(packages): print(f"not audited: pip-audit could not look up {len(packages) - audited} packages")
    for row in bad: print("weakness:", *row)
    for k, v in strict.items(): print("licence to look at:", k, v)
    if o.json:
        record = dict(packages=len(packages), audited=audited, weaknesses=bad, look_at=strict, licences=found,
                      versions=packages)
        Path(o.json).write_text(json.dumps(record, indent=1) + "\n")
    sys.exit(bool(bad or strict or audited < len(packages)))

if __name__ == "__main__": main()
