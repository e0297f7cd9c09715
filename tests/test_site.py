"""The site that `python tools/docs.py` builds, as a reader meets it: in a browser, wide and on a phone, light and dark.

Where _docs/ is older than what it is made of, `pytest tests/test_site.py` builds it; plain `pytest` leaves the site out.
Pictures of the pages go to tests/screenshots/.
"""
import json, re, subprocess, sys
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
import pytest
from filelock import FileLock

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted(p for p in (ROOT/'avae').glob('*.py') if p.name != '_modidx.py')
DOCS, SHOTS = ROOT/'_docs', ROOT/'tests'/'screenshots'
PAGES = 'index', 'affine', 'optimizing_rotations', 'results'
STORY = {'affine': ['resample', 'PoseSpace'], 'optimizers': ['parabola_step', 'quasi_newton', '_search_1d'], 'affine_vae': ['AffineVAE']}
SIZES = {'desktop': dict(width=1280, height=900), 'phone': dict(width=390, height=844)}
LEFT_RAW = r"""() => { const main = document.querySelector('main').cloneNode(true)
  main.querySelectorAll('.katex, pre, code, script, style').forEach(e => e.remove())
  return main.textContent.match(/\$\$|\\\(|\\\[|\$\\\w+|\]\([^)]+\)|^:::.*/gm) || [] }"""
BROKEN_IMAGES = "() => [...document.images].filter(i => !(i.complete && i.naturalWidth)).map(i => i.src.slice(0, 99))"

@pytest.fixture(scope='module')
def site(request):
    "The address of the site, built anew where it is out of date"
    named = [Path(a.split('::')[0]).resolve() for a in request.config.args]
    SHOTS.mkdir(exist_ok=True)
    with FileLock(SHOTS/'.lock'):                                # one build, also under `pytest -n 2`
        parts = [ROOT/'settings.ini', *(ROOT/'tools').glob('*.py'), *MODULES, *(ROOT/'nbs').glob('*.*'), *(ROOT/'imgs').iterdir()]
        changed = max(p.stat().st_mtime for p in parts if p.name not in ('nbdev.yml', '.last_checked'))
        done = DOCS/'.complete'                                  # tools/docs.py leaves it behind where all went well
        if not done.exists() or done.stat().st_mtime < changed:
            if Path(__file__).resolve() not in named: pytest.skip('the site is not built: pytest tests/test_site.py builds it')
            r = subprocess.run([sys.executable, 'tools/docs.py', '--strict'], cwd=ROOT, capture_output=True, text=True)
            assert r.returncode == 0, r.stdout + r.stderr
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=DOCS))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}/'
    server.shutdown()

def pages():
    "All pages but the list of versions, which is plain"
    return [p for p in DOCS.glob('*.html') if p.name != 'versions.html']

class Reader:
    "A page, and what went wrong on it"
    def __init__(self, browser, site, theme='light', size='desktop'):
        self.context = browser.new_context(viewport=SIZES[size], color_scheme=theme, reduced_motion='reduce')
        self.page, self.site, self.name = self.context.new_page(), site, f'{theme}-{size}'
        self.faults, self.loaded = [], []
        self.page.on('pageerror', lambda e: self.faults.append(str(e)))
        self.page.on('console', lambda m: self.faults.append(m.text) if m.type in ('error', 'warning') else None)
        self.page.on('requestfailed', self.failed)
        self.page.on('request', self.local)
        self.page.on('requestfinished', lambda r: self.loaded.append(r))

    def failed(self, request):
        "A request that the next page has cut short is no fault"
        if 'ERR_ABORTED' not in (request.failure or ''): self.faults.append(f'failed: {request.url[:99]}')

    def local(self, request):
        if not request.url.startswith((self.site, 'data:', 'blob:')):
            self.faults.append(f'not ours: {request.url[:99]}')

    def open(self, name):
        self.page.goto(f'{self.site}{name}.html', wait_until='load')
        self.page.wait_for_function('() => document.fonts.status == "loaded"')
        return self.page

    @property
    def dark(self):
        "Is the background dark, once the theme is there?"
        self.page.wait_for_timeout(150)
        color = self.page.evaluate('getComputedStyle(document.body).backgroundColor')
        return sum(map(int, re.findall(r'\d+', color)[:3])) < 300

