"""What a page shows of a library notebook: the source of every exported cell, and what each function takes and gives.

An exported cell is folded where it is marked `#| export`, and open where it is marked `#| exports`. Signatures and
tables of parameters are read from the text of the package: `show_doc` shortens types, mixes up comments, and would
have to run the notebooks.
"""
import ast, json, re, textwrap
from functools import cache
from io import StringIO
from tokenize import COMMENT, generate_tokens
from execnb.nbio import mk_cell
from nbdev.config import get_config
from nbdev.process import Processor
from nbdev.processors import FilterDefaults, add_fold, clean_show_doc, exec_show_docs, mv_exports, rm_export

EXPORTS = {'export', 'exporti', 'exports'}
MODULE = re.compile(r'^#\|\s*default_exp\s+(\S+)', re.M)

def defined(source):
    "The names that a cell defines at its top level, in their order"
    out = []
    for node in ast.parse(source).body:
        targets = getattr(node, 'targets', [getattr(node, 'target', node)])
        out += [name for t in targets if (name := getattr(t, 'name', getattr(t, 'id', None)))]
    return out

def fold_source(cell):
    "Keep an exported cell, folded or open; take out the other hidden ones"
    if not is_exported(cell): return rm_export(cell)
    what = 'Source: ' + ', '.join(defined(cell.source)) if defined(cell.source) else 'Imports'
    how = 'show' if 'exports' in cell.directives_ else 'true'
    cell.source = f'#| code-fold: {how}\n#| code-summary: {json.dumps(what)}\n{cell.source}'

def is_exported(cell): return bool(cell.cell_type == 'code' and (cell.directives_ or {}).keys() & EXPORTS)

def anchors(cell, known):
    "A place to link to for each name in the source that has no heading of its own"
    tree = ast.parse(cell.source)
    names = [f'{c.name}.{n.name}' for c in tree.body if isinstance(c, ast.ClassDef) for n in c.body if hasattr(n, 'name')]
    ids = [n.lower() for n in defined(cell.source) + names if n.lower() not in known]
    return [mk_cell(''.join(f'<span id="{i}"></span>' for i in ids), 'markdown')] if ids else []

class DocsFirst(Processor):
    "Put what is said of an exported cell before its source, in the order of the source"
    def begin(self):
        heads = re.findall(r'^### (\S+)$', '\n'.join(c.source for c in self.nb.cells if c.source.startswith('---')), re.M)
        known = {h.replace('\\', '').lower() for h in heads}
        out, docs = [], []
        for cell in reversed(self.nb.cells):
            if getattr(cell, 'has_sd', 0): docs.append(cell)
            elif is_exported(cell): out, docs = [*out, cell, *anchors(cell, known), *reversed(docs)], []
            else: out, docs = [*out, *docs, cell], []
        self.nb.cells[:] = out[::-1]

@cache
def package(module):
    "The syntax tree of a module of the package, and its comments by line"
    text = (get_config().lib_path/f'{module}.py').read_text()
    comments = {t.start[0]: t.string[1:].strip() for t in generate_tokens(StringIO(text).readline) if t.type == COMMENT}
    return ast.parse(text), comments

def find(tree, name):
    "The function or class of that dotted name; None where there is none"
    for part in name.split('.'):
        tree = next((n for n in tree.body if getattr(n, 'name', None) == part), None)
        if tree is None: return None
    return tree

def locate(module, name):
    "The module and the definition of a dotted name, which its class may have inherited, and its module imported"
    tree, (first, _, rest) = package(module)[0], name.partition('.')
    if node := find(tree, name): return module, node
    if cls := find(tree, first):
        bases = [b.id for b in getattr(cls, 'bases', []) if isinstance(b, ast.Name)] if rest else []
        return next(filter(None, (locate(module, f'{b}.{rest}') for b in bases)), None)
    ours = [n for n in tree.body if isinstance(n, ast.ImportFrom) and n.level and first in [a.name for a in n.names]]
    return locate(ours[0].module, name) if ours else None

def typing(node):
    "A type in words, and the help that typer would show"
    if node is None: return '', ''
    if not (isinstance(node, ast.Subscript) and ast.unparse(node.value) == 'Annotated'):
        return ast.unparse(node).strip('\'"').replace('nn.', '').replace('torch.', ''), ''
    kind, option = node.slice.elts
    return typing(kind)[0], next((ast.literal_eval(k.value) for k in option.keywords if k.arg == 'help'), '')

def takes(f):
    "The parameters of a function: (name with stars, annotation, default, the line that ends it), without self"
    a, plain = f.args, [*f.args.posonlyargs, *f.args.args]
    all_ = [(x.arg, x, d) for x, d in zip(plain, [None]*(len(plain) - len(a.defaults)) + a.defaults)]
    if a.vararg: all_.append((f'*{a.vararg.arg}', a.vararg, None))
    all_ += [(x.arg, x, d) for x, d in zip(a.kwonlyargs, a.kw_defaults)]
    if a.kwarg: all_.append((f'**{a.kwarg.arg}', a.kwarg, None))
    return [(name, x.annotation, d, (d or x).end_lineno) for name, x, d in all_ if name not in ('self', 'cls')]

