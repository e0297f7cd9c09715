"""A browser for the tests that look at pages.

Needs playwright and a Chromium (on the path, or named by CHROMIUM); without them such tests are skipped, but fail where
CI is set.
"""
import os, shutil
import pytest

CHROMIUM = os.environ.get('CHROMIUM') or next(filter(None, map(shutil.which, (
    'chromium', 'chromium-browser', 'google-chrome'))), None)

def missing(what):
    if os.environ.get('CI'): pytest.fail(f'{what}, and CI is set', pytrace=False)
    pytest.skip(what)

@pytest.fixture(scope='session')
def browser():
    try: from playwright.sync_api import sync_playwright
    except ImportError: missing('playwright is not installed: pip install -e ".[dev]"')
    if not CHROMIUM: missing('there is no chromium: apt-get install chromium, or name one by CHROMIUM')
    with sync_playwright() as p:
        b = p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox', '--disable-gpu'])
        yield b
        b.close()
