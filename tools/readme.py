"""Write README.md, with its pictures imgs/readme_*.png, from nbs/index.ipynb, without Quarto.

    python tools/readme.py            # --check: write nothing, exit 1 where they are not what the notebook gives
"""
import os, re, sys
from base64 import b64decode
from html.parser import HTMLParser
from execnb.nbio import read_nb
from nbdev.config import get_config
from nbdev.doclinks import NbdevLookup
from nbdev.processors import FilterDefaults

CALLOUT = re.compile(r'^:{3,} *\{\.callout-(\w+)([^}]*)\}\n(?:#+ *(.+)\n)?(.*?)^:{3,}$', re.M | re.S)

class Rows(HTMLParser):
    "The cells of an HTML table, row by row"
    def __init__(self, html):
        super().__init__()
        self.rows, self.inside = [], False
        self.feed(html)
    def handle_starttag(self, tag, attrs):
        if tag == 'tr': self.rows.append([])
        if tag in ('td', 'th'): self.rows[-1].append(''); self.inside = True
    def handle_endtag(self, tag):
        if tag in ('td', 'th'): self.inside = False
    def handle_data(self, data):
        if self.inside: self.rows[-1][-1] += ' '.join(data.split()).replace('|', r'\|')

def table(html):
    "An HTML table as a markdown table"
    head, *rows = [r for r in Rows(html).rows if r]
    return '\n'.join('| ' + ' | '.join(r) + ' |' for r in [head, ['---'] * len(head), *rows])

def alert(m):
    "A Quarto callout as a GitHub alert"
    title = m[3] or (re.search(r'title="(.*?)"', m[2]) or ['', ''])[1]
    lines = ([f'**{title.strip()}**', ''] if title else []) + m[4].strip().splitlines()
    return '\n'.join([f'> [!{m[1].upper()}]', *(f'> {line}'.rstrip() for line in lines)])

def fenced(text, lang=''): return f'```{lang}\n{text.strip()}\n```'

def output(o, opts, pics):
    "One output of a cell as markdown; a picture is added to `pics`"
    if o.output_type == 'stream': return fenced(''.join(o.text))
    if o.output_type == 'error': return fenced(f'{o.ename}: {o.evalue}')
    data = {k: ''.join(v) if isinstance(v, list) else v for k, v in o.data.items()}
    if 'image/png' in data:
        name, caption = f'imgs/readme_{len(pics) + 1}.png', opts.get('fig-cap', '')
        pics[name] = b64decode(data['image/png'])
        return f"![{opts.get('fig-alt', caption)}]({name})" + (f'\n\n*{caption}*' if caption else '')
    if 'text/markdown' in data: return data['text/markdown']
    if '<table' in data.get('text/html', ''): return table(data['text/html'])
    return fenced(data.get('text/plain', ''))

def code(cell, pics):
    "A code cell and its outputs as markdown, as its `#| echo: false` and the like want it"
    opts = {k: v.strip(' "\'') for k, v in re.findall(r'^#\|\s*([\w-]+):(.*)$', cell.source, re.M)}
    shown = lambda what: opts.get('include') != 'false' and opts.get(what) != 'false'
    source = re.sub(r'^#\|.*\n?', '', cell.source, flags=re.M)
    return ([fenced(source, 'python')] if shown('echo') and source.strip() else []) + [
        output(o, opts, pics) for o in cell.outputs if shown('output')]

def readme(cfg):
    "The files of the README: {name: bytes}"
    if cfg.lib_name not in NbdevLookup().entries: sys.exit(f'{cfg.lib_name} is not installed: pip install -e ".[dev]"')
    os.environ['IN_TEST'] = '1'                                 # `nbdev_export()` in a cell does nothing
    nb = read_nb(cfg.nbs_path/cfg.readme_nb)
    FilterDefaults()(nb)                                        # hides cells, links names in backticks to the docs
    title, *cells = nb.cells
    parts, pics = [f"# {nb.frontmatter_['title']}"], {}
    if desc := nb.frontmatter_.get('description'): parts.append(f'> {desc}')
    for c in cells: parts += code(c, pics) if c.cell_type == 'code' else [c.source]
    text = CALLOUT.sub(alert, '\n\n'.join(p.strip() for p in parts))
    text = re.sub(r'\]\(([\w-]+\.ipynb)', r'](nbs/\1', re.sub(r'^:::.*\n?', '', text, flags=re.M))
    return {'README.md': (re.sub(r'\n{3,}', '\n\n', text) + '\n').encode(), **pics}

def main():
    cfg = get_config()
    root, files = cfg.config_path, readme(cfg)
    stale = [n for n, d in files.items() if not (root/n).exists() or (root/n).read_bytes() != d]
    extra = [f'imgs/{p.name}' for p in (root/'imgs').glob('readme_*') if f'imgs/{p.name}' not in files]
    links = set(re.findall(r'\]\((?!\w+:|#)([^)\s#]+)', files['README.md'].decode()))
    if dead := [n for n in sorted(links) if n not in files and not (root/n).exists()]:
        sys.exit('README.md would link to what is not there: ' + ', '.join(dead))
    if '--check' in sys.argv and stale + extra:
        sys.exit('out of date, run `python tools/readme.py`: ' + ', '.join(stale + extra))
    for n in stale:
        (root/n).parent.mkdir(exist_ok=True)
        tmp = root/f'{n}.tmp'
        tmp.write_bytes(files[n])
        tmp.replace(root/n)
    for n in extra: (root/n).unlink()
    print('wrote ' + ', '.join(stale) if stale else 'README.md is up to date')

if __name__ == '__main__': main()