def signature(name, f, is_class):
    "How a function is called, in lines of at most 100 characters"
    names = [n + (f'={ast.unparse(d)}' if d else '') for n, _, d, _ in takes(f)]
    if f.args.kwonlyargs and not f.args.vararg: names.insert(len(names) - len(f.args.kwonlyargs) - bool(f.args.kwarg), '*')
    gives = '' if is_class or not f.returns else f' -> {typing(f.returns)[0]}'
    line = f"{'class ' if is_class else ''}{name}({', '.join(names)}){gives}"
    return '\n    '.join(textwrap.wrap(line, 100, break_long_words=False, break_on_hyphens=False))

def parameters(f, comments):
    "Rows (names, types, meaning) of what a function takes and returns; one comment makes one row"
    end = f.returns.end_lineno if f.returns else f.lineno
    lines = {}
    for name, kind, _, line in takes(f): lines.setdefault(line, []).append((name, *typing(kind)))
    rows, given = [], comments.get(end, '')
    for line, group in lines.items():
        said = comments.get(line, '')
        if line == end and '->' in said: said, _, given = said.rpartition('->')
        elif line == end and f.returns: said = ''
        elif line == end: given = ''
        kinds = dict.fromkeys(kind for _, kind, _ in group if kind)
        rows.append(([n for n, *_ in group], list(kinds), group[0][2] or said.strip()))
    kind = typing(f.returns)[0]
    if given or kind not in ('', 'None'): rows.append(('returns', [kind]*bool(kind), given.strip()))
    return rows

def fields(cls, comments):
    "Rows (names, types, meaning) of the fields of a class, one comment each"
    return [([n.target.id], [typing(n.annotation)[0]], comments.get(n.end_lineno, ''))
            for n in cls.body if isinstance(n, ast.AnnAssign)]

def table(rows, what):
    "Rows as a table, where any of them says something"
    if not any(said for *_, said in rows): return ''
    code = lambda words: ', '.join(f'`{w}`'.replace('|', r'\|') for w in words)
    cells = [('**returns**' if n == 'returns' else code(n), code(kinds), said.replace('|', r'\|')) for n, kinds, said in rows]
    lines = [f'| {what} | type | meaning |', '|---|---|---|', *('| ' + ' | '.join(c) + ' |' for c in cells)]
    return '\n'.join(['::: {.parameters}\n', *lines, '\n:::\n'])

def api(module, name):
    "Heading, link to the source, signature, what it does, and a table of parameters or fields"
    cfg = get_config()
    if not (found := locate(module, name)): raise ValueError(f'show_doc({name}): no such name in {cfg.lib_name}/{module}.py')
    (module, node), comments = found, package(found[0])[1]
    link = f'{cfg.git_url}/blob/{cfg.branch}/{cfg.lib_name}/{module}.py#L{node.lineno}'
    title = name.replace('_', r'\_')                              # __call__ is no bold call
    is_class = isinstance(node, ast.ClassDef)
    f = find(node, '__init__') if is_class else node
    sign = f'```python\n{signature(name.split(".")[-1], f, is_class)}\n```' if f else ''
    rows = parameters(f, comments) if f else fields(node, comments)
    parts = [f'---\n\n[source]({link}){{target="_blank" style="float:right; font-size:smaller"}}', f'### {title}', sign,
             ast.get_docstring(node) or '', table(rows, 'parameter' if f else 'field')]
    return '\n\n'.join(p for p in parts if p) + '\n'

class Documented(Processor):
    "Write the documentation of a name in place of `show_doc(name)`"
    def begin(self): self.module = next((m[1] for c in self.nb.cells if (m := MODULE.search(c.source or ''))), None)
    def __call__(self, cell):
        if cell.cell_type != 'code' or not (name := re.search(r'^show_doc\(([\w.]+)', cell.source or '', re.M)): return
        cell.cell_type, cell.source = 'markdown', api(self.module, name[1])
        cell.pop('outputs', None)
        cell.pop('execution_count', None)

class Pages(FilterDefaults):
    "nbdev's processing, with our documentation, and with the source of the package on its pages"
    def base_procs(self):
        ours = {exec_show_docs: Documented, rm_export: fold_source, mv_exports: DocsFirst}
        return [ours.get(p, p) for p in super().base_procs() if p not in (add_fold, clean_show_doc)]

def plain(markdown):
    "The last paragraph of a text, without its marks and its formulas' dollars"
    parts = [p for p in re.split(r'\n\s*\n', markdown) if not re.match(r'\s*(#|\||```|\$\$|:::|!\[|- |\d\. )', p)]
    text = re.sub(r'!?\[([^\]]*)\]\([^)]*\)', r'\1', ' '.join(parts[-1].split()) if parts else '')
    return textwrap.shorten(re.sub(r'[*`$\\]', '', text), 300, placeholder=' ...').rstrip(':')

def describe_pictures(nb):
    "Give each picture a text for whoever does not see it: its caption, or else the words that lead to it"
    words = ''
    for c in nb.cells:
        if c.cell_type == 'markdown' and not c.source.startswith('---'): words = plain(c.source) or words
        shown = [k for o in c.get('outputs', []) for k in o.get('data', {}) if k.startswith('image/')]
        if c.cell_type != 'code' or not shown or '#| fig-alt:' in c.source: continue
        caption = re.search(r'^#\| fig-cap: *(.+)$', c.source, re.M)
        c.source = f'#| fig-alt: {caption[1] if caption else json.dumps(words, ensure_ascii=False)}\n{c.source}'