@pytest.fixture
def reader(browser, site):
    made = []
    def make(**kwargs):
        made.append(Reader(browser, site, **kwargs))
        return made[-1]
    yield make
    for r in made: r.context.close()
    assert not [f for r in made for f in r.faults]

@pytest.mark.parametrize('theme', ['light', 'dark'])
@pytest.mark.parametrize('size', SIZES)
def test_pages_are_whole(reader, theme, size):
    r = reader(theme=theme, size=size)
    for name in PAGES:
        page = r.open(name)
        page.wait_for_function(f'() => !({BROKEN_IMAGES})().length', timeout=10_000)
        assert page.locator('.katex').count() or name != 'affine', 'no formula was set'
        assert page.locator('.katex-error').count() == 0 and page.evaluate(LEFT_RAW) == [], name
        assert page.evaluate('document.documentElement.scrollWidth') <= SIZES[size]['width'], f'{name} scrolls sideways'
        assert page.locator('main img, main canvas, main table').count(), name
        assert r.dark == (theme == 'dark')
        page.screenshot(path=SHOTS/f'{name}-{r.name}.png', full_page=True)

def test_sidebar_tells_the_story(reader):
    page = reader().open('index')
    sections = page.locator('#quarto-sidebar .sidebar-item-section > .sidebar-item-container').all_inner_texts()
    assert [s.strip() for s in sections] == ['Idea', 'Guides', 'Library', 'Experiments', 'Benchmarks']
    links = page.locator('#quarto-sidebar a.sidebar-link[href]').evaluate_all('s => s.map(a => a.getAttribute("href"))')
    assert sorted(links) == sorted({p.name for p in pages()}), 'a page is not in the sidebar, or is twice'

class Code(HTMLParser):
    "The blocks of code of a page: `blocks`, and those of them that are `folded` away"
    def __init__(self, text):
        super().__init__()
        self.blocks, self.folded, self.pre, self.closed = [], [], False, False
        self.feed(text)
    def handle_starttag(self, tag, attrs):
        if tag == 'details': self.closed = 'open' not in dict(attrs)
        if tag == 'pre':
            self.pre = True
            self.blocks.append('')
    def handle_endtag(self, tag):
        if tag == 'details': self.closed = False
        if tag == 'pre':
            self.pre = False
            if self.closed: self.folded.append(self.blocks[-1])
    def handle_data(self, text):
        if self.pre: self.blocks[-1] += text

def cells(module):
    "The cells that nbdev has exported into a module, as they are in the notebook"
    text = re.sub(r'^#\|.*\n', '', re.sub(r'^(\s*from) \.', r'\1 avae.', module.read_text(), flags=re.M), flags=re.M)
    return [c.strip() for c in re.split(r'^# %% \.\..*\n', text, flags=re.M)[1:]]

@pytest.mark.parametrize('module', MODULES, ids=lambda p: p.stem)
def test_page_shows_the_whole_source(site, module):
    page = Code((DOCS/f"{module.stem.replace('__init__', 'package')}.html").read_text())
    lost = [c for c in cells(module) if not c.startswith('__version__') and not any(c in b for b in page.blocks)]
    assert not lost, f'{len(lost)} cells are nowhere on the page, the first is:\n{lost[0]}'

@pytest.mark.parametrize('name', [f'{page}.{n}' for page, names in STORY.items() for n in names])
def test_source_of_the_story_is_open(site, name):
    page, name = name.split('.')
    head = re.compile(rf'^(def|class) {name}\b', re.M)
    code = Code((DOCS/f'{page}.html').read_text())
    assert any(head.search(b) for b in code.blocks) and not any(head.search(b) for b in code.folded), 'mark it `#| exports`'

