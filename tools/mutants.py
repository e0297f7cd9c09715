#!/usr/bin/env python
"""Are the tests awake? Change one thing in a module, a sign, a comparison, a number, and see whether properties and
comparisons notice. The notebooks' own tests are not asked, so this is the least that is noticed.

    python tools/mutants.py affine optimizers inference memory --sample 10 --json nbs/results/mutants.json
"""
import argparse, ast, importlib.util, json, os, random, signal, sys
from pathlib import Path
import hypothesis, torch, torch._dynamo, torchvision  # children find them there; nothing of avae may be loaded yet

ROOT = Path(__file__).resolve().parents[1]
SWAP = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Lt: ast.GtE, ast.Gt: ast.LtE,
        ast.LtE: ast.Gt, ast.GtE: ast.Lt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.And: ast.Or, ast.Or: ast.And,
        ast.USub: ast.UAdd, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd}

def places(tree):
    "All that can be changed in a module: operators, and numbers outside of annotations and defaults."
    for f in ast.walk(tree):
        if not isinstance(f, ast.FunctionDef): continue
        for n in (m for statement in f.body for m in ast.walk(statement)):
            if type(op := getattr(n, "op", None)) in SWAP: yield n, "op"
            elif isinstance(n, ast.Compare) and type(n.ops[0]) in SWAP: yield n, "ops"
            elif isinstance(n, ast.Constant) and type(n.value) in (int, float): yield n, "value"

def mutant(source, k):
    "The module with its k-th place changed -> source, and what was changed."
    tree = ast.parse(source)
    seen = list({(id(n), what): (n, what) for n, what in places(tree)}.values())
    n, what = seen[k % len(seen)]
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

def tests(only=None):
    "Run properties and comparisons in this process; whatever they raise is what they noticed."
    hypothesis.settings.register_profile("few", max_examples=6, derandomize=True, deadline=None, database=None,
                                         suppress_health_check=list(hypothesis.HealthCheck))
    hypothesis.settings.load_profile("few")
    sys.path[:0] = [str(ROOT), str(ROOT/"tests")]
    import test_properties, test_against
    for name, f in vars(test_properties).items():
        if name.startswith("test_") and "tmp_path" not in name and "file" not in name and "saved" not in name: f()
    for name, (f, limit, _) in test_against.COMPARED.items():
        if "two processes" in name: continue
        assert f()[0] <= limit, name

def survives(module, source):
    "In a child of its own: do all tests pass?"
    if pid := os.fork(): return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    for stream in (1, 2): os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    try:
        torch.set_num_threads(1)
        signal.alarm(400)
        sys.meta_path.insert(0, Changed(f"avae.{module}", source))
        tests()
        os._exit(0)
    except BaseException: os._exit(1)

def main():
    parser = argparse.ArgumentParser(description="Are the tests awake?")
    parser.add_argument("modules", nargs="+")
    parser.add_argument("--sample", type=int, default=10, help="mutants of each module")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    o, told = parser.parse_args(), {}
    for module in o.modules:
        source = (ROOT/"avae"/f"{module}.py").read_text()
        if not survives(module, ast.unparse(ast.parse(source))): sys.exit(f"{module}: the tests fail without a change")
        pick, alive = random.Random(o.seed), []
        for _ in range(o.sample):
            changed, what = mutant(source, pick.randrange(10**6))
            if survives(module, changed): alive.append(what)
            print(module, "lives" if alive and alive[-1] == what else "dies", what, flush=True)
        told[module] = dict(mutants=o.sample, died=o.sample - len(alive), alive=alive)
        if o.json: o.json.write_text(json.dumps(told, indent=1) + "\n")

if __name__ == "__main__": main()
