#!/usr/bin/env python
"""The site of each version stays under its number: `_docs/0.2.0/` beside the site of today. They are kept on the branch
`site` of the repository, to which `--keep` adds the site in _docs/. docs.yml calls this before it publishes.

    python tools/versions.py                # all versions into _docs/, and a list of them
    python tools/versions.py --keep 0.2.0
"""
import argparse, re, shutil, subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>avae: versions</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="stylesheet" href="styles.css">
<style>body {{font: 1.1rem/1.6 sans-serif; margin: 3rem auto; max-width: 40rem; padding: 0 1rem}}</style></head>
<body><h1>Versions</h1><ul>{}</ul></body></html>
"""

def numbers(folder):
    "Versions that lie in a folder, the newest first."
    found = [p.name for p in folder.iterdir() if p.is_dir() and re.fullmatch(r"\d+(\.\d+)+", p.name)]
    return sorted(found, key=lambda v: [int(n) for n in v.split(".")], reverse=True)

def list_versions(docs, version):
    "versions.html: the site that is published, of `version` or newer, and those of all versions that were released."
    items = [("index.html", f"today's, {version} and what came after it")]
    items += [(f"{v}/index.html", v) for v in numbers(docs)]
    (docs/"versions.html").write_text(PAGE.format("".join(f'<li><a href="{to}">{name}</a></li>' for to, name in items)))

def mark(docs, version):
    "The version beside the title of each page, with a way to the others."
    for p in docs.rglob("*.html"):
        to = "../"*(len(p.relative_to(docs).parts) - 1) + "versions.html"
        title = '<span class="navbar-title">avae</span></a>'
        p.write_text(p.read_text().replace(title, f'{title}<a class="navbar-version" href="{to}">{version}</a>'))
    list_versions(docs, version)

def git(*words, cwd): return subprocess.run(["git", *words], cwd=cwd, capture_output=True, text=True, check=True).stdout

def kept(root, folder):
    "The branch `site` in a folder; a branch without history if there is none yet."
    there = git("ls-remote", "--heads", "origin", "site", cwd=root)
    if there: git("fetch", "-q", "--depth", "1", "origin", "site", cwd=root)
    git("worktree", "add", "-q", "--detach", str(folder), "FETCH_HEAD" if there else "HEAD", cwd=root)
    if not there:
        git("checkout", "-q", "--orphan", "new-site", cwd=folder)
        git("rm", "-rfq", ".", cwd=folder)

def publish(root, keep=None):
    "Bring all versions into _docs/, after the site in it was kept as the version `keep`."
    docs = root/"_docs"
    with TemporaryDirectory() as tmp:
        kept(root, folder := Path(tmp)/"site")
        try:
            if keep:
                shutil.rmtree(folder/keep, ignore_errors=True)
                shutil.copytree(docs, folder/keep)
                git("add", "-A", "-f", cwd=folder)
                git("commit", "-qm", f"Site of version {keep}", cwd=folder)
                git("push", "-q", "origin", "HEAD:refs/heads/site", cwd=folder)
            for v in numbers(folder): shutil.copytree(folder/v, docs/v, dirs_exist_ok=True)
        finally: git("worktree", "remove", "--force", str(folder), cwd=root)
    version = re.search(r"^version *= *(\S+)", (root/"settings.ini").read_text(), re.M)[1]
    list_versions(docs, version)
    return numbers(docs)

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="The site of each version stays under its number.")
    parser.add_argument("--keep", metavar="VERSION", help="keep the site in _docs/ as that of this version")
    print(*publish(Path(__file__).resolve().parents[1], parser.parse_args().keep))
