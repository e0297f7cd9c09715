"""The page of `avae atlas`, as a person meets it: from a file, in a browser, with mouse and keyboard, light and dark.

Pictures of the page go to tests/screenshots/.
"""
import io, shutil
from pathlib import Path
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import csv, parquet
from torchvision.transforms.functional import to_pil_image
from avae import PoseSpace, mnist_sample, random_views
from avae.canonicalize import canonicalize
from avae.overview import atlas

SHOTS = Path(__file__).parent/'screenshots'
EVIL = '<img src=x onerror=alert(1)>, "b".png'

@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "A folder of digits, one of which has a name of its own, and what was made of them"
    home = tmp_path_factory.mktemp('atlas')
    (home/'digits').mkdir()
    x, labels = (v[:90] for v in mnist_sample('test'))
    for i, v in enumerate(random_views(x, PoseSpace(angle=180), seed=1)[0]): to_pil_image(v).save(home/'digits'/f'{i:02}.png')
    shutil.copy(home/'digits'/'07.png', home/'digits'/EVIL)
    words = [f'<b>{c}</b>' for c in labels.tolist()]
    csv.write_csv(pa.table({'file': [f'{i:02}.png' for i in range(90)], 'kind': words}), home/'mine.csv')
    canonicalize(home/'digits', 'mnist-l8-rotation', home/'out', pictures=False, budget=14, workers=0)
    atlas(home/'out', home/'mine.csv', layout='pca')
    return home

@pytest.fixture
def visit(browser, home):
    "Opens the page; at the end nothing may have gone wrong on it, and nothing may have been fetched from elsewhere"
    faults, contexts = [], []
    def visit(theme='light', width=1280):
        contexts.append(browser.new_context(viewport=dict(width=width, height=820), color_scheme=theme))
        page = contexts[-1].new_page()
        page.on('pageerror', lambda e: faults.append(str(e)))
        page.on('console', lambda m: faults.append(m.text) if m.type in ('error', 'warning') else None)
        page.on('dialog', lambda d: faults.append(f'dialog: {d.message}'))
        page.on('request', lambda r: None if r.url.startswith((home.as_uri(), 'blob:')) else faults.append(r.url))
        page.goto((home/'out'/'atlas.html').as_uri())
        page.wait_for_function('[...sheets.values()].length && [...sheets.values()].every(i => i.ready)')
        return page
    yield visit
    for c in contexts: c.close()
    assert not faults, faults

@pytest.mark.parametrize('theme', ['light', 'dark'])
@pytest.mark.parametrize('width', [1280, 390])
def test_page_shows_pictures(visit, theme, width):
    page = visit(theme, width)
    SHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SHOTS/f'atlas-{theme}-{width}.png')
    assert page.title() == 'digits' and page.locator('#odd button').count() == 24
    shot = np.asarray(Image.open(io.BytesIO(page.locator('#map').screenshot())).convert('L'))
    assert (shot == 0).mean() > 0.1 and (shot > 250).any(), 'digits, white on black'
    assert page.evaluate('document.documentElement.scrollWidth <= innerWidth')

def test_names_are_text(visit):
    page = visit()
    page.evaluate('show(D.names.findIndex(n => n.startsWith("<img")), true)')
    assert page.locator('#card h2').inner_text() == EVIL
    assert page.locator('#legend button').first.inner_text() == '<b>0</b>'
    assert page.locator('img, b').count() == 0

def test_keyboard_alone(visit):
    page = visit()
    page.locator('#map').focus()
    names = []
    for key in ('ArrowRight', 'ArrowRight', 'ArrowDown', 'ArrowLeft'):
        page.keyboard.press(key)
        names.append(page.locator('#card h2').inner_text())
    assert len(set(names)) > 2
    page.keyboard.press('Space')
    assert '1 of 91' in page.locator('#many').inner_text()
    page.keyboard.press('Escape')
    assert page.locator('#chosen').is_hidden()
    before = page.evaluate('s')
    page.keyboard.press('+')
    assert page.evaluate('s') > before
    page.keyboard.press('0')
    assert page.evaluate('s') == pytest.approx(before)

def test_what_is_chosen_goes_back(visit, home):
    page = visit()
    box = page.locator('#map').bounding_box()
    at = lambda fx, fy: (box['x'] + fx*box['width'], box['y'] + fy*box['height'])
    page.keyboard.down('Shift')
    page.mouse.move(*at(0.3, 0.2)); page.mouse.down(); page.mouse.move(*at(0.7, 0.7), steps=5); page.mouse.up()
    page.keyboard.up('Shift')
    page.evaluate('choose([D.names.findIndex(n => n.startsWith("<img"))])')
    count = page.evaluate('many')
    assert 5 < count < 91
    page.screenshot(path=SHOTS/'atlas-chosen.png')
    with page.expect_download() as got: page.locator('#save').click()
    got.value.save_as(home/'chosen.csv')
    done = canonicalize(home/'digits', 'mnist-l8-rotation', home/'some', pictures=False, budget=14, workers=0, select=home/'chosen.csv')
    names = parquet.read_table(done.table)['file'].to_pylist()
    assert len(names) == count and EVIL in names
    assert set(names) == set(page.evaluate('D.names.filter((_, i) => chosen[i])'))

def test_lasso_and_legend_choose(visit):
    page = visit()
    page.locator('[value=lasso]').check()
    box = page.locator('#map').bounding_box()
    page.mouse.move(box['x'] + 5, box['y'] + 70); page.mouse.down()
    for fx, fy in ((0.99, 0.1), (0.99, 0.95), (0.01, 0.95)): page.mouse.move(box['x'] + fx*box['width'], box['y'] + fy*box['height'], steps=4)
    page.mouse.up()
    assert page.evaluate('many') > 80
    page.locator('#clear').click()
    page.locator('#legend button').first.click()
    assert page.evaluate('many') == page.evaluate('values(D.columns.find(k => k.name == "kind")).filter(v => v == 0).length')
    page.locator('#clear').click()
    page.locator('#by').select_option(label='loss')
    page.get_by_label('loss at least').fill('100')
    page.get_by_role('button', name='Choose').click()
    assert page.evaluate('many') == page.evaluate('values(D.columns[0]).filter(v => v >= 100).length') > 0

def test_pictures_left_behind_are_missed(browser, home, tmp_path):
    page = browser.new_page()
    shutil.copy(home/'out'/'atlas.html', tmp_path)
    page.goto((tmp_path/'atlas.html').as_uri())
    page.wait_for_function('document.getElementById("said").textContent.includes("belongs beside this page")')
    page.close()