def test_functions_have_signature_parameters_and_source(reader):
    page = reader().open('affine')
    assert page.locator('main pre').filter(has_text='warp(x, mat, fill=').first.is_visible()
    block = page.locator('#warp ~ .parameters, section:has(> #warp) .parameters').first
    assert block.locator('th').all_inner_texts() == ['parameter', 'type', 'meaning']
    row = page.locator('.parameters tr').filter(has_text='motion of the content').first.inner_text()
    assert 'mat' in row and 'Tensor' in row
    assert '/avae/affine.py#L' in page.locator('main a:text-is("source")').first.get_attribute('href')
    page.locator('main p a:has(code:text-is("warp"))').first.click()               # a name in backticks leads there
    assert page.url.endswith('#warp')

def test_each_comment_makes_one_row_of_a_table():
    source = '''
class Box:
    sides: tuple  # three numbers
    def look(self, x: Tensor, at: int | None = None) -> Tensor:  # (N, D), an index -> (N,)
        pass
    def fit(self, *xs: "Tensor",  # (N, D) each
            deep: Annotated[bool, typer.Option(help="All of it.")] = False, **more):  # passed on
        pass
'''
    sys.path.insert(0, str(ROOT/'tools'))
    import ast
    import pages
    look, fit = pages.find(tree := ast.parse(source), 'Box.look'), pages.find(tree, 'Box.fit')
    notes = {n: line.split('#')[1].strip() for n, line in enumerate(source.splitlines(), 1) if '#' in line}
    assert pages.parameters(look, notes) == [(['x', 'at'], ['Tensor', 'int | None'], '(N, D), an index'), ('returns', ['Tensor'], '(N,)')]
    assert pages.parameters(fit, notes) == [(['*xs'], ['Tensor'], '(N, D) each'), (['deep', '**more'], ['bool'], 'All of it.')]
    assert pages.fields(tree.body[0], notes) == [(['sides'], ['tuple'], 'three numbers')]
    assert pages.signature('look', look, False) == 'look(x, at=None) -> Tensor'
    assert pages.signature('fit', fit, False) == 'fit(*xs, deep=False, **more)'

def test_every_picture_has_a_text_and_every_page_its_markdown(site):
    for page in pages():
        silent = [i[:80] for i in re.findall(r'<img\b[^>]*>', page.read_text()) if not re.search(r'\balt="[^"]+"', i)]
        assert not silent, f'{page.name}: {silent}'
        assert page.with_suffix('.md').exists() and f'/{page.stem}.md)' in (DOCS/'llms.txt').read_text(), page.name

@pytest.mark.parametrize('size', SIZES)
def test_nothing_is_cut_and_the_sidebar_shows_where_one_is(reader, size):
    r = reader(size=size)
    for name in (p.stem for p in pages()):
        page = r.open(name)
        assert page.evaluate('document.documentElement.scrollWidth') <= SIZES[size]['width'], f'{name} scrolls sideways'
        if size == 'phone': continue
        cut = page.evaluate("[...document.querySelectorAll('.math.display')].filter(e => e.scrollWidth > e.clientWidth + 1).length")
        assert cut == 0, f'{name}: a formula is cut'
        here = page.locator('#quarto-sidebar a[aria-current]').bounding_box()
        assert 0 < here['y'] < SIZES[size]['height'] - here['height'], name

def test_plots_are_dark_in_the_dark(reader):
    page = reader(theme='dark').open('optimizing_rotations')
    assert 'invert' in page.locator('main img[data-plot]').first.evaluate('e => getComputedStyle(e).filter')
    assert 'brightness' in reader(theme='dark').open('index').locator('main img:not([data-plot])').first.evaluate(
        'e => getComputedStyle(e).filter')

def test_readme_names_every_notebook():
    text = (ROOT/'README.md').read_text()
    lost = [p.name for p in (ROOT/'nbs').glob('*.ipynb') if p.name != 'index.ipynb' and f'](nbs/{p.name})' not in text]
    assert not lost, f'{lost}: run `python tools/run_nbs.py nbs/index.ipynb`, then `python tools/readme.py`'

