"""What comes from untrusted places runs no code, reads nothing else, and takes no more memory than there is."""
import copy, io, json, re, struct, sys, zipfile, zlib
from http.client import HTTPConnection
from pathlib import Path
import numpy as np
import pytest
import tifffile
import torch
from avae.affine import PoseSpace
from avae.affine_vae import AffineVAE
from avae.formats import read_header, read_image, read_page
from avae.guess import Guess
from avae.models import VAE, Gaussian, load_pretrained
from avae.runs import CHECKPOINT, read_checkpoint, write_checkpoint

ROOT = Path(__file__).resolve().parents[1]
SEEN = []  # what happens while something is watched: (event, first argument)

def _watch(event, args):
    if SEEN and event in ('open', 'exec', 'compile', 'os.system', 'subprocess.Popen', 'socket.connect', 'import',
                          'pickle.find_class'):
        SEEN.append((event, str(args[0]) if args else ''))

sys.addaudithook(_watch)

def watched(function, *args, allowed=()):
    "Call it; what it returned or refused to do, and the files and code that it touched."
    SEEN[:] = [('begin', '')]
    try:
        try: result = function(*args)
        except (ValueError, TypeError, FileNotFoundError) as e: result = e
        mine = lambda event, what: event == 'open' and any(str(a) in what for a in allowed)
        touched = [t for t in SEEN[1:] if t[0] != 'import' and not mine(*t)]
    finally: SEEN.clear()
    return result, touched

@pytest.fixture(scope='module')
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp('model')
    poses = PoseSpace(angle=180, flip=True)
    guess = Guess(poses, (8, 8), bins=4, widths=(2, 2, 2), hidden=4).eval()
    whole = dict(vae=VAE(2, 8, likelihood=Gaussian(0.2)).eval(), poses=poses, mask=torch.ones(8, 8))
    guess.window.copy_(AffineVAE(**whole).window(torch.zeros(1, 1, 8, 8)))
    AffineVAE(**whole, guess=guess).save_pretrained(folder)
    load_pretrained(folder)  # what is imported late is imported
    return folder

WORSE = [None, True, 0, -1, 1.5, 10**30, '', '../../etc/passwd', '/etc/passwd', 'os.system', 'builtins.eval',
         'avae.AffineVAE', '__class__',
         [], [1], {}, {'class': 'os.system'}, {'class': '../x'}, [['a']], {'model': 'avae.VAE'}]

PICKLE = b'\x80\x04cos\nsystem\n(S"true"\ntR.'  # runs a program, where pickles are loaded

def places(v, at=()):
    "Every place in a record."
    yield at
    inner = v.items() if isinstance(v, dict) else enumerate(v) if isinstance(v, list) else ()
    for k, w in inner: yield from places(w, (*at, k))

def put(record, at, value):
    if not at: return value
    record = copy.deepcopy(record)
    inner = record
    for k in at[:-1]: inner = inner[k]
    inner[at[-1]] = value
    return record

def test_a_config_is_only_numbers_and_words(model, tmp_path):
    (tmp_path/"model.safetensors").symlink_to(model/"model.safetensors")
    whole = json.loads((model/'config.json').read_text())
    for at in places(whole):
        for value in WORSE:
            (tmp_path/'config.json').write_text(json.dumps(put(whole, at, value)))
            result, touched = watched(load_pretrained, tmp_path, allowed=(tmp_path, model))
            assert not touched, (at, value, touched)
            assert not isinstance(result, Exception) or len(str(result).splitlines()) == 1, (at, value, str(result))

def test_weights_are_only_numbers(model, tmp_path):
    "A file of weights with any byte changed, or cut anywhere, is the same kind of model or refused."
    content = (model/'model.safetensors').read_bytes()
    (tmp_path/'config.json').write_bytes((model/'config.json').read_bytes())
    changes = [content[:k] for k in (0, 4, 8, 60, 500, len(content) - 1)]
    changes += [content[:k] + bytes([b]) + content[k + 1:] for k in (0, 3, 7, 8, 9, 30, 100, 400)
                for b in (0, 34, 127, 255)]
    changes += [PICKLE, struct.pack('<Q', 2**62) + b'{}']  # the last has a header without end

    for changed in changes:
        (tmp_path/'model.safetensors').write_bytes(changed)
        result, touched = watched(load_pretrained, tmp_path, allowed=(tmp_path,))
        assert not touched and isinstance(result, (AffineVAE, ValueError)), result

def test_checkpoints_are_only_numbers(tmp_path):
    for state in WORSE:
        write_checkpoint(tmp_path, {'w': torch.ones(2)}, state)
        result, touched = watched(read_checkpoint, tmp_path, allowed=(tmp_path,))
        assert not touched and result[1] == state
    (tmp_path/CHECKPOINT).write_bytes(PICKLE)
    (tmp_path/'checkpoint.previous.safetensors').unlink()
    result, touched = watched(read_checkpoint, tmp_path, allowed=(tmp_path,))
    assert isinstance(result, ValueError) and not touched

