"""`pytest` runs each notebook of nbs/ as one test, in a kernel of its own and by nbdev's rules: cells marked
`#| eval: false`, or with one of settings.ini's tst_flags, are left out. Only experiments (20_... and up) may be
skipped as a whole (`skip_exec: true`).

    pytest -k affine               # by name
    pytest -n 0                    # one after the other; by default as many at a time as there are cores, up to four
    pytest --nbflags slow          # also the cells marked `#| slow`
    pytest nbs/5*.ipynb            # the guides, which train models, and run only if they are named
"""
import os, re
from pathlib import Path
import pytest
from tools.kernels import forked
from tools.run_nbs import NotebookFailed, flags_to_skip, front_matter, run_notebook

CORES = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
if workers := int(os.environ.get('PYTEST_XDIST_WORKER_COUNT', 0)):      # before torch is imported
    os.environ.setdefault('OMP_NUM_THREADS', str(max(1, CORES//workers)))

def pytest_xdist_auto_num_workers(config):
    "How many tests run at a time; a single file needs no other processes"
    files = [Path(a.split('::')[0]) for a in config.args]
    return 0 if len(files) == 1 and files[0].is_file() else min(CORES, 4)

def pytest_addoption(parser):
    parser.addoption('--nbflags', default='', help='also run cells with these flags (see tst_flags in settings.ini)')
    parser.addoption('--experiments', action='store_true', help='also run the quick version of every experiment')
    parser.addoption('--nbtimeout', type=float, default=600, help='seconds that a notebook may take')

def pytest_collect_file(parent, file_path):
    if file_path.suffix == '.ipynb' and file_path.name[0] not in '._':
        return Notebook.from_parent(parent, path=file_path)

class Notebook(pytest.File):
    def collect(self):
        run = NotebookRun.from_parent(self, name=self.path.stem)
        run.add_marker(pytest.mark.timeout(0))              # it has a limit of its own, which says where it stood
        yield run

class NotebookRun(pytest.Item):
    def runtest(self):
        if front_matter(self.path).get('skip_exec') == 'true':
            if re.match(r'[2-9]\d', self.name): pytest.skip('skip_exec: true')
            raise ValueError(f'{self.path}: skip_exec: true is for experiments only (20_... and up)')
        named = [Path(a.split('::')[0]).resolve() for a in self.config.args]
        if re.match(r'5\d', self.name) and self.path not in named: pytest.skip('a guide runs if it is named: pytest nbs/5*.ipynb')
        flags, limit = (self.config.getoption(k) for k in ('nbflags', 'nbtimeout'))
        run_notebook(self.path, flags_to_skip(flags), limit, adapt=forked if hasattr(os, 'fork') else None)

    def repr_failure(self, excinfo):
        return str(excinfo.value) if isinstance(excinfo.value, NotebookFailed) else super().repr_failure(excinfo)

    def reportinfo(self): return self.path, None, f'notebook {self.name}'
