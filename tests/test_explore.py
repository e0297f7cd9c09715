"""The page that `avae explore` opens, as a person meets it: in a browser, with mouse and keyboard, wide and on a phone.

Pictures of the page go to tests/screenshots/.
"""
import io, re, signal, socket, subprocess, sys, time
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit
import pytest
from PIL import Image, ImageDraw

SHOTS = Path(__file__).parent/'screenshots'
WAIT = 60_000                                                    # milliseconds; machines may be busy

@pytest.fixture(scope='module')
def address(tmp_path_factory):
    "Where the page is, as the command says"
    log = tmp_path_factory.mktemp('explore')/'log'
    with open(log, 'w') as f:
        command = [sys.executable, '-m', 'avae.cli', 'explore', '--no-browser']
        server = subprocess.Popen(command, stdout=f, stderr=f)
    try:
        for _ in range(400):
            if found := re.search(r'http://\S+', log.read_text()): break
            assert server.poll() is None, log.read_text()
            time.sleep(0.2)
        yield found[0]
    finally: server.send_signal(signal.SIGINT)                   # as Ctrl-C does
    assert server.wait(30) == 0, log.read_text()
    with socket.socket() as s: assert s.connect_ex(('127.0.0.1', int(re.search(r':(\d+)', found[0])[1]))), 'still served'

class Visitor:
    "The page in a browser, and what went wrong on it"
    def __init__(self, page, address):
        self.page, self.faults, home = page, [], address.split('?')[0]
        page.on('pageerror', lambda e: self.faults.append(str(e)))
        page.on('console', lambda m: self.faults.append(m.text) if m.type == 'error' else None)
        page.on('request', lambda r: None if r.url.startswith((home, 'data:', 'blob:')) else self.faults.append(r.url))
        page.goto(address, timeout=WAIT)
        self.picture.wait_for(timeout=WAIT)

    @property
    def picture(self): return self.page.locator('.avae-scene:visible')

    @property
    def words(self): return self.page.locator('[role=status]:visible')

    def shot(self, name):
        SHOTS.mkdir(exist_ok=True)
        self.page.screenshot(path=SHOTS/f'explore-{name}.png', full_page=True)

    def changes(self, act, pattern='.'):
        "Do something; both the picture and the words must change, these to something that matches"
        picture, words = self.settled(), self.words.inner_text()
        act()
        self.page.wait_for_function('''([picture, words, pattern]) => {
            const shown = e => e.offsetParent, find = s => [...document.querySelectorAll(s)].find(shown)
            const now = find('[role=status]').innerText
            return find('.avae-scene').outerHTML != picture && now != words && new RegExp(pattern).test(now) }''',
            arg=[picture, words, pattern], timeout=WAIT)

    def settled(self):
        "The picture, once it has been the same for a second"
        since, src = time.time(), self.picture.evaluate('e => e.outerHTML')
        while time.time() - since < 1:
            time.sleep(0.1)
            if (new := self.picture.evaluate('e => e.outerHTML')) != src: since, src = time.time(), new
        return src

    def redraws(self, act):
        "Do something; the picture must change"
        before = self.settled()
        act()
        self.page.wait_for_function('''b => [...document.querySelectorAll(".avae-scene")]
            .find(i => i.offsetParent).outerHTML != b''', arg=before, timeout=WAIT)

    def slide(self, name, presses):
        "Move a slider by the keyboard"
        handle = self.page.locator('.widget-slider:visible', has_text=name).locator('.noUi-handle')
        handle.focus()
        for _ in range(abs(presses)): self.page.keyboard.press('ArrowRight' if presses > 0 else 'ArrowLeft')

    def load(self, content):
        "Choose an image file"
        with self.page.expect_file_chooser() as chooser: self.page.get_by_role('button', name='Load an image').click()
        chooser.value.set_files(dict(name='picture.png', mimeType='image/png', buffer=content))

@pytest.fixture
def visitor(browser, address):
    contexts = []
    def make(width=1280, scheme='light'):
        contexts.append(browser.new_context(viewport=dict(width=width, height=900), color_scheme=scheme))
        return Visitor(contexts[-1].new_page(), address)
    yield make
    for c in contexts: c.close()

