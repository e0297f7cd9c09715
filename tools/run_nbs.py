"""Run notebooks in place by nbdev's rules, and save them clean, with their outputs.

    python tools/run_nbs.py                             # all of nbs/ but the experiments (`skip_exec: true`)
    python tools/run_nbs.py nbs/03_affine.ipynb         # or these; --flags slow: also the cells marked `#| slow`
    python tools/run_nbs.py nbs/20_*.ipynb --force      # experiments too
"""
import argparse, json, os, sys, time
from pathlib import Path
import nbformat
from execnb.nbio import dict2nb, nb2str
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbdev.clean import clean_nb
from nbdev.config import get_config
from nbdev.doclinks import nbglob
from nbdev.frontmatter import FrontmatterProc
from nbdev.process import NBProcessor

WIDGET = 'application/vnd.jupyter.widget-view+json'

class ThisPython(KernelSpecManager):
    "Every kernel is one of the running interpreter, whatever kernels are installed"
    def get_kernel_spec(self, kernel_name):
        argv = [sys.executable, '-m', 'ipykernel_launcher', '--log-level=ERROR', '-f', '{connection_file}']
        return KernelSpec(argv=argv, language='python')

class Client(NotebookClient):
    "Leaves the cells in `skipped` as they are"
    async def async_execute_cell(self, cell, cell_index, **kwargs):
        if cell.id in self.skipped: return cell
        return await super().async_execute_cell(cell, cell_index, **kwargs)

def left_out(cell, flags):
    "Would `nbdev_test` leave out this cell?"
    return (cell.directives_.get('eval:', [''])[0].lower() == 'false' or flags & cell.directives_.keys()
            or 'nbdev_export' + '(' in cell.source)

def run_nb(path, flags, force=False):
    "Execute the notebook at `path` and write it anew; False where its front matter says `skip_exec: true`"
    ref = NBProcessor(path, procs=FrontmatterProc, process=True).nb
    if ref.frontmatter_.get('skip_exec') and not force: return False
    nb = nbformat.read(path, 4)
    client = Client(nb, km=AsyncKernelManager(kernel_spec_manager=ThisPython()), timeout=None, coalesce_streams=True,
                    record_timing=False, resources={'metadata': {'path': str(path.parent)}})
    client.skipped = {c.id for c in ref.cells if c.cell_type == 'code' and left_out(c, flags)}
    client.execute()
    nb.metadata.pop('widgets', None)                                      # widgets have new ids at each run
    for c in nb.cells:
        if c.cell_type == 'code': c.outputs = [o for o in c.outputs if WIDGET not in o.get('data', {})]
    nb = dict2nb(json.loads(nbformat.writes(nb)))
    clean_nb(nb, clean_ids=get_config().clean_ids)
    tmp = path.with_suffix('.tmp')
    tmp.write_text(nb2str(nb), encoding='utf-8')
    tmp.replace(path)
    return True

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('files', nargs='*', type=Path)
    p.add_argument('--flags', default='', help='also run the cells with these flags (see tst_flags in settings.ini)')
    p.add_argument('--force', action='store_true', help='also run notebooks with `skip_exec: true`')
    args, cfg, failed = p.parse_args(), get_config(), False
    os.environ |= dict(PYTHONPATH=str(cfg.config_path), PYTHONHASHSEED='0',
                       MPLBACKEND='module://matplotlib_inline.backend_inline')      # some set Agg, which shows nothing
    flags = set(cfg.tst_flags.split()) - set(args.flags.split())
    for f in args.files or sorted(nbglob(as_path=True)):
        start = time.time()
        try: said = f'{time.time() - start:.1f} s' if run_nb(f.absolute(), flags, args.force) else 'skip_exec'
        except CellExecutionError as e: failed, said = True, f'failed, left as it was\n{e}'
        print(f'{f}: {said}', flush=True)
    sys.exit(failed)

if __name__ == '__main__': main()
