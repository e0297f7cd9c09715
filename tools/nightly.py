#!/usr/bin/env python
"""Every property of tests/test_properties.py with many examples, others for each seed. It stops for no failure, says
how each was found, and goes on where it was stopped.

    python tools/nightly.py --json nbs/results/properties.json
"""
import argparse, inspect, json, sys, time, traceback
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT/"tests"), str(ROOT)]
import hypothesis
import conftest  # noqa: F401, it knows the profiles
hypothesis.settings.load_profile("nightly")
import test_properties

def properties():
    "{name: test} of all tests that draw examples."
    return {k[5:]: f for k, f in vars(test_properties).items() if k.startswith("test_") and hasattr(f, "hypothesis")}

def run(test, seed, folder):
    "Try one property -> how many examples, seconds, and what failed (None if nothing did)."
    inner, examples, start, failed = test.hypothesis.inner_test, 0, time.monotonic(), None
    def counted(*args, **more):
        nonlocal examples
        examples += 1
        return inner(*args, **more)
    test.hypothesis.inner_test = counted
    wants = "tmp_path_factory" in inspect.signature(test).parameters
    given = dict(tmp_path_factory=SimpleNamespace(mktemp=lambda name: Path(mkdtemp(dir=folder)))) if wants else {}
    try: hypothesis.seed(seed)(test)(**given)
    except Exception: failed = traceback.format_exc()
    finally: test.hypothesis.inner_test = inner
    return dict(examples=examples, seconds=round(time.monotonic() - start, 1), failed=failed)

def main():
    parser = argparse.ArgumentParser(description="Every property with many examples.")
    parser.add_argument("--seed", type=int, default=date.today().toordinal(), help="else one of today")
    parser.add_argument("--only", default="", help="properties with this in their name")
    parser.add_argument("--json", type=Path, help="write what was found to this file after each property")
    o, found = parser.parse_args(), {}
    if o.json and o.json.exists():
        before = json.loads(o.json.read_text())
        if before["seed"] == o.seed: found = before["properties"]
    with TemporaryDirectory() as folder:
        for name, test in properties().items():
            if name in found or o.only not in name: continue
            found[name] = told = run(test, o.seed, folder)
            print(f"{name}: {told['examples']} examples, {told['seconds']} s", told["failed"] or "", flush=True)
            if o.json: o.json.write_text(json.dumps(dict(seed=o.seed, properties=found), indent=1) + "\n")
    bad = [k for k, v in found.items() if v["failed"]]
    together = sum(v["examples"] for v in found.values())
    print(f"{together} examples of {len(found)} properties, failed: {', '.join(bad) or 'none'}")
    sys.exit(bool(bad))

if __name__ == "__main__": main()
