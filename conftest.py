"""`pytest` runs each notebook of nbs/ as one test, in a process of its own and by nbdev's rules: cells marked
`#| eval: false`, or with one of settings.ini's tst_flags, are left out. Only experiments (20_... and up) may be
skipped as a whole (`skip_exec: true`).

    pytest -k affine -n 2          # by name; in parallel
    pytest --nbflags slow          # also the cells marked `#| slow`
"""
import re, subprocess, sys, tempfile
import pytest
from execnb.nbio import read_nb
from nbdev.frontmatter import FrontmatterProc
from nbdev.process import NBProcessor

RUN = """import faulthandler, sys
path, flags, limit = sys.argv[1:]
faulthandler.dump_traceback_later(float(limit), exit=True)  # says where it stands
from nbdev.test import nbdev_test
nbdev_test.__wrapped__(path, flags, n_workers=0)"""

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

class NotebookFailed(Exception): pass

class NotebookRun(pytest.Item):
    def runtest(self):
        self.nb = NBProcessor(self.path, procs=FrontmatterProc, process=True).nb      # as nbdev_test sees it
        if self.nb.frontmatter_.get('skip_exec'):
            if re.match(r'[2-9]\d', self.name): pytest.skip('skip_exec: true')
            raise NotebookFailed('skip_exec: true is for experiments only (20_... and up)')
        flags, timeout = map(self.config.getoption, ('nbflags', 'nbtimeout'))
        run = [sys.executable, '-c', RUN, self.path, flags, str(timeout)]
        with tempfile.TemporaryFile('w+') as out:           # a file, not a pipe that its children could hold open
            code = subprocess.run(run, cwd=self.config.rootpath, stdout=out, stderr=subprocess.STDOUT).returncode
            out.seek(0)
            said = out.read()
        if 'Timeout (' in said: raise NotebookFailed(f'took longer than {timeout:g} seconds\n\n{said}')
        if code: raise NotebookFailed(said)

    def repr_failure(self, excinfo):
        if not isinstance(excinfo.value, NotebookFailed): return super().repr_failure(excinfo)
        text, where, src = str(excinfo.value).split('\nnbdev Tests Failed')[0].strip(), '', ''
        if found := re.search(r'While Executing Cell #(\d+)', text):
            ran = self.nb.cells[int(found[1]) - 1].id            # by its id: nbdev numbers the cells in its own way
            cells = enumerate(read_nb(self.path).cells, 1)
            where, src = next(((f', cell {i}', c.source) for i, c in cells if c.id == ran), ('', ''))
        return '\n'.join([f'{self.path}{where}', *('    ' + line for line in src.splitlines()), '', text])

    def reportinfo(self): return self.path, None, f'notebook {self.name}'
