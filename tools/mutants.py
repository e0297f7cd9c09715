#!/usr/bin/env python
"""Are the tests awake? Change one thing in a module, a sign, a comparison, a number, and see whether its properties,
its comparisons with other programs, or the tests in its own notebook notice. It goes on where it was stopped.

    python tools/mutants.py affine optimizers inference memory --sample 60 --json nbs/results/mutants.json
"""
import argparse, ast, importlib.util, json, os, random, re, signal, sys, time, traceback
from pathlib import Path
import hypothesis, kornia.geometry, matplotlib, scipy.optimize, torch, torch._dynamo, torchvision.transforms.v2
import fastcore.test, nbdev.showdoc  # children find all of these there; nothing of avae may be loaded yet

ROOT = Path(__file__).resolve().parents[1]
SWAP = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Lt: ast.GtE, ast.Gt: ast.LtE,
        ast.LtE: ast.Gt, ast.GtE: ast.Lt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.And: ast.Or, ast.Or: ast.And,
        ast.USub: ast.UAdd, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd}
ASKED = {  # module: sections of tests/test_properties.py, words in the names of comparisons
    "affine": ("boxes|poses and|moving", "warp"), "optimizers": ("searches", "quasi|multistart|search"),
    "inference": ("posteriors", "ELBO|bound|same of"), "memory": ("carried", "no comparison")}

# --- changes

def places(tree):
    "All that can be changed in functions: operators, and numbers outside of annotations and defaults."
    for f in ast.walk(tree):
        if not isinstance(f, ast.FunctionDef): continue
        for n in (m for statement in f.body for m in ast.walk(statement)):
            if type(getattr(n, "op", None)) in SWAP: yield n, "op"
            elif isinstance(n, ast.Compare) and type(n.ops[0]) in SWAP: yield n, "ops"
            elif isinstance(n, ast.Constant) and type(n.value) in (int, float): yield n, "value"

def distinct(tree): return list({id(n): (n, what) for n, what in places(tree)}.values())

def mutant(source, k):
    "The module with its k-th place changed -> source, and what was changed."
    tree = ast.parse(source)
    n, what = distinct(tree)[k]
    before = ast.unparse(n)
    if what == "op": n.op = SWAP[type(n.op)]()
    elif what == "ops": n.ops[0] = SWAP[type(n.ops[0])]()
    else: n.value += 1
    return ast.unparse(ast.fix_missing_locations(tree)), f"line {n.lineno}: {before} -> {ast.unparse(n)}"

class Changed:
    "Finds a changed module in place of the real one."
    def __init__(self, name, source): self.name, self.source = name, source
    def find_spec(self, name, *_): return importlib.util.spec_from_loader(name, self) if name == self.name else None
    def create_module(self, spec): return None
    def exec_module(self, module): exec(compile(self.source, f"<changed {self.name}>", "exec"), module.__dict__)

# --- tests: whatever they raise is what they noticed

def sections():
    "{line: section} of tests/test_properties.py."
    lines = (ROOT/"tests"/"test_properties.py").read_text().splitlines()
    return {i: line for i, line in enumerate(lines, 1) if line.startswith("# --- ")}

def properties(module):
    "Those of the module's sections, with a few examples each."
    hypothesis.settings.register_profile("few", max_examples=6, derandomize=True, deadline=None, database=None,
                                         suppress_health_check=list(hypothesis.HealthCheck))
    hypothesis.settings.load_profile("few")
    import test_properties
    heads, wanted = sections(), ASKED[module][0]
    for f in vars(test_properties).values():
        if not hasattr(f, "hypothesis"): continue
        line = f.hypothesis.inner_test.__code__.co_firstlineno
        if re.search(wanted, heads[max(k for k in heads if k < line)]): f()

def comparisons(module):
    import test_against
    for name, (f, limit, _) in test_against.COMPARED.items():
        if re.search(ASKED[module][1], name) and "two processes" not in name: assert f()[0] <= limit, name

def notebook(module):
    "The lessons of its notebook."
    from tools.lessons import run_lessons
    run_lessons(module)

STAGES = dict(properties=properties, comparisons=comparisons, notebook=notebook)

def noticed(module, source, limit):
    "In a child of its own: by which kind of test the change is noticed, `None` if by none; and what it said."
    read, write = os.pipe()
    if not (pid := os.fork()):
        for stream in (1, 2): os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        try:
            torch.set_num_threads(1)
            matplotlib.use("Agg")
            signal.alarm(limit)
            sys.meta_path.insert(0, Changed(f"avae.{module}", source))
            sys.path[:0] = [str(ROOT), str(ROOT/"tests")]
            for name, stage in STAGES.items():
                os.write(write, f"{name} ".encode())
                stage(module)
            os._exit(0)
        except BaseException:
            os.write(write, ("\n" + traceback.format_exc()[-3000:]).encode())
            os._exit(1)
    os.close(write)
    with open(read) as f: stages, _, said = f.read().partition("\n")
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return (None if code == 0 else "time" if code == -signal.SIGALRM else stages.split()[-1]), said

def main():
    parser = argparse.ArgumentParser(description="Are the tests awake?")
    parser.add_argument("modules", nargs="+", choices=list(ASKED))
    parser.add_argument("--sample", type=int, default=60, help="mutants of each module, drawn at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    o = parser.parse_args()
    told = json.loads(o.json.read_text()) if o.json and o.json.exists() else {}
    sources = {m: (ROOT/"avae"/f"{m}.py").read_text() for m in o.modules}
    limits, picks = {}, []
    for m, source in sources.items():
        start, count = time.monotonic(), len(distinct(ast.parse(source)))
        by, said = noticed(m, ast.unparse(ast.parse(source)), 3000)
        if by: sys.exit(f"{m}: {by} fail without a change\n{said}")
        limits[m] = 60 + round(10*(time.monotonic() - start))
        print(f"{m}: {count} places, {time.monotonic() - start:.0f} s without a change", flush=True)
        told.setdefault(m, dict(places=count, mutants={}))
        picks += [(i, m, k) for i, k in enumerate(random.Random(o.seed).sample(range(count), min(o.sample, count)))]
    for _, m, k in sorted(picks):  # in turn, so that a part of it is a sample of all
        changed, what = mutant(sources[m], k)
        if what in (tried := told[m]["mutants"]): continue
        tried[what], _ = noticed(m, changed, limits[m])
        print(m, what, "|", tried[what] or "LIVES", flush=True)
        if o.json: o.json.write_text(json.dumps(told, indent=1) + "\n")
    for m in o.modules:
        tried = told[m]["mutants"]
        print(f"{m}: {sum(map(bool, tried.values()))} of {len(tried)} mutants die", flush=True)

if __name__ == "__main__": main()
