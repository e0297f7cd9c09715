"""What is handed out: one version everywhere, old names that warn, types, sites of old versions, and files that any
computer can hold, in any folder, under any locale."""
import inspect, json, os, re, subprocess, sys
from collections import Counter
from configparser import ConfigParser
from pathlib import Path, PurePosixPath
import pytest
import torch
import avae
from avae.affine_vae import AffineVAE
from avae.optimizers import scan
from tools import faults, versions

ROOT = Path(__file__).resolve().parents[1]

def test_one_version_everywhere():
    ini = ConfigParser(delimiters=['='])
    ini.read(ROOT/'settings.ini', encoding='utf-8')
    version = ini['DEFAULT']['version']
    cited = re.search(r'^version: (\S+)$', (ROOT/'CITATION.cff').read_text(), re.M)[1]
    told = re.search(r'^## (\S+) \(', (ROOT/'CHANGELOG.md').read_text(), re.M)[1]
    assert version == cited == told == avae.__version__

def test_old_names_work_and_warn():
    vae, x, turn = avae.VAE(2, 8).eval(), torch.rand(2, 1, 8, 8), avae.PoseSpace(angle=180)
    with pytest.warns(DeprecationWarning, match='search='): model = AffineVAE(vae, turn, optimizer=scan)
    assert model.pose_search is scan
    for out in (vae(x), model(x, 12)):
        with pytest.warns(DeprecationWarning, match='-loss'): assert torch.equal(out.elbo, -out.loss)

def public():
    "(name, function) of what `from avae import ...` offers, methods and constructors included."
    for name in avae.__all__:
        v = getattr(avae, name)
        if inspect.isfunction(v): yield name, v
        if not inspect.isclass(v): continue
        for k, f in vars(v).items():
            if inspect.isfunction(f) and (k == '__init__' or k[0] != '_'): yield f'{name}.{k}', f

def test_all_parameters_have_a_type_or_a_default():
    "Types of all that a program calls; whether they are right, `mypy tests/typed.py` finds out."
    wild = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    given = lambda p: p.annotation is not p.empty or p.default is not p.empty or p.name in ('self', 'cls')
    bare = [f'{name}({p.name})' for name, f in public() for p in inspect.signature(f).parameters.values()
            if not given(p) and p.kind not in wild]
    assert len(list(public())) > 40 and not bare, bare

def test_sites_of_old_versions_stay(tmp_path):
    git = lambda *words, cwd=tmp_path/'here': versions.git('-c', 'user.name=a', '-c', 'user.email=a@b', *words, cwd=cwd)
    versions.git('init', '-q', '--bare', str(tmp_path/'there'), cwd=tmp_path)
    versions.git('init', '-q', str(tmp_path/'here'), cwd=tmp_path)
    here, docs = tmp_path/'here', tmp_path/'here'/'_docs'
    (here/'settings.ini').write_text('version = 0.3.0\n')
    for k, v in (('name', 'a'), ('email', 'a@b')): git('config', f'user.{k}', v)
    git('add', '-A'), git('commit', '-qm', 'a'), git('remote', 'add', 'origin', str(tmp_path/'there'))
    for version in ('0.9.0', '0.10.0', None):
        (docs/'sub').mkdir(parents=True, exist_ok=True)
        for page in ('index.html', 'sub/a.html'):
            (docs/page).write_text(f'<span class="navbar-title">avae</span></a>{version}')
        versions.mark(docs, version)
        found = versions.publish(here, version)
    assert found == ['0.10.0', '0.9.0'] == re.findall(r'href="([\d.]+)/index.html', (docs/'versions.html').read_text())
    assert '0.9.0' in (docs/'0.9.0'/'sub'/'a.html').read_text() and 'None' in (docs/'index.html').read_text()
    assert 'href="../versions.html">0.9.0</a>' in (docs/'0.9.0'/'sub'/'a.html').read_text()
    assert not git('worktree', 'list').strip().count('\n')

# --- files and folders

RESERVED = {'con', 'prn', 'aux', 'nul', *(f'{k}{n}' for k in ('com', 'lpt') for n in range(1, 10))}

def not_on_windows(names):
    "Of paths those that Windows cannot hold, and those that it takes for one."
    wrong = lambda p: p.split('.')[0].lower() in RESERVED or re.search(r'[<>:"|?*\\\x00-\x1f]|[. ]$', p)
    bad = [n for n in names if len(n) > 180 or any(map(wrong, PurePosixPath(n).parts))]
    return bad + [n for n, count in Counter(n.lower() for n in names).items() if count > 1]

def test_the_repository_can_be_cloned_on_windows():
    assert not_on_windows(['nul.txt', 'a:b', 'c./d', 'E', 'e']) == ['nul.txt', 'a:b', 'c./d', 'e']
    listed = subprocess.check_output(['git', 'ls-files', '-coz', '--exclude-standard'], cwd=ROOT, text=True).split('\0')
    assert not not_on_windows([n for n in listed if n])

@pytest.mark.skipif(not hasattr(os, 'fork'), reason='works in forked processes')
def test_what_is_written_can_be_held_by_windows(tmp_path):
    for k, work in enumerate(faults.WORK.values()): assert faults.ended(faults.in_child(work, tmp_path/str(k))) == 0
    written = [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob('*')]
    assert len(written) > 20 and not not_on_windows(written), not_on_windows(written)

def test_a_folder_with_blanks_and_umlauts_under_the_locale_c(tmp_path):
    "The locale that minimal containers and cron have; there Python would write ASCII if it were not told otherwise."
    (here := tmp_path/'zwei Wörter ß').mkdir()
    env = os.environ | dict(LC_ALL='C', LANG='C', PYTHONUTF8='0', PYTHONCOERCECLOCALE='0', PYTHONPATH=str(ROOT))
    words = ['demo', '--n', '2', '--out', 'ein Bild ä', '--json', 'Zahlen ö.json']
    r = subprocess.run([sys.executable, '-m', 'avae.cli', *words], cwd=here, env=env, capture_output=True)
    assert r.returncode == 0 and b'Traceback' not in r.stderr, r.stderr[-2000:]
    assert (here/'ein Bild ä'/'story.png').exists() and json.loads((here/'Zahlen ö.json').read_text(encoding='utf-8'))
