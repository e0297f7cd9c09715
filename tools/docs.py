"""Build the site of the notebooks in _docs/ without Quarto: nbdev processes them, smalldocs renders them.

    python tools/docs.py              # then open _docs/index.html
    python tools/docs.py --strict     # fail where KaTeX cannot be put beside the pages

Exits with 1 on a link, anchor or picture that leads nowhere, and on anything that a page would load from another host.
With Quarto, `nbdev_docs` builds the site from the same nbs/_quarto.yml; of the source it shows the `#| exports` cells.
"""
import re, shutil, subprocess, sys, tarfile
from base64 import b64decode
from fnmatch import fnmatch
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import unquote, urlparse
import nbdev.serve
import numpy as np
import yaml
from PIL import Image
from execnb.nbio import read_nb, write_nb
from nbdev.config import get_config
from nbdev.doclinks import NbdevLookup, _nbpath2html
from nbdev.quarto import refresh_quarto_yml
from pages import Pages, describe_pictures
from versions import mark

KATEX = 'katex@0.16.11'                                              # what smalldocs asks for, and where
KATEX_CDN = f'https://cdn.jsdelivr.net/npm/{KATEX}/dist'
SCRIPT = """// A page opened from a folder may not fetch search.json: give it the same from search.js
if (location.protocol === 'file:') window.fetch = () => new Promise((resolve, reject) => {
  const script = document.createElement('script')
  script.src = document.querySelector('meta[name="smalldocs:offset"]').content + 'search.js'
  script.onload = () => resolve({json: () => window.searchIndex})
  script.onerror = reject
  document.head.append(script)
});
// The sidebar begins where the reader is
(() => {
  const side = document.querySelector('#quarto-sidebar'), here = side && side.querySelector('a[aria-current]')
  if (here) side.scrollTop += here.getBoundingClientRect().top - side.getBoundingClientRect().top - side.clientHeight/2
})();
"""
CODE = 'code', 'pre', 'script', 'style'
NOISE = {f'warning: format{what}' for what in (' commonmark is not built: smalldocs makes only html',        # from nbdev
         '.html.keep-md is ignored', '.html.respect-user-color-scheme is ignored')}

def adapt(proc):
    """Name processed notebooks as nbdev names their pages (00_core.ipynb -> core.ipynb), in links and sidebar too;
    what they say on stderr"""
    said = []
    names = {p.name: _nbpath2html(p).with_suffix('.ipynb').name for p in proc.glob('*.ipynb')}
    if len(set(names.values())) < len(names): sys.exit(f'two notebooks would share a page: {names}')
    name = re.compile(rf"(?<![\w/.-])(nbs/|\./)?({'|'.join(map(re.escape, names))})\b")
    new = lambda s: name.sub(lambda m: names[m[2]], s)
    flat = lambda s: re.sub(r'\[\[(`[^`]+`)\]\([^)]*\)\]\(', r'[\1](', s)         # nbdev links a name within a link, too
    links = lambda s: re.sub(r'\]\([^)]*\)|\bhref="[^"]*"', lambda link: new(link[0]), flat(s))
    for old, page in names.items():
        nb = read_nb(proc/old)
        describe_pictures(nb)
        for c in nb.cells:
            if c.cell_type == 'raw': c.source = re.sub(r'^output-file:.*\n', '', c.source, flags=re.M)
            if c.cell_type == 'markdown': c.source = links(c.source)
            for o in c.get('outputs', []):
                if o.get('name') == 'stderr': said.append(f"{old}: says on stderr {''.join(o.text).strip()[:99]}")
                if md := o.get('data', {}).get('text/markdown'): o.data['text/markdown'] = links(''.join(md))
        (proc/old).unlink()
        write_nb(nb, proc/page)
    sidebar = yaml.safe_load((proc/'sidebar.yml').read_text())
    parts = sidebar['website']['sidebar']['contents']
    globs = lambda part: part['contents'] if isinstance(part['contents'], list) else [part['contents']]
    for part in parts: part['contents'] = [names[n] for g in globs(part) for n in sorted(names) if fnmatch(n, g)]
    sidebar['website']['sidebar']['contents'] = [part for part in parts if part['contents']]
    if lost := set(names.values()) - {n for part in parts for n in part['contents']}:
        sys.exit(f'in no section of nbs/sidebar.yml: {lost}')
    (proc/'sidebar.yml').write_text(yaml.safe_dump(sidebar))
    return said

