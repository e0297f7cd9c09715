"""The quick version of tools/faults.py: kills, full disks, damaged files, senseless commands, poor places."""
import os
import pytest
from tools import faults

pytestmark = pytest.mark.skipif(not hasattr(os, 'fork'), reason='faults are made in forked processes')

def test_work_that_is_killed_ends_as_one_that_was_not():
    for name, told in faults.kills(2).items(): assert told['same'] and told['kills'] >= 2, (name, told)

def test_a_disk_that_is_full_at_any_moment():
    told = faults.full_disk(3)
    assert told['good'] == told['tried'] == 3

def test_two_runs_in_one_folder(): assert faults.two_at_once()

def test_a_clock_that_jumps(): assert all(faults.jumping_clock(1).values())

def test_no_shared_memory(): assert faults.without_shared_memory()

def test_no_home_no_name_no_network(): assert faults.poor()

def test_nothing_can_be_written(): assert len(faults.not_mine()) == 3

def test_damaged_files():
    told = faults.fuzz_files(600)
    assert told['read'] + told['refused'] == 600

def test_senseless_commands():
    told = faults.fuzz_commands(25)
    assert told['refused'] + told['obeyed'] == 25