# --- pictures that promise more than they hold

def png(width, height, rows=1):
    def chunk(name, data):
        return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))
    head = struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0)
    body = zlib.compress(bytes(rows*(width + 1)))
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + chunk(b'IDAT', body) + chunk(b'IEND', b'')

def npy(shape):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, dict(descr='|u1', fortran_order=False, shape=shape))
    return buffer.getvalue()

def npz(shape, data=b''):
    with zipfile.ZipFile(buffer := io.BytesIO(), 'w', zipfile.ZIP_DEFLATED) as z:
        z.writestr('../../a.npy', npy(shape) + data)
    return buffer.getvalue()

def tiff(side):
    "A TIFF whose tags were changed to a larger picture."
    tifffile.imwrite(buffer := io.BytesIO(), np.zeros((64, 64), np.uint8), compression='zlib', tile=(64, 64))
    buffer.seek(0)
    with tifffile.TiffFile(buffer, mode='r+') as t:
        for name in ('ImageWidth', 'ImageLength'): t.pages[0].tags[name].overwrite(side, dtype='I')
    return buffer.getvalue()

BOMBS = dict(png=png(60_000, 60_000), npy=npy((10**6, 10**6)), npz=npz((10**6, 10**6)),
             zeros=npz((10**5, 10**7), bytes(10**7)), tiff=tiff(10**6))

@pytest.mark.parametrize('name', BOMBS)
@pytest.mark.parametrize('on_disk', [False, True], ids=['memory', 'disk'])
def test_a_picture_larger_than_the_memory_is_refused(name, on_disk, tmp_path):
    import psutil
    source = io.BytesIO(BOMBS[name])
    if on_disk: (source := tmp_path/'bomb').write_bytes(BOMBS[name])
    before = psutil.Process().memory_info().rss
    with pytest.raises(ValueError) as e: read_image(source)
    assert len(str(e.value).splitlines()) == 1 and psutil.Process().memory_info().rss - before < 2**28
    assert {p.name for p in tmp_path.iterdir()} <= {'bomb'}

def test_the_memory_that_is_there_is_the_limit(monkeypatch):
    tifffile.imwrite(a := io.BytesIO(), np.zeros((64, 64), np.uint8), compression='zlib')
    np.savez_compressed(b := io.BytesIO(), np.zeros((100, 64, 64), np.uint8))
    for source in (a, b): assert read_image(source).shape == (1, 1, 64, 64)
    from types import SimpleNamespace
    monkeypatch.setattr('avae.decoders.virtual_memory', lambda: SimpleNamespace(available=9000))
    for source in (a, b):
        with pytest.raises(ValueError, match='memory'): read_image(source)

@pytest.mark.parametrize('kind', [dict(), dict(bigtiff=True), dict(byteorder='>')], ids=['classic', 'big', 'motorola'])
def test_pages_that_go_round_in_a_circle_have_an_end(kind):
    with tifffile.TiffWriter(buffer := io.BytesIO(), **kind) as t:
        for k in (8, 9, 10): t.write(np.zeros((k, k), np.uint8), metadata=None)
    with tifffile.TiffFile(io.BytesIO(buffer.getvalue())) as t: form, offsets = t.tiff, [p.offset for p in t.pages]
    content = bytearray(buffer.getvalue())
    assert read_header(io.BytesIO(content)).pages == 3
    for back in offsets:
        count, = struct.unpack_from(form.tagnoformat, content, offsets[-1])
        end = offsets[-1] + form.tagnosize + count*form.tagsize
        content[end:end + form.offsetsize] = struct.pack(form.offsetformat, back)
        with pytest.raises(ValueError, match='back to themselves'): read_header(io.BytesIO(content))

# --- the page

@pytest.fixture(scope='module')
def page():
    from avae.page import serve
    with serve('"a secret " + "word"') as page:
        page.wait(120)
        yield page

def ask(page, path='/', token=True, **headers):
    "Status, text and cookie of an answer."
    connection = HTTPConnection('127.0.0.1', page.port, timeout=120)
    connection.request('GET', path + ('?' + page.address.split('?')[1] if token else ''),
                       headers={k.replace('_', '-'): v for k, v in headers.items()})
    answer = connection.getresponse()
    text = '' if answer.status == 101 else answer.read().decode(errors='replace')
    return answer.status, text, (answer.getheader('Set-Cookie') or '').split(';')[0]