def vendor_katex(docs):
    "Put KaTeX beside the pages, so that formulas show without a network; False where npm does not give it"
    with TemporaryDirectory() as tmp:
        get = ['npm', 'pack', '--silent', '--cache', f'{tmp}/cache', KATEX]
        try: subprocess.run(get, cwd=tmp, check=True, stdout=subprocess.DEVNULL)
        except (OSError, subprocess.CalledProcessError) as e:
            print(f'npm does not give {KATEX} ({e}): formulas will show only with a network', file=sys.stderr)
            return False
        safe = {'filter': 'data'} if hasattr(tarfile, 'data_filter') else {}     # not before Python 3.11.4
        with tarfile.open(next(Path(tmp).glob('*.tgz'))) as f: f.extractall(tmp, **safe)
        src, dst = Path(tmp)/'package'/'dist', docs/'site_libs'/'katex'
        shutil.copytree(src/'fonts', dst/'fonts', ignore=shutil.ignore_patterns('*.ttf', '*.woff'))
        (dst/'contrib').mkdir()
        for n in 'katex.min.js', 'katex.min.css', 'contrib/auto-render.min.js': shutil.copy(src/n, dst/n)
    return True

def script(docs):
    "Let the search work without a server too, and the sidebar show the page that is read"
    (docs/'search.js').write_text(f"window.searchIndex = {(docs/'search.json').read_text()}")
    js = docs/'site_libs'/'smalldocs.js'
    js.write_text(SCRIPT + js.read_text())

def markdown_copies(docs, parts, site):
    "affine.md beside affine.html, as a reader guesses it, instead of Quarto's affine.llms.md; llms.txt in our order"
    for p in docs.glob('*.llms.md'):
        p.with_name(p.name.replace('.llms.md', '.md')).write_text(p.read_text().replace('.llms.md', '.md'))
        p.unlink()
    lines = (docs/'llms.txt').read_text().split('## ')[0].strip().splitlines()
    for part in parts:
        lines += ['', f"## {part['section']}", '']
        for name in part['contents']:
            title, _, what, *_ = (docs/name).with_suffix('.md').read_text().splitlines()
            lines.append(f"- [{title.strip('# ')}]({site}/{name.replace('.ipynb', '.md')}): {what}")
    (docs/'llms.txt').write_text('\n'.join(lines) + '\n')

def is_plot(picture):
    "Lines on white paper, rather than images or maps?"
    grey = np.asarray(Image.open(picture).convert('L'))
    return (grey > 245).mean() > 0.5 and (grey < 12).mean() < 0.05

def mark_plots(docs):
    "Mark the plots, so that the dark theme can show them in reverse"
    def mark(m):
        data = m[1].startswith('data:image/png') and BytesIO(b64decode(m[1].partition(',')[2]))
        picture = data or m[1].endswith('.png') and docs/m[1]
        return m[0].replace('<img', '<img data-plot', 1) if picture and is_plot(picture) else m[0]
    for p in docs.glob('*.html'): p.write_text(re.sub(r'<img\b[^>]*?src="([^"]+)"', mark, p.read_text()))

def localize(docs, site, katex):
    "Make links to our own published site, and to KaTeX where it is at hand, relative; leave out the theme's web fonts"
    for p in docs.rglob('*.html'):
        up = '../' * (len(p.relative_to(docs).parts) - 1)
        text = re.sub(rf'(<a\b[^>]*?href="){re.escape(site)}/?', lambda m: m[1] + (up or './'), p.read_text())
        p.write_text(text.replace(KATEX_CDN, f'{up}site_libs/katex') if katex else text)
    for p in docs.rglob('*.css'): p.write_text(re.sub(r'@import url\("?https:[^)]*\);', '', p.read_text()))

