'''The status page: what one process stores, another reads, without a message and also after the writer's death.'''

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from looppool.status import TAKEN_UP, StatusPage

WRITER = '''
import os, signal, sys
from looppool.status import TAKEN_UP, StatusPage
page = StatusPage(int(sys.argv[1]))
page.heartbeat = 1234.5
page.words[TAKEN_UP] = 2**64 - 1
os.kill(os.getpid(), signal.SIGKILL)
'''


@contextmanager
def created() -> Iterator[tuple[StatusPage, int]]:
    page, fd = StatusPage.create()
    try:
        yield page, fd
    finally:
        page.close()
        os.close(fd)


def test_a_fresh_page_tells_of_nothing() -> None:
    with created() as (page, _):
        assert (page.heartbeat, page.taken_up) == (0.0, 0)


def test_two_mappings_of_one_page_show_the_same() -> None:
    with created() as (parents, fd):
        workers = StatusPage(fd)

        workers.heartbeat = 12.25
        workers.words[TAKEN_UP] = 7

        assert (parents.heartbeat, parents.taken_up) == (12.25, 7)
        workers.close()


def test_fields_do_not_touch_each_other() -> None:
    with created() as (page, _):
        page.words[TAKEN_UP] = 7
        page.heartbeat = -1e308
        assert page.taken_up == 7

        page.words[TAKEN_UP] = 2**64 - 1
        assert page.heartbeat == -1e308


def test_what_a_killed_process_stored_last_can_be_read() -> None:
    with created() as (page, fd):
        writer = subprocess.run([sys.executable, '-c', WRITER, str(fd)], pass_fds=[fd], timeout=30)

        assert writer.returncode == -signal.SIGKILL
        assert (page.heartbeat, page.taken_up) == (1234.5, 2**64 - 1)


def test_pages_are_apart() -> None:
    with created() as (one, _), created() as (another, _):
        one.words[TAKEN_UP] = 1

        assert another.taken_up == 0


def test_a_page_outlives_its_descriptor() -> None:
    page, fd = StatusPage.create()
    os.close(fd)

    page.heartbeat = 1.0

    assert page.heartbeat == 1.0
    page.close()


def test_a_closed_page_can_not_be_read() -> None:
    with created() as (_, fd):
        page = StatusPage(fd)
        page.close()

        with pytest.raises(ValueError):
            _ = page.heartbeat


def test_without_memfd_a_temporary_file_does() -> None:
    with pytest.MonkeyPatch.context() as system:
        system.delattr(os, 'memfd_create', raising=False)
        page, fd = StatusPage.create()

    twin = StatusPage(fd)
    twin.heartbeat = 2.0

    assert page.heartbeat == 2.0
    for mapped in (page, twin):
        mapped.close()
    os.close(fd)
