"""The site that `python tools/docs.py` builds, as a reader meets it: in a browser, wide and on a phone, light and dark.

The site is built where _docs/ is older than what it is made of. Pictures of the pages go to tests/screenshots/.
"""
import json, re, subprocess, sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
import pytest
from filelock import FileLock

ROOT = Path(__file__).resolve().parents[1]
DOCS, SHOTS = ROOT/'_docs', ROOT/'tests'/'screenshots'
PAGES = 'index', 'affine', 'optimizing_rotations'
SIZES = {'desktop': dict(width=1280, height=900), 'phone': dict(width=390, height=844)}
LEFT_RAW = r"""() => { const main = document.querySelector('main').cloneNode(true)
  main.querySelectorAll('.katex, pre, code, script, style').forEach(e => e.remove())
  return main.textContent.match(/\$\$|\\\(|\\\[|\$\\\w+|\]\([^)]+\)|^:::.*/gm) || [] }"""
BROKEN_IMAGES = "() => [...document.images].filter(i => !(i.complete && i.naturalWidth)).map(i => i.src.slice(0, 99))"

@pytest.fixture(scope='module')
def site():
    "The address of the site, built anew where it is out of date"
    SHOTS.mkdir(exist_ok=True)
    with FileLock(SHOTS/'.lock'):                                # one build, also under `pytest -n 2`
        parts = [ROOT/'settings.ini', ROOT/'tools'/'docs.py', *(ROOT/'nbs').glob('*.*'), *(ROOT/'imgs').iterdir()]
        changed = max(p.stat().st_mtime for p in parts if p.name not in ('nbdev.yml', '.last_checked'))
        done = DOCS/'.complete'                                  # tools/docs.py leaves it behind where all went well
        if not done.exists() or done.stat().st_mtime < changed:
            r = subprocess.run([sys.executable, 'tools/docs.py', '--strict'], cwd=ROOT, capture_output=True, text=True)
            assert r.returncode == 0, r.stdout + r.stderr
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=DOCS))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}/'
    server.shutdown()

class Reader:
    "A page, and what went wrong on it"
    def __init__(self, browser, site, theme='light', size='desktop'):
        self.context = browser.new_context(viewport=SIZES[size], color_scheme=theme, reduced_motion='reduce')
        self.page, self.site, self.name = self.context.new_page(), site, f'{theme}-{size}'
        self.faults, self.loaded = [], []
        self.page.on('pageerror', lambda e: self.faults.append(str(e)))
        self.page.on('console', lambda m: self.faults.append(m.text) if m.type in ('error', 'warning') else None)
        self.page.on('requestfailed', lambda r: self.faults.append(f'failed: {r.url[:99]}'))
        self.page.on('request', self.local)
        self.page.on('requestfinished', lambda r: self.loaded.append(r))

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
        assert page.locator('main img, main canvas').count(), name
        assert r.dark == (theme == 'dark')
        page.screenshot(path=SHOTS/f'{name}-{r.name}.png', full_page=True)

def test_sidebar_tells_the_story(reader):
    page = reader().open('index')
    sections = page.locator('#quarto-sidebar .sidebar-item-section > .sidebar-item-container').all_inner_texts()
    assert [s.strip() for s in sections] == ['Idea', 'Library', 'Experiments', 'Guides']
    links = page.locator('#quarto-sidebar a.sidebar-link[href]').evaluate_all('s => s.map(a => a.getAttribute("href"))')
    assert sorted(links) == sorted({p.name for p in DOCS.glob('*.html')}), 'a page is not in the sidebar, or is twice'

def test_functions_have_signature_parameters_and_source(reader):
    page = reader().open('affine')
    assert 'warp(x, mat, fill=' in page.locator('main pre').filter(has_text='warp(x, mat').first.inner_text()
    row = page.locator('.parameters tr').filter(has_text='motion of the content').first.inner_text()
    assert 'mat' in row and 'Tensor' in row
    assert '/avae/affine.py#L' in page.locator('main a:text-is("source")').first.get_attribute('href')
    page.locator('main p a:has(code:text-is("warp"))').first.click()               # a name in backticks leads there
    assert page.url.endswith('#warp')

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