class Page(HTMLParser):
    "The ids of a page, the `links` a reader may follow, the `assets` a browser loads, and markdown `left` as text"
    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.assets, self.left, self.code = set(), set(), set(), [], 0
        self.feed(path.read_text())
    def handle_starttag(self, tag, attrs):
        d = dict(attrs)
        self.ids.add(d.get('id'))
        self.code += tag in CODE
        to = self.links if tag == 'a' or d.get('rel') in ('canonical', 'alternate') else self.assets
        to.update(d[k] for k in ('href', 'src', 'poster', 'data') if d.get(k))

    def handle_endtag(self, tag): self.code -= tag in CODE
    def handle_data(self, text):
        if not self.code: self.left += re.findall(r'\]\([\w./#:-]+\)|^:::.*|\{\.[\w-]+[^}]*\}', text, re.M)

def faults(docs):
    "Links, anchors and pictures that lead nowhere, and what is loaded from another host"
    docs = docs.resolve()
    pages = {p: Page(p) for p in docs.rglob('*.html')}
    for p, page in pages.items():
        yield from (f'{p.relative_to(docs)}: markdown left as text, {t}' for t in page.left)
        for ref in page.links | page.assets:
            u = urlparse(ref)
            if u.scheme in ('data', 'mailto'): continue
            if u.scheme or u.netloc:
                if ref in page.assets: yield f'{p.relative_to(docs)}: loads {ref}'
                continue
            to = (p.parent/unquote(u.path)).resolve() if u.path else p
            if to.is_dir(): to = to/'index.html'
            if not to.exists() or u.fragment and to in pages and unquote(u.fragment) not in pages[to].ids:
                yield f'{p.relative_to(docs)}: broken link {ref}'
    for p in docs.rglob('*.css'):
        for ref in re.findall(r'''(?:url\(|@import)\s*["']?((?:https?:)?//[^"')]+)''', p.read_text()):
            yield f'{p.relative_to(docs)}: loads {ref}'

def main():
    cfg = get_config()
    if cfg.lib_name not in NbdevLookup().entries: sys.exit(f'{cfg.lib_name} is not installed: pip install -e ".[dev]"')
    docs, proc, site = cfg.doc_path, cfg.config_path/'_proc', cfg.doc_host + cfg.doc_baseurl
    for p in docs, proc: shutil.rmtree(p, ignore_errors=True)
    refresh_quarto_yml()                 # nbs/nbdev.yml from settings.ini
    nbdev.serve.FilterDefaults = Pages   # the source of exported cells is shown
    nbdev.serve.proc_nbs(n_workers=2)    # show_doc, links of names in backticks, hidden cells -> _proc/
    bad = adapt(proc)
    for p in sorted(cfg.nbs_path.glob('[2-4][0-9]_*.ipynb')):
        if not any(c.get('outputs') for c in read_nb(p).cells): bad.append(f'{p.name} has no outputs: run it')
    r = subprocess.run([sys.executable, '-m', 'smalldocs.cli', 'render', proc], capture_output=True, text=True)
    if r.returncode: sys.exit(r.stdout + r.stderr)
    said = [line for line in (r.stdout + r.stderr).splitlines() if line not in NOISE]
    shutil.move(proc/docs.name, docs)
    katex = vendor_katex(docs)
    script(docs)
    parts = yaml.safe_load((proc/'sidebar.yml').read_text())['website']['sidebar']['contents']
    markdown_copies(docs, parts, site)
    mark_plots(docs)
    localize(docs, site, katex)
    mark(docs, cfg.version)
    bad += [s for s in said if s.startswith('warning')]
    bad += sorted(f for f in faults(docs) if katex or KATEX_CDN not in f)
    print(*bad, f'{len(bad)} faults in {docs}' if bad else f'docs are in {docs}', sep='\n')
    failed = bool(bad) or '--strict' in sys.argv and not katex
    if not failed: (docs/'.complete').touch()            # tests/test_site.py looks for it
    sys.exit(failed)

if __name__ == '__main__': main()