def knock(address, path, token=''):
    "The status with which the kernel behind the page answers somebody who wants to talk to it"
    key = {'Connection': 'Upgrade', 'Upgrade': 'websocket', 'Sec-WebSocket-Version': '13',
           'Sec-WebSocket-Key': 'AAAAAAAAAAAAAAAAAAAAAA=='}
    with closing(HTTPConnection(urlsplit(address).netloc, timeout=60)) as c:
        c.request('GET', path + token, headers=key)
        return c.getresponse().status

def test_a_token_is_needed(browser, address):
    context = browser.new_context()
    answer = context.request.get(address.split('?')[0])
    assert 'login' in answer.url and 'cell-index' not in answer.text()
    kernel = re.search(r'"kernelId": *"([^"]+)"', context.request.get(address).text())[1]
    context.close()
    channels = f'/api/kernels/{kernel}/channels'
    assert knock(address, channels) == 403
    assert knock(address, channels, '?' + urlsplit(address).query) == 101

def test_pose_page(visitor):
    v = visitor()
    v.shot('pose')
    v.changes(lambda: v.slide('angle', 15))
    v.changes(lambda: v.slide('width', -4))
    v.page.get_by_text('Search in another way').click()
    v.page.get_by_label('method').select_option('scan of all angles')
    v.changes(lambda: v.page.get_by_role('button', name='Search again').click(), '361 passes')
    v.page.get_by_text('Follow the search').click()
    v.redraws(lambda: v.slide('poses tried', -100))
    v.redraws(v.page.get_by_role('button', name='Step on').click)
    v.redraws(v.page.get_by_label('Show probabilities').check)
    v.settled()
    v.shot('probabilities')
    v.changes(lambda: v.page.get_by_role('button', name='Put it back upright').click())
    v.changes(v.page.locator('.avae-thumb').first.click)
    assert 'avae-chosen' in v.page.locator('.avae-thumb').first.get_attribute('class')
    assert v.faults == []

def test_own_image(visitor):
    v = visitor()
    v.load(b'these are no pixels')
    alert = v.page.get_by_role('alert')
    alert.wait_for(timeout=WAIT)
    assert 'no image that can be read' in alert.inner_text()
    v.shot('bad-file')
    v.changes(lambda: v.load(seven()))
    assert v.page.get_by_role('alert').count() == 0
    v.shot('own-image')
    v.changes(lambda: v.load(photograph()))
    assert v.faults == []

def seven():
    "A 7 in ink on paper"
    picture = Image.new('L', (200, 260), 250)
    ImageDraw.Draw(picture).line([(40, 40), (160, 40), (80, 220)], fill=10, width=24)
    out = io.BytesIO()
    picture.save(out, 'PNG')
    return out.getvalue()

def photograph():
    "More than 10 MB, the usual limit of a message"
    out = io.BytesIO()
    Image.effect_noise((4000, 3000), 100).save(out, 'PNG')
    assert out.tell() > 1e7
    return out.getvalue()

def test_code_page(visitor):
    v = visitor()
    v.page.get_by_role('tab', name='Walk among the codes').click()
    v.changes(lambda: v.slide('1st direction', 12), '1.2')
    v.changes(lambda: v.slide('angle', 30), 'angle 30')
    v.redraws(lambda: v.page.get_by_label('class').select_option('8'))
    v.shot('code')
    assert v.faults == []

def test_dark(visitor):
    v = visitor(390, 'dark')
    for width in (390, 1280):
        v.page.set_viewport_size(dict(width=width, height=900))
        v.shot(f'dark-{width}')
        ground, text = (v.page.evaluate(f'getComputedStyle(document.body)["{k}"]') for k in ('background-color', 'color'))
        assert sum(map(int, re.findall(r'\d+', ground))) < 150 and sum(map(int, re.findall(r'\d+', text))) > 600
    assert v.faults == []

def test_phone_and_screen_reader(visitor):
    v = visitor(390)
    assert v.page.evaluate('document.documentElement.scrollWidth') <= 390
    assert 'energy' in v.picture.locator('svg[role=img]').get_attribute('aria-label')
    assert v.picture.bounding_box()['y'] < v.page.locator('.avae-thumbs').first.bounding_box()['y']   # it comes first
    nameless = v.page.evaluate('''() => [...document.querySelectorAll('input, select, button, [role=slider]')].filter(
        e => e.offsetParent && !(e.labels?.length || e.getAttribute('aria-label') || e.getAttribute('aria-labelledby')
        || e.title || e.innerText.trim())).map(e => e.outerHTML)''')
    assert nameless == []
    v.shot('phone')
    assert v.faults == []
