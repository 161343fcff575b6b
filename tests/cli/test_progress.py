"""The progress line appears on a terminal, after a second, and leaves nothing behind."""

import io

from ckpt_tools.cli import progress as module


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(monkeypatch, stream, times):
    clock = iter(times)
    monkeypatch.setattr(module, "monotonic", lambda: next(clock))
    monkeypatch.setattr(module.sys, "stderr", stream)
    with module.progress(4_000_000, "reading") as advance:
        for _ in times[1:]:
            advance(1_000_000)
    return stream.getvalue()


def test_it_waits_a_second_and_clears_its_line(monkeypatch):
    text = shown(monkeypatch, Terminal(), [0.0, 0.5, 2.0, 2.01])
    assert text == "\rreading: 2.0 MB of 4.0 MB (50 %), 1.0 MB/s, 2 s left\x1b[K\r\x1b[K"


def test_quick_work_and_pipes_see_nothing(monkeypatch):
    assert shown(monkeypatch, Terminal(), [0.0, 0.5, 0.9]) == ""
    assert shown(monkeypatch, io.StringIO(), [0.0, 5.0, 9.0]) == ""
