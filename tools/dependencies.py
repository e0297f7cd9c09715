#!/usr/bin/env python
"""What `pip install avae` brings along: known weaknesses (pip-audit, by network) and licences. It ends with 1 for a
weakness or a licence that asks for more than a notice, and with 3 if all is well but for a service that did not answer.

    python tools/dependencies.py --json nbs/results/dependencies.json
    python tools/dependencies.py --extra dev
    python tools/dependencies.py --oldest       # pins of the oldest versions that settings.ini allows
"""
import argparse, json, re, shlex, subprocess, sys, tempfile
from configparser import ConfigParser
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from packaging.requirements import Requirement

FREE = r"MIT|BSD|Apache|PSF|Python Software|ISC|HPND|CMU|Unlicense|MPL|Mozilla|Zlib|matplotlib|0BSD|CC0|public domain"
NVIDIA = ("nvidia-", "cuda-")  # with PyTorch's wheel for GPUs, under licences of their own; not with that for CPUs


def declared(extra):
    "The requirements in settings.ini."
    config = ConfigParser()
    config.read(Path(__file__).resolve().parents[1]/"settings.ini", encoding="utf-8")
    words = "".join(config["DEFAULT"][f"{k}requirements"] + " " for k in ("", f"{extra}_") if extra or not k)
    return [Requirement(w) for w in shlex.split(words)]

def oldest(requirement):
    "Pinned to the oldest version that is allowed; as it is, where none is named."
    least = [s.version for s in requirement.specifier if s.operator == ">="]
    return f"{requirement.name}=={least[0]}" if least else requirement.name

def installed(extra):
    "Names of all packages that are needed, as far as they are installed."
    todo, known = declared(extra), {}
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
    "What pip-audit knows of these versions: [(name, version, its number), ...], of how many, and what kept it from more."
    with tempfile.TemporaryDirectory() as folder:
        (path := Path(folder)/"all.txt").write_text("".join(f"{k}=={v}\n" for k, v in packages.items()))
        command = [sys.executable, "-m", "pip_audit", "-r", str(path), "--no-deps", "--disable-pip", "-f", "json",
                   "--progress-spinner", "off"]
        r = subprocess.run(command, capture_output=True, text=True)
    if not r.stdout.startswith("{"): return [], 0, (r.stderr.strip().splitlines() or ["no answer"])[-1][:200]
    told = json.loads(r.stdout)["dependencies"]
    audited, why = [d for d in told if "vulns" in d], [d.get("skip_reason", "") for d in told if "vulns" not in d]
    return [[d["name"], d["version"], w["id"]] for d in audited for w in d["vulns"]], len(audited), (why or [""])[0][:200]

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
    parser.add_argument("--oldest", action="store_true", help="print pins of the oldest versions, and no more")
    o = parser.parse_args()
    if o.oldest: return print(*map(oldest, declared(o.extra)), sep="\n")
    packages = installed(o.extra)
    found, (bad, audited, why) = licences(packages), weaknesses(packages)
    strict = {k: v for k, v in found.items() if not re.search(FREE, v, re.I) and not k.startswith(NVIDIA)}
    for k, v in packages.items(): print(f"{k:30}{v:16}{found.get(k, '?')}")
    if o.json:
        record = dict(packages=len(packages), audited=audited, weaknesses=bad, look_at=strict, licences=found,
                      versions=packages)
        Path(o.json).write_text(json.dumps(record, indent=1) + "\n")
    for k, v in strict.items(): print("LICENCE TO LOOK AT:", k, v)
    for row in bad: print("VULNERABLE:", *row)
    if not bad: print(f"vulnerable: none of the {audited} packages that could be looked up")
    if audited < len(packages):
        print(f"NO SERVICE for {len(packages) - audited} of {len(packages)} packages, which says nothing of them: {why}")
    sys.exit(1 if bad or strict else 3 if audited < len(packages) else 0)

if __name__ == "__main__": main()
