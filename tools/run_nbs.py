"""Run notebooks, each in a kernel of its own, and save them clean, with their outputs.

    python tools/run_nbs.py                             # all of nbs/ but the experiments (`skip_exec: true`)
    python tools/run_nbs.py nbs/03_affine.ipynb         # or these; --flags slow: also the cells marked `#| slow`
    python tools/run_nbs.py nbs/20_*.ipynb --force      # experiments too
    python tools/run_nbs.py nbs/20_*.ipynb --print      # show what cells say, and leave the file as it is

Tests (conftest.py) and `avae reproduce` run notebooks by the same function, `run_notebook`.
"""
import argparse, json, os, re, sys, time
from configparser import ConfigParser
from pathlib import Path
sys.modules.setdefault('rfc3987_syntax', None)      # jsonschema does without it, and its grammar takes two seconds
import nbformat
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

ROOT = Path(__file__).resolve().parents[1]
WIDGET = 'application/vnd.jupyter.widget-view+json'

class NotebookFailed(Exception):
    "Says which cell it was, what it holds and what went wrong"
    def __init__(self, path, number, source, said):
        code = '\n'.join('    ' + line for line in source.splitlines())
        super().__init__(f'{path}, cell {number}\n{code}\n\n{said}')

class ThisPython(KernelSpecManager):
    "Every kernel is one of the running interpreter, whatever kernels are installed"
    adapt = staticmethod(lambda spec: spec)
    def get_kernel_spec(self, kernel_name):
        argv = [sys.executable, '-m', 'ipykernel_launcher', '--log-level=ERROR', '-f', '{connection_file}']
        return self.adapt(KernelSpec(argv=argv, language='python'))

class Client(NotebookClient):
    "Hands what the cells say to `show`, while they run"
    def output(self, outs, msg, display_id, cell_index):
        out = super().output(outs, msg, display_id, cell_index)
        if self.show and out: self.show(out)
        return out

def front_matter(path):
    "The lines `- key: value` in the first cell of a notebook"
    return dict(re.findall(r'^- (\w+): *(.+)$', nbformat.read(path, 4).cells[0].source, re.M))

def left_out(cell, skip):
    "Is this cell not run: no code, `#| eval: false`, a flag of `skip`, or the export?"
    head = re.match(r'(\s*#\s*\|.*\n?)*', cell.source)[0]
    words = dict(re.findall(r'#\s*\|\s*([\w-]+):? *(.*)', head))
    return (cell.cell_type != 'code' or words.get('eval', '').lower() == 'false' or bool(skip & words.keys())
            or 'nbdev_export(' in cell.source)

def flags_to_skip(wanted=''):
    "The flags in settings.ini (tst_flags) whose cells are left out, but for those that are wanted"
    ini = ConfigParser(delimiters=['='])
    ini.read(ROOT/'settings.ini', encoding='utf-8')
    return set(ini['DEFAULT']['tst_flags'].split()) - set(wanted.split())

def kernel_env():
    "The environment of the kernel: this repository first, the same data, figures inline, the same hashes at every run"
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
    data = os.environ.get('AVAE_DATA')                                      # named from here, and read in nbs/
    data = dict(AVAE_DATA=os.path.abspath(os.path.expanduser(data))) if data else {}
    return os.environ | data | dict(PYTHONPATH=path, PYTHONHASHSEED='0',    # some set Agg, which shows nothing
                                    MPLBACKEND='module://matplotlib_inline.backend_inline')

def spoken(cell):
    "What a cell printed, and the traceback that it ended with"
    return ''.join(o.get('text') or '\n'.join(o.get('traceback', ())) for o in cell.outputs)

def run_notebook(path, skip=frozenset(), limit=None, show=None, adapt=None):
    """The notebook at `path`, run in its folder without the cells that have a flag of `skip`; `NotebookFailed` where
    a cell fails, or where all cells together take more than `limit` seconds. `show` is handed each output, `adapt` the
    specification of the kernel."""
    kernels = ThisPython()
    if adapt: kernels.adapt = adapt
    path, end = Path(path).absolute(), time.monotonic() + (limit or float('inf'))
    nb = nbformat.read(path, 4)
    client = Client(nb, km=AsyncKernelManager(kernel_spec_manager=kernels), coalesce_streams=True,
                    record_timing=False, resources={'metadata': {'path': str(path.parent)}})
    client.show, client.owns_km = show, True
    if limit: client.timeout_func = lambda cell: max(0.01, end - time.monotonic())
    client.log.disabled = True                                              # it is all in NotebookFailed
    with client.setup_kernel(env=kernel_env()):
        for i, cell in enumerate(nb.cells):
            if left_out(cell, skip): continue
            fail = lambda said: NotebookFailed(path, i + 1, cell.source, said)
            try: client.execute_cell(cell, i, execution_count=client.code_cells_executed + 1)
            except CellExecutionError: raise fail(spoken(cell)) from None
            except DeadKernelError: raise fail('the kernel died') from None
            except BaseException as e:
                client.shutdown_kernel = 'immediate'
                if not isinstance(e, CellTimeoutError): raise
                raise fail(f'the notebook took longer than {limit:g} seconds, and stood at this cell') from None
    return nb

def save(nb, path):
    "Write a notebook as `nbdev_clean` leaves it, without widgets, which have new ids at each run"
    from execnb.nbio import dict2nb, nb2str
    from nbdev.clean import clean_nb
    from nbdev.config import get_config
    for c in nb.cells:
        if c.cell_type == 'code': c.outputs = [o for o in c.outputs if WIDGET not in o.get('data', {})]
    nb = dict2nb(json.loads(nbformat.writes(nb)))                          # texts as lists of lines, for their diffs
    clean_nb(nb, clean_ids=get_config().clean_ids)
    tmp = path.with_suffix('.tmp')
    tmp.write_text(nb2str(nb), encoding='utf-8')
    tmp.replace(path)

def show(out):
    "Print an output, but no figures and no widgets"
    if out.output_type == 'stream': print(out.text, end='', flush=True, file=getattr(sys, out.name))
    elif not {'image/png', WIDGET} & out.get('data', {}).keys():
        print(out.get('data', {}).get('text/plain', ''), end='\n\n', flush=True)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('files', nargs='*', type=Path)
    p.add_argument('--flags', default='', help='also run the cells with these flags (see tst_flags in settings.ini)')
    p.add_argument('--force', action='store_true', help='also run notebooks with `skip_exec: true`')
    p.add_argument('--print', action='store_true', help='show what cells say, and save nothing')
    args, failed = p.parse_args(), False
    files = args.files or sorted(f for f in (ROOT/'nbs').glob('*.ipynb') if f.name[0] not in '._')
    for f in files:
        start, skip = time.time(), flags_to_skip(args.flags)
        try:
            if front_matter(f).get('skip_exec') == 'true' and not args.force | args.print:
                said = 'skip_exec'
            else:
                nb = run_notebook(f, skip, show=show if args.print else None)
                if not args.print: save(nb, f)
                said = f'{time.time() - start:.1f} s'
        except NotebookFailed as e: failed, said = True, f'failed, left as it was\n{e}'
        except KeyboardInterrupt: sys.exit(130)
        if failed or not args.print: print(f'{f}: {said}', flush=True)
    sys.exit(failed)

if __name__ == '__main__': main()
