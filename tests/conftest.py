"""A browser for the tests that look at pages, and how many examples Hypothesis tries.

The browser needs playwright and a Chromium (on the path, or named by CHROMIUM); without them such tests are skipped, but fail where
CI is set.
"""
import os, shutil
import pytest
from hypothesis import HealthCheck, settings

everywhere = dict(deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None, print_blob=True)
settings.register_profile('ci', max_examples=10, derandomize=True, **everywhere)
settings.register_profile('nightly', max_examples=200, **everywhere)
settings.load_profile('ci')

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
