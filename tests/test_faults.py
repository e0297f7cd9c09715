"""The quick version of tools/faults.py: kills, full disks, damaged files, senseless commands, poor places.

The faults are made in forked processes. They are forked from a process that was started for that, and not from pytest's: its
threads and its browser would be forked with it.
"""
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, set_start_method
import pytest
from avae.data import end_with_parent
from tools import faults

pytestmark = pytest.mark.skipif(not hasattr(os, 'fork'), reason='faults are made in forked processes')

@pytest.fixture(scope='module')
def apart():
    "Calls a function in a process of its own."
    with ProcessPoolExecutor(1, get_context('spawn'), settle) as pool: yield lambda f, *args: pool.submit(f, *args).result()

def settle():
    "It ends with pytest, even if that is killed; and starts processes as usual: as one that was spawned it would spawn them, too."
    end_with_parent()
    set_start_method(None, force=True)

def test_work_that_is_killed_ends_as_one_that_was_not(apart):
    for name, told in apart(faults.kills, 1).items(): assert told['same'] and told['kills'] >= 1, (name, told)

def test_a_disk_that_is_full_at_any_moment(apart):
    told = apart(faults.full_disk, 3)
    assert told['good'] == told['tried'] == 3

def test_two_runs_in_one_folder(apart): assert apart(faults.two_at_once)

def test_a_clock_that_jumps(apart): assert all(apart(faults.jumping_clock, 1).values())

def test_no_shared_memory(apart): assert apart(faults.without_shared_memory)

def test_no_home_no_name_no_network(apart): assert apart(faults.poor)

def test_nothing_can_be_written(apart): assert len(apart(faults.not_mine)) == 3

def test_damaged_files(apart):
    told = apart(faults.fuzz_files, 600)
    assert told['read'] + told['refused'] == 600

def test_senseless_commands(apart):
    told = apart(faults.fuzz_commands, 25)
    assert told['refused'] + told['obeyed'] == 25