@pytest.mark.parametrize('where', ['server', 'folder'])
@pytest.mark.parametrize('theme', ['light', 'dark'])
def test_search(reader, where, theme):
    r = reader(theme=theme)
    if where == 'folder': r.site = DOCS.as_uri() + '/'
    page = r.open('index')
    page.keyboard.press('/')
    page.keyboard.type('PoseSpace')
    hit = page.locator('.search-result').filter(has_text='PoseSpace').first
    hit.wait_for(timeout=10_000)
    page.wait_for_function('''() => {  // the list is drawn anew for each letter: until it is the same twice
      const before = window.lastResults
      window.lastResults = [...document.querySelectorAll('.search-result')].map(e => e.outerHTML).join()
      return window.lastResults === before }''', polling=300)
    page.screenshot(path=SHOTS/f'search-{where}-{theme}.png')
    assert contrast(page, hit.locator('.search-result-title')) > 4.5
    assert page.locator('.search-result[href*="affine.html#posespace"]').count()
    hit.click()
    page.wait_for_url('**/*.html*')
    assert 'PoseSpace' in page.locator('main').inner_text()

def contrast(page, element):
    "Of its text against the first background behind it, after WCAG"
    return element.first.evaluate(r"""e => {
      const rgb = c => c.match(/[\d.]+/g).map(Number), light = c => rgb(c).slice(0, 3).map(v => v/255).map(
        v => v <= .04045 ? v/12.92 : ((v + .055)/1.055)**2.4).reduce((a, v, i) => a + v*[.2126, .7152, .0722][i], 0)
      let back = e
      while (back.parentElement && rgb(getComputedStyle(back).backgroundColor)[3] === 0) back = back.parentElement
      const [a, b] = [getComputedStyle(e).color, getComputedStyle(back).backgroundColor].map(light)
      return (Math.max(a, b) + .05)/(Math.min(a, b) + .05) }""")

@pytest.mark.parametrize('size', SIZES)
def test_theme_is_remembered(reader, size):
    r = reader(theme='dark', size=size)
    page = r.open('index')
    assert r.dark                                                                   # as the system prefers
    if size == 'phone': page.locator('.navbar-toggler').click()
    page.locator('.quarto-color-scheme-toggle:visible').first.click()
    assert not r.dark
    r.open('affine')
    assert not r.dark                                                               # as the reader chose

def test_digit_turns(reader):
    page = reader().open('index')
    slider = page.get_by_label('turn it')
    state = lambda: (page.locator('.turning canvas').evaluate_all('all => all.map(c => c.toDataURL())'),
                     page.locator('.turning b').all_inner_texts())
    loss = lambda row: int(page.locator(f'.turning .row{row} b').inner_text().split()[-1])
    slider.wait_for()
    slider.focus()
    pictures, texts = state()
    page.keyboard.press('ArrowRight')
    moved, new_texts = state()
    assert moved[0] != pictures[0] and new_texts != texts
    slider.fill('18')                                                               # -90 degrees
    assert page.locator('.turning output').inner_text() == '-90°'
    assert loss(1) > loss(2) + 50, 'turned, the VAE fails and the AVAE holds'
    slider.fill('36')                                                               # upright
    assert loss(1) < loss(2) + 10
    page.get_by_role('button', name='7', exact=True).click()
    assert state()[0] != moved
    page.get_by_role('button', name='play').click()
    page.wait_for_function('() => document.querySelector(".turning input").value > 38')
    page.get_by_role('button', name='stop').click()

def test_first_page_is_light(reader):
    r = reader()
    page = r.open('index')
    page.mouse.wheel(0, 100_000)                                                    # some pictures wait to be seen
    page.wait_for_function(f'() => !({BROKEN_IMAGES})().length', timeout=10_000)
    page.wait_for_load_state('networkidle')
    size = sum(q.sizes()['responseBodySize'] for q in r.loaded if q.url.startswith('http'))
    (SHOTS/'sizes.json').write_text(json.dumps({'first page, bytes': size}))
    assert 500_000 < size < 2_000_000
