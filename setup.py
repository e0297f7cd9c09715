"""All metadata is in settings.ini: this file only hands it to setuptools."""
import shlex
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

ini = ConfigParser(delimiters=['='])
ini.read('settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']
lib, readme = cfg['lib_path'], Path('README.md')

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'],
    author=cfg['author'], author_email=cfg['author_email'], url=cfg['git_url'], license='Apache-2.0',
    project_urls={'Documentation': cfg['doc_host'] + cfg['doc_baseurl']},
    classifiers=['Development Status :: 3 - Alpha', f"Intended Audience :: {cfg['audience']}",
                 'Programming Language :: Python :: 3', 'Topic :: Scientific/Engineering :: Artificial Intelligence'],
    long_description=readme.read_text(encoding='utf-8') if readme.exists() else '',
    long_description_content_type='text/markdown',
    packages=find_packages(include=[lib, f'{lib}.*']), package_data={lib: shlex.split(cfg['package_data'])},
    python_requires='>=' + cfg['min_python'], install_requires=shlex.split(cfg['requirements']),
    extras_require={k: shlex.split(cfg[f'{k}_requirements']) for k in ('dev', 'explore', 'atlas', 'experiments', 'formats', 'ray', 'sklearn')},
    entry_points={'console_scripts': shlex.split(cfg['console_scripts']), 'nbdev': [f'{lib}={lib}._modidx:d']},
    zip_safe=False,
)