def test_only_this_computer_is_answered(page):
    import psutil
    server = psutil.Process(page.server.pid)
    listening = {c.laddr.ip for c in server.net_connections() if c.status == 'LISTEN'}
    assert listening == {'127.0.0.1'}

def test_only_with_its_token_and_by_its_name(page):
    status, text, cookie = ask(page)
    assert status == 200 and 'a secret word' in text and cookie
    assert ask(page, token=False)[0] == 302
    for host in ('evil.example', f'evil.example:{page.port}', '192.168.0.7'):
        assert ask(page, Host=host)[0] == 403, host
    kernel = re.search(r'"kernelId": *"([^"]+)"', text)[1]
    knock = dict(Connection='Upgrade', Upgrade='websocket', Sec_WebSocket_Version='13',
                 Sec_WebSocket_Key='AAAAAAAAAAAAAAAAAAAAAA==')
    path, here, evil = f'/api/kernels/{kernel}/channels', f'http://127.0.0.1:{page.port}', 'http://evil.example'
    own = lambda **headers: ask(page, path, token=False, **knock, **headers)[0]  # as a page in the same browser would
    assert own(Cookie=cookie, Origin=here) == 101
    for refused in (dict(Cookie=cookie, Origin=evil), dict(Cookie=cookie, Origin='null'), dict(Origin=here),
                    dict(Cookie=cookie, Host='evil.example', Origin=evil)): assert own(**refused) >= 400, refused
    for path in ('/voila/files/../../etc/passwd', '/static/../../../etc/passwd', '/api/contents'):
        status, text, _ = ask(page, path)
        assert status != 200 and 'root:' not in text, path

# --- what the project itself rests on

def test_actions_are_pinned():
    uses = [line for f in (ROOT/'.github').rglob('*.yml') for line in f.read_text().splitlines() if 'uses:' in line]
    assert uses and all(re.search(r'@[0-9a-f]{40}  # v[\d.]+$', line) for line in uses), uses

def test_an_hdf5_file_shows_nothing_of_other_files(tmp_path):
    "Its links may lead anywhere, and its pixels may lie anywhere: under any name, alone or among others."
    import h5py
    mine, secret = np.zeros((4, 4), 'u1'), np.full((4, 4), 7, 'u1')
    with h5py.File(tmp_path/'secret.h5', 'w') as f: f['x'] = secret
    (tmp_path/'secret.bin').write_bytes(secret.tobytes())
    layout = h5py.VirtualLayout((4, 4), 'u1')
    layout[:] = h5py.VirtualSource(tmp_path/'secret.h5', 'x', (4, 4))
    def link(f): f['a'] = h5py.ExternalLink(str(tmp_path/'secret.h5'), 'x')
    def group(f): f['g'] = h5py.ExternalLink(str(tmp_path/'secret.h5'), '/')
    def soft(f): group(f); f['a'] = h5py.SoftLink('/g/x')
    def virtual(f): f.create_virtual_dataset('a', layout)
    def again(f): virtual(f); f['b'] = f['a']
    def raw(f): f.create_dataset('a', (4, 4), 'u1', external=[(str(tmp_path/'secret.bin'), 0, 16)])
    for make in (link, group, soft, virtual, again, raw):
        for more in (False, True):
            path = tmp_path/'given.h5'
            with h5py.File(path, 'w') as f:
                make(f)
                if more: f['mine'] = mine
            for name in ('', '::a', '::b', '::g/x', '::/g/../g/x'):
                try: pixels = read_page(f'{path}{name}').values
                except ValueError as e: assert len(str(e).splitlines()) == 1
                else: assert not pixels.any(), (make.__name__, name)

def test_a_zarr_folder_runs_no_code(tmp_path):
    pytest.importorskip('zarr')
    plain = dict(zarr_format=2, shape=[4, 4], chunks=[4, 4], dtype='|u1', fill_value=0, order='C', filters=None, compressor=None)
    for where, pickled in (('filters', [{'id': 'pickle'}]), ('compressor', {'id': 'pickle'})):
        (tmp_path/where).mkdir()
        (tmp_path/where/'.zarray').write_text(json.dumps(plain | {where: pickled}))
        (tmp_path/where/'0.0').write_bytes(PICKLE)
        result, touched = watched(read_page, tmp_path/where, allowed=(tmp_path,))
        assert 'pickle is not known to be safe' in str(result) and not touched, (result, touched)
    for path in ('../secret', '/etc'):
        (tmp_path/'given.zarr').mkdir(exist_ok=True)
        (tmp_path/'given.zarr'/'.zgroup').write_text('{"zarr_format": 2}')
        (tmp_path/'given.zarr'/'.zattrs').write_text(json.dumps({'multiscales': [{'datasets': [{'path': path}]}]}))
        assert 'leads out' in str(watched(read_page, tmp_path/'given.zarr')[0])
